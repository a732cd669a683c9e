"""Do patterns of tokens predict where a latent fires?

From each of the contexts in which a latent fires most, one pattern is taken: the shortest run of tokens, ending where
the latent fires, that keeps half of the activation. Tokens of the run that others can replace without losing half are
wildcards; a run of wildcards alone is no pattern. The patterns of a latent, read backwards, form a trie that predicts
for any token whether the latent fires there. Precision and recall of the prediction are measured on held-out contexts
that no pattern comes from, for all tokens on which the latent fires and for those on which it has at least half of its
largest activation. All numbers are means over sampled latents; precision leaves out latents whose patterns never match.

Source: Foote et al., arXiv 2305.19911; used by Gao et al., arXiv 2406.04093, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from sae_variants.common.console import progress
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target

SCORES = ("precision", "recall", "f1")
TOKENS = {"firing": "all tokens on which it fires", "strong": "tokens of at least half of its largest activation"}
"""Category -> the tokens that patterns are to predict."""


@dataclass(frozen=True)
class Settings:
    """Settings of the token patterns."""

    n_contexts: int = 512
    """Held-out contexts: patterns come from the first half and are tested on the second."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    n_latents: int = 40
    """Latents to sample."""
    n_min: int = 5
    """Contexts of each half in which a latent must fire to be sampled."""
    examples: int = 10
    """Contexts that patterns of a latent come from: those in which it fires most."""
    longest: int = 12
    """Largest number of tokens in a pattern."""
    replacements: int = 5
    """Tokens of the text that are tried in place of each token of a pattern."""
    seed: int = 0
    """Seed of the sampled latents and of the replacements."""


METRICS = (
    *(
        Metric(
            category,
            score,
            f"{score}, {tokens}",
            "higher",
            short=f"N2G {score}" if category == "firing" else "",
            column=f"{category}.{score}",
        )
        for category, tokens in TOKENS.items()
        for score in SCORES
    ),
    Metric("firing", "latents", "latents evaluated", "neither"),
    Metric("firing", "length", "tokens in a pattern", "neither"),
)


class N2G(Evaluator[Settings]):
    """Precision and recall of token patterns."""

    settings_class = Settings
    metrics = METRICS
    version = 2
    detail = "latent"

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse too few contexts."""
        if settings.n_contexts < 2 * settings.n_min:
            raise UsageError(f"--n-contexts {settings.n_contexts} must be at least twice --n-min {settings.n_min}")
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Describe sampled latents by patterns, and average the scores of the patterns."""
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.sampled_latents import sample_latents
        from eval_runners.measures.statistics import mean_of_known
        from eval_runners.measures.token_patterns import describe_by_patterns, sample_replacements

        require_finite_weights(sae)
        sampled = sample_latents(
            sae,
            target,
            context.model,
            settings.n_contexts,
            settings.context_size,
            settings.n_latents,
            settings.n_min,
            settings.seed,
        )
        replacements = sample_replacements(sampled.ids_CT, context.model, settings.replacements, settings.seed)
        rows = [
            describe_by_patterns(
                sae,
                target,
                context.model,
                latent,
                sampled.ids_CT,
                sampled.acts_CTP[..., number],
                sampled.special_CT,
                replacements,
                settings.examples,
                settings.longest,
            )
            for number, latent in enumerate(progress(sampled.latents, "latents"))
        ]
        values = {
            f"{category}.{score}": mean_of_known(row[f"{category} {score}"] for row in rows)
            for category in TOKENS
            for score in SCORES
        }
        values |= {"firing.latents": float(len(rows)), "firing.length": mean_of_known(row["length"] for row in rows)}
        return Evaluation(values, {"by_latent": rows}, [] if rows else ["no latent fires often enough"])

    def detail_rows(self, result: Result) -> list[dict[str, Any]]:
        """One row per latent."""
        rows = result[UNSTRUCTURED]["by_latent"]
        return [{**row, "patterns": " | ".join(row["patterns"])} for row in rows]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
