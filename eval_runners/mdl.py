"""SAEBench's minimum description length: how many bits per token do quantised latents take?

Each latent is rounded to one of so many bins of equal width; a latent then takes the entropy of whether it fires, and
that of its bin. SAEBench rounds a latent that does not fire to the middle of the first bin, too, so that the error of
the reconstruction is large; the smallest description length whose error is below the threshold counts, or the smallest
of all if none is.

Source: SAEBench; after Ayonrinde et al., arXiv 2410.11179.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Evaluation, Evaluator, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's minimum description length; the defaults are those of its command line."""

    num_bins_values: tuple[int, ...] = (8, 16, 32, 64)
    """Numbers of bins that are tried."""
    mse_epsilon_threshold: float = 0.2
    """Largest error, as the root of the mean squared error divided by d_in."""
    batches: int = 64
    """Batches that are read at a time, each of as many contexts."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    random_seed: int = 42
    """Seed of the order of the text."""


METRICS = (
    Metric(
        "mdl",
        "description_length",
        "description length, bits per token",
        "lower",
        short="MDL",
        trust="not for ranking",
        why_trust="a latent that does not fire is rounded to the middle of its first bin, and an SAE that never fires "
        "takes 0 bits",
    ),
    Metric("mdl", "num_bins", "number of bins with that length", "neither"),
    Metric("mdl", "error", "error with that number of bins", "lower"),
    Metric("mdl", "within_threshold", "share of the numbers of bins whose error is below the threshold", "higher"),
)


class MDL(Evaluator[Settings]):
    """SAEBench's minimum description length."""

    settings_class = Settings
    metrics = METRICS

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Check the numbers of bins."""
        if not settings.num_bins_values or min(settings.num_bins_values) < 1:
            raise UsageError(f"--num-bins-values must be at least 1 each, not {settings.num_bins_values}")
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's minimum description length of one SAE."""
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.saebench.mdl import score_mdl

        require_finite_weights(sae)
        found = score_mdl(sae, target, {**asdict(settings), "num_bins_values": list(settings.num_bins_values)}, context)
        viable = [one for one in found if one["within_threshold"]] or found
        best = min(viable, key=lambda one: one["description_length"])
        values = {
            "mdl.description_length": best["description_length"],
            "mdl.num_bins": best["num_bins"],
            "mdl.error": best["mse_loss"],
            "mdl.within_threshold": sum(one["within_threshold"] for one in found) / len(found),
        }
        failures = ["no latent ever fires: the description length is 0"] if not best["description_length"] else []
        return Evaluation(values, {"of_bins": found}, failures)


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
