"""Does ablating a latent change few logits of the next tokens, or all of them a little?

A latent is ablated at one token on which it fires, and the logits of that token and the following ones are compared
with those of the clean run: changes of T tokens of one document x V vocabulary entries, less each token's median. The
metric is (L1 / L2)² / (V T) of these changes, the share of the logits that would hold the effect if all of those
changed by the same amount: 1 / (V T) for a single logit, 1 for all. It is averaged over the tokens of a latent, then
over randomly sampled latents. An effect on few of the T tokens is sparse by this measure, too; per token, the same is
taken over the V logits of one token, and averaged over tokens weighted by the squared size of their change.

The baseline is a random direction of the same norm, ablated at the same tokens.

Source: Gao et al., arXiv 2406.04093, section 4.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Evaluation, Evaluator, Metric
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import require_hook

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings:
    """Settings of the ablation sparsity."""

    n_contexts: int = 128
    """Held-out contexts that latents are sampled from."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    tokens_after: int = 16
    """T, the number of tokens whose logits are compared; the first is the ablated token."""
    n_latents: int = 60
    """Latents to sample."""
    places: int = 4
    """Tokens at which each latent is ablated, each in another context."""
    seed: int = 0
    """Seed of the sampled latents, the ablated tokens and the random directions."""


METRICS = (
    Metric(
        "latents",
        "sparsity",
        "share of the logits that ablating a latent changes",
        "lower",
        short="logits changed",
    ),
    Metric("latents", "sparsity_low", "lower end of its 95 % interval", "neither"),
    Metric("latents", "sparsity_high", "upper end of its 95 % interval", "neither"),
    Metric(
        "random", "sparsity", "share of the logits that ablating a random direction changes", "neither", column="random"
    ),
    Metric(
        "latents",
        "per_token",
        "share of one token's logits that ablating a latent changes",
        "lower",
        short="logits changed, per token",
    ),
    Metric(
        "random",
        "per_token",
        "share of one token's logits that ablating a random direction changes",
        "neither",
        column="random_per_token",
    ),
    Metric("latents", "count", "latents evaluated", "neither", column="latents"),
)


class AblationSparsity(Evaluator[Settings]):
    """Share of the logits that ablating a latent changes."""

    settings_class = Settings
    metrics = METRICS

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse contexts that are too short or too few, and hooks after the layers."""
        require_hook(target.hook_name, self.name, embedding=True)
        if settings.tokens_after >= settings.context_size:
            raise UsageError(
                f"--tokens-after {settings.tokens_after} must be below --context-size {settings.context_size}"
            )
        if settings.n_contexts < 2 * settings.places:
            raise UsageError(f"--n-contexts {settings.n_contexts} must be at least twice --places {settings.places}")
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Average the sparsity over sampled latents, with a 95 % bootstrap interval over the latents."""
        import numpy as np

        from eval_runners.measures.ablation import in_float32
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.logit_sparsity import logit_sparsities
        from eval_runners.measures.sampled_latents import sample_latents
        from eval_runners.measures.statistics import bootstrap_interval, known_values, mean_of_known

        require_finite_weights(sae)
        model = context.model
        sampled = sample_latents(
            sae,
            target,
            model,
            settings.n_contexts,
            settings.context_size,
            settings.n_latents,
            settings.places,
            settings.seed,
            option="--places",
        )
        with in_float32(model):
            rows = logit_sparsities(
                sae, target.hook_name, model, sampled, settings.tokens_after, settings.places, settings.seed
            )
        known = known_values(row["latents"] for row in rows)
        low, high = bootstrap_interval(np.array(known), settings.seed) if known else (None, None)
        values = {
            "latents.sparsity": mean_of_known(known),
            "latents.sparsity_low": low,
            "latents.sparsity_high": high,
            "random.sparsity": mean_of_known(row["random"] for row in rows),
            "latents.per_token": mean_of_known(row["latents_per_token"] for row in rows),
            "random.per_token": mean_of_known(row["random_per_token"] for row in rows),
            "latents.count": float(len(known)),
        }
        failures = [] if known else ["no latent fires often enough, or none changes a logit"]
        return Evaluation(values, {"by_latent": rows}, failures)


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
