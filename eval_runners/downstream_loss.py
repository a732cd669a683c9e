"""How much worse does the language model predict with the SAE's reconstruction in its activations?

The metrics are the increase of the language model's cross-entropy, and the Kullback-Leibler divergence of its
predictions from those of the clean run, in nats per token. Special tokens keep their activations; neither they nor the
tokens after them are predicted. The baseline replaces every activation by the mean activation.

Given a scaling curve of the language model, `--curve FILE` with columns compute and loss, the evaluation also gives the
compute-equivalent: the share of the language model's compute with which a smaller training would reach the loss with
the SAE, by linear interpolation of log loss over log compute.

Source: Gao et al., arXiv 2406.04093, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Evaluation, Evaluator, Metric

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings:
    """Settings of the downstream loss."""

    n_contexts: int = 256
    """Held-out contexts to predict."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    curve: str = ""
    """CSV file with columns compute and loss: the loss of language models on such text over their training compute."""


METRICS = (
    Metric("sae", "ce_increase", "increase of cross-entropy, nats", "lower", short="CE +"),
    Metric("sae", "kl", "KL divergence from the clean predictions, nats", "lower", short="KL"),
    Metric("sae", "compute_share", "share of the compute that the loss is worth", "higher", short="compute"),
    Metric(
        "mean",
        "ce_increase",
        "increase of cross-entropy by the mean activation, nats",
        "neither",
        column="mean_ce_increase",
    ),
    Metric("mean", "kl", "KL divergence by the mean activation, nats", "neither", column="mean_kl"),
    Metric("model", "ce", "cross-entropy of the clean run, nats", "neither"),
)


class DownstreamLoss(Evaluator[Settings]):
    """Increase of the language model's cross-entropy with the SAE spliced in."""

    settings_class = Settings
    metrics = METRICS

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse a curve that cannot be read, and return its version."""
        from eval_runners.measures.compute_curve import read_curve
        from sae_variants.common.hashing import hash_files

        if not settings.curve:
            return settings, {}
        read_curve(settings.curve)
        return settings, {"curve": hash_files([Path(settings.curve)])}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Splice the reconstruction, and the mean activation, into the language model."""
        from eval_runners.data.heldout import heldout_tokens
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.compute_curve import compute_share, read_curve
        from eval_runners.measures.spliced_predictions import mean_activation, spliced_losses

        require_finite_weights(sae)
        ids_CT = heldout_tokens(target, context.model, settings.n_contexts, settings.context_size)
        mean_D = mean_activation(target, context.model, ids_CT)
        replacements = {"sae": lambda x: sae.decode(sae.encode(x)), "mean": lambda x: mean_D.expand_as(x)}
        losses = spliced_losses(target, context.model, ids_CT, replacements)
        values: dict[str, float | None] = {"model.ce": losses.clean}
        for name in replacements:
            values |= {f"{name}.ce_increase": losses.cross_entropy[name] - losses.clean, f"{name}.kl": losses.kl[name]}
        if settings.curve:
            curve = read_curve(settings.curve)
            values["sae.compute_share"] = compute_share(curve, losses.clean, losses.cross_entropy["sae"])
        worse = not losses.kl["sae"] < losses.kl["mean"]
        failures = ["predictions are no nearer to the clean ones than with the mean activation"] if worse else []
        return Evaluation(values, failures=failures)


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
