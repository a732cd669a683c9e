"""SAEBench's spurious correlation removal (SCR), unchanged: does ablating a few latents make a probe fair?

A probe is fitted on documents in which two labels always go together, such as profession and gender. Latents that
separate one of the labels are ablated, and the probe is tested on documents in which only the other label varies: 0 is
the accuracy of the biased probe, 1 that of a probe fitted on the other label alone. The texts that need no network are
news items of two topics, each followed by a review of one of two sentiments.

Source: Karvonen et al., SAEBench, arXiv 2503.09532; after SHIFT, Marks et al., arXiv 2403.19647.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Curve, Evaluation, Metric
from eval_runners.saebench.ablations import NOT_FOR_RANKING, SHOWN, Ablations, AblationSettings, points
from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_value

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings(AblationSettings):
    """Settings of SAEBench's SCR."""

    dataset_names: tuple[str, ...] = ("LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5")
    """Datasets with two labels, separated by commas: SAEBench's two, or sandbox/ag_news+yelp_sentiment."""


METRICS = tuple(
    Metric(
        "scr_metrics",
        name,
        title,
        "higher",
        short="SCR" if n == SHOWN else "",
        curve=Curve("spurious correlation removal", "latents that are ablated", n),
        **NOT_FOR_RANKING,
    )
    for n, title, name in points("SCR, {} latents", "scr_metric_threshold_{}")
)


class SCR(Ablations):
    """SAEBench's SCR."""

    settings_class = Settings
    metrics = METRICS
    perform_scr = True

    def host_output_class(self) -> type:
        """SAEBench's class of SCR results."""
        from sae_bench.evals.scr_and_tpp.eval_output import ScrEvalOutput

        return ScrEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Check the numbers of documents, too: a quarter of them has each pair of labels."""
        from eval_runners.data.labelled_pairs import PAIRED, fewest_texts

        settings, versions = super().prepare(target, settings)
        sizes = {"--train-set-size": settings.train_set_size, "--test-set-size": settings.test_set_size}
        limits = fewest_texts(PAIRED) if PAIRED in settings.dataset_names else (None, None)
        for (option, size), most in zip(sizes.items(), limits, strict=True):
            if size < 4 or size % 4:
                raise UsageError(f"{option} must be a multiple of 4, a quarter for each pair of labels, not {size}")
            if most is not None and size // 2 >= most:
                raise UsageError(f"{option} {size} is too large for {PAIRED}: at most {(most - 1) // 2 * 4}")
        return settings, versions

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's SCR of one SAE."""
        from eval_runners.measures.checks import require_finite_weights

        require_finite_weights(sae)
        return super().evaluate(sae, target, settings, context)

    def known_datasets(self) -> list[str]:
        """SAEBench's two, and ours."""
        from eval_runners.data.labelled_pairs import PAIRED

        return [*Settings().dataset_names, PAIRED]

    def versions(self, settings: Settings) -> dict[str, str]:
        """Hash of our texts; of SAEBench's only the name is known."""
        from eval_runners.data.labelled_pairs import PAIRED, paired_texts

        return {
            name: hash_value([part.to_dict("list") for part in paired_texts(name)], size=8) if name == PAIRED else name
            for name in settings.dataset_names
        }


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
