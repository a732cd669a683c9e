"""SAEBench's probing on the 113 labelled datasets of the sae-probes package, unchanged; needs no network.

For every dataset a logistic probe separates its two classes by the activations at a document's last token: those of the
whole residual stream ("LLM"), and those of the k latents that differ most between the classes ("SAE"). The package
holds the texts. Its F1 is the mean over both classes, weighted by their size; the F1 of `sparse_probing` is that of a
single class. Documents that the package holds twice may lie on both sides of its split.

Source: Kantamneni et al., arXiv 2502.16681; SAEBench, arXiv 2503.09532.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Evaluation, Evaluator, Metric, Result
from eval_runners.saebench.shared import KS, check_ks, layer_of, too_many_of
from sae_variants.common.errors import UsageError, check_name

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target

SCORES = {"accuracy": "accuracy", "auc": "AUC", "f1": "F1"}
"""Score, as in the names of metrics -> its title."""


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's probing on the sae-probes data."""

    all: bool = False
    """Whether to use all 113 datasets where the target names a part of them."""
    dataset_names: tuple[str, ...] = ()
    """Datasets, separated by commas, such as 158_code_C; the default is all 113."""
    ks: tuple[int, ...] = (1, 2, 5)
    """Numbers of latents that a probe may use."""
    reg_type: str = "l1"
    """Penalty of the probes: l1 or l2."""
    binarize: bool = False
    """Whether to probe if latents fire rather than how strongly."""
    random_seed: int = 42
    """Seed of the sampled documents."""


WHY_CARE = (
    "the most reliable of SAEBench's metrics on all datasets (arXiv 2605.18229), but on few, as on the sandbox, it "
    "tells no architectures apart (results/reliability.md)"
)
SHOWN = (5, "accuracy")
"""Number of latents and score that have a column on the leaderboard."""


def _sae_metric(k: int, score: str) -> Metric:
    is_audited = k == SHOWN[0]
    return Metric(
        "sae",
        f"sae_top_{k}_test_{score}",
        f"SAE {SCORES[score]}, k = {k}",
        "higher",
        short=f"sae-probes, k = {k}" if (k, score) == SHOWN else "",
        references=(("residual stream, all channels", f"llm.llm_test_{score}"),) if (k, score) == SHOWN else (),
        trust="with care" if is_audited else "",
        why_trust=WHY_CARE if is_audited else "",
    )


METRICS = (
    *(_sae_metric(k, score) for k in KS for score in SCORES),
    *(Metric("llm", f"llm_test_{score}", f"LLM {title}, all", "neither") for score, title in SCORES.items()),
)


class SAEProbes(Evaluator[Settings]):
    """SAEBench's probing on the sae-probes data."""

    settings_class = Settings
    metrics = METRICS
    eval_type = "sparse_probing_sae_probes"
    detail = "dataset"

    def host_output_class(self) -> type:
        """SAEBench's class of these results."""
        from sae_bench.evals.sparse_probing_sae_probes.eval_output import SparseProbingSaeProbesEvalOutput

        return SparseProbingSaeProbesEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Name every dataset, and find the version of each."""
        from eval_runners.data.labelled import probe_dataset_names, probe_dataset_version

        layer_of(target.hook_name)
        known = probe_dataset_names()
        names = settings.dataset_names if settings.dataset_names and not settings.all else known
        for name in names:
            check_name("dataset", name, known)
        check_ks(settings.ks, "--ks")
        if settings.reg_type not in ("l1", "l2"):
            raise UsageError(f"--reg-type must be l1 or l2, not {settings.reg_type!r}")
        versions = {name: probe_dataset_version(name) for name in names}
        return replace(settings, all=False, dataset_names=tuple(versions)), versions

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's probing on the sae-probes data of one SAE, and add the verdict."""
        from eval_runners.measures.checks import require_finite_weights, why_at_chance
        from eval_runners.saebench.sae_probes import score_sae_probes

        require_finite_weights(sae)
        if reason := too_many_of("--ks", max(settings.ks), sae.cfg.d_sae):
            raise UsageError(reason)
        host_settings = asdict(settings)
        del host_settings["all"]
        output = score_sae_probes(sae, target, host_settings, context)
        accuracies = [
            value
            for detail in output["eval_result_details"]
            for name, value in detail.items()
            if name.startswith("sae_top") and name.endswith("accuracy")
        ]
        return Evaluation(
            unstructured={"tasks": len(settings.dataset_names)},
            failures=why_at_chance(accuracies),
            host_output=output,
        )

    def detail_rows(self, result: Result) -> Iterator[dict[str, Any]]:
        """One row per dataset: accuracy, AUC and F1 at every k, and the language model's."""
        for detail in result["eval_result_details"]:
            row: dict[str, Any] = {"dataset": detail["dataset_name"]}
            for k in result["eval_config"]["ks"]:
                for score in SCORES:
                    row[f"SAE {score} {k}"] = detail[f"sae_top_{k}_test_{score}"]
            yield row | {f"LLM {score}": detail[f"llm_test_{score}"] for score in SCORES}


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
