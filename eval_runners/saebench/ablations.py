"""What SCR and TPP have in common: settings, checks, and how one SAE is scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from eval_runners.contract.contract import Context, Evaluation, Evaluator
from eval_runners.saebench.shared import layer_of, too_many_of
from sae_variants.common.errors import UsageError, check_name

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target
    from sae_variants.training.plan import Plan

N_VALUES = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of ablated latents for which SAEBench's results have fields."""
SHOWN = 20
"""Number that has a column on the leaderboard, as in SAEBench's paper."""
NOT_FOR_RANKING: Any = {
    "trust": "not for ranking",
    "why_trust": "differences between SAEs do not exceed those between seeds and settings (arXiv 2605.18229)",
}


@dataclass(frozen=True)
class AblationSettings:
    """Settings of SCR and TPP."""

    train_set_size: int = 4000
    """Documents that a probe of the language model is fitted on."""
    test_set_size: int = 1000
    """Documents that a probe is tested on."""
    n_values: tuple[int, ...] = N_VALUES
    """Numbers of latents that are ablated."""
    context_length: int = 128
    """Tokens that are read from the beginning of a document."""
    probe_epochs: int = 20
    """Passes over the documents when a probe is fitted."""
    llm_batch_size: int = 32
    """Documents in a batch of the language model."""
    sae_batch_size: int = 125
    """Documents in a batch of the SAE."""
    random_seed: int = 42
    """Seed of the sampled documents and of the probes."""


class Ablations(Evaluator[Any]):
    """SCR or TPP."""

    perform_scr: ClassVar[bool]
    """Whether it is SCR."""

    def known_datasets(self) -> list[str]:
        """Return the names of datasets that it can read."""
        raise NotImplementedError

    def versions(self, settings: Any) -> dict[str, str]:
        """Return what identifies the documents, by the name of their dataset."""
        raise NotImplementedError

    def prepare(self, target: Target, settings: Any) -> tuple[Any, dict[str, str]]:
        """Check names and numbers, and find the version of every dataset."""
        layer_of(target.hook_name)
        for name in settings.dataset_names:
            check_name("dataset", name, self.known_datasets())
        if unknown := [n for n in settings.n_values if n not in N_VALUES]:
            raise UsageError(f"--n-values may hold {', '.join(map(str, N_VALUES))}, not {unknown[0]}")
        return settings, self.versions(settings)

    def why_unsupported(self, plan: Plan, settings: Any) -> str:
        """The SAE has fewer latents than are ablated."""
        return too_many_of("--n-values", max(settings.n_values), plan.sized["d_sae"])

    def evaluate(self, sae: SAE[Any], target: Target, settings: Any, context: Context) -> Evaluation:
        """Run SAEBench's evaluation of one SAE, and add the accuracy of the language model's probes."""
        from eval_runners.saebench.scr_and_tpp import score_scr_or_tpp

        if reason := too_many_of("--n-values", max(settings.n_values), sae.cfg.d_sae):
            raise UsageError(reason)
        output, accuracies, ablated = score_scr_or_tpp(sae, target, asdict(settings), context, self.perform_scr)
        failures = [] if ablated else ["no latent separates a class from others"]
        return Evaluation(unstructured={"probe_accuracy": accuracies}, failures=failures, host_output=output)

    def summary_lines(self, result: Any) -> list[str]:
        """Accuracy of the language model's probes, without which no score means anything."""
        return [_accuracies(result["eval_result_unstructured"]["probe_accuracy"])]


def _accuracies(by_name: dict[str, float]) -> str:
    return "accuracy of the language model's probes: " + ", ".join(f"{v:.2f} {name}" for name, v in by_name.items())


def points(title: str, name: str) -> Iterator[tuple[int, str, str]]:
    """Yield for every number of ablated latents: the number, a metric's title and its name, where {} is the number."""
    return ((n, title.format(n), name.format(n)) for n in N_VALUES)
