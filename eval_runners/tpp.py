"""SAEBench's targeted probe perturbation (TPP), unchanged: does ablating latents of a class harm its probe alone?

A probe of the language model separates each class from the others. The latents that separate a class most are ablated:
the score is how much the accuracy of its own probe falls, less how much that of the other probes falls on average.

Source: Karvonen et al., SAEBench, arXiv 2503.09532.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Curve, Evaluation, Metric
from eval_runners.saebench.ablations import NOT_FOR_RANKING, SHOWN, Ablations, AblationSettings, points

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings(AblationSettings):
    """Settings of SAEBench's TPP."""

    dataset_names: tuple[str, ...] = ("LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5")
    """Datasets, separated by commas: those of SAEBench's sparse probing, or names that begin with sandbox/."""


METRICS = (
    *(
        Metric(
            "tpp_metrics",
            name,
            title,
            "higher",
            short="TPP" if n == SHOWN else "",
            curve=Curve("targeted probe perturbation", "latents that are ablated", n),
            **NOT_FOR_RANKING,
        )
        for n, title, name in points("TPP, {} latents", "tpp_threshold_{}_total_metric")
    ),
    *(
        Metric(
            "tpp_metrics", f"tpp_threshold_{SHOWN}_{which}_diff_only", f"fall of {probe}, {SHOWN} latents", "neither"
        )
        for which, probe in (("intended", "the class's own probe"), ("unintended", "the other probes"))
    ),
)


class TPP(Ablations):
    """SAEBench's TPP."""

    settings_class = Settings
    metrics = METRICS
    perform_scr = False

    def host_output_class(self) -> type:
        """SAEBench's class of TPP results."""
        from sae_bench.evals.scr_and_tpp.eval_output import TppEvalOutput

        return TppEvalOutput

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's TPP of one SAE."""
        from eval_runners.measures.checks import require_finite_weights

        require_finite_weights(sae)
        return super().evaluate(sae, target, settings, context)

    def known_datasets(self) -> list[str]:
        """Those of sparse probing."""
        from eval_runners.data.labelled import known_datasets

        return known_datasets()

    def versions(self, settings: Settings) -> dict[str, str]:
        """Hash of the documents of a dataset of this package; of SAEBench's only the name is known."""
        from eval_runners.data.labelled import dataset_version

        sizes = settings.train_set_size, settings.test_set_size, settings.random_seed, "--{}-set-size"
        return {name: dataset_version(name, *sizes) for name in settings.dataset_names}


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
