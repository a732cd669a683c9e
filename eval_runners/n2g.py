"""n2g: is a latent told by patterns of tokens?

From contexts in which a latent fires most, a pattern of each: the shortest run of tokens, up to the one on which it
fires, that keeps half of the activation; in it, tokens that others can replace without losing half are wildcards.
Patterns, read backwards, make a trie, which says of any token of other text whether the latent should fire on it.
Precision and recall of what it says, on held-out contexts that no pattern is from: of all tokens on which the latent
fires, and of those on which it has at least half of its largest activation. Means over latents drawn at random;
precision over those whose patterns are found at all.
Foote et al., arXiv 2305.19911; used by Gao et al., arXiv 2406.04093, 4.3.

Shapes: C contexts, T tokens, n tokens of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Direction, Evaluation, Metric
from eval_runners.measures.token_patterns import describe_by_patterns, sample_replacements
from sae_variants.common.errors import UsageError

NAME = "n2g"
CATEGORIES = ("firing", "strong")
_NAMES = ("precision", "recall", "f1", "latents", "length")


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 512
    """Held-out contexts, of whose first half patterns are made and on whose second half they are tested."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    n_latents: int = 40
    """Latents that are looked at, drawn at random."""
    n_min: int = 5
    """A latent counts if it fires in at least so many contexts of each half."""
    examples: int = 10
    """Contexts from which patterns of a latent are made, those where it fires most."""
    longest: int = 12
    """Tokens in a pattern, at most."""
    replacements: int = 5
    """Tokens of the text that are tried in place of each token of a pattern."""
    seed: int = 0
    """Seed of latents and replacements."""


_TITLES = {"firing": "all tokens on which it fires", "strong": "tokens of at least half of its largest activation"}
_BETTER: dict[str, Direction] = {"precision": "higher", "recall": "higher", "f1": "higher"}
METRICS = (
    *(
        Metric(
            f"{category}.{name}", f"{name}, {title}", _BETTER[name], f"eval_result_metrics.{category}.{name}",
            short=f"N2G {name}" if category == "firing" else "",
        )
        for category, title in _TITLES.items()
        for name in _BETTER
    ),
    Metric("latents", "latents looked at", "neither", "eval_result_metrics.firing.latents"),
    Metric("length", "tokens in a pattern", "neither", "eval_result_metrics.firing.length"),
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, _NAMES)


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings. UsageError for those that cannot be."""
    if config.n_contexts < 2 * config.n_min:
        raise UsageError(f"--n-contexts {config.n_contexts} must be at least twice --n-min {config.n_min}")
    return config, {}


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """Means over latents; a row per latent with its patterns as text."""
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.measures.sampled_latents import sample_latents
    from eval_runners.store.envelope import make_output
    from sae_variants.common.console import progress
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    found = sample_latents(
        sae, target, model, config.n_contexts, config.context_size, config.n_latents, config.n_min, config.seed
    )
    replacements = sample_replacements(found.ids_CT, model, config.replacements, config.seed)
    rows = [
        describe_by_patterns(
            sae,
            target,
            model,
            latent,
            found.ids_CT,
            found.acts_CTP[..., number],
            replacements,
            config.examples,
            config.longest,
        )
        for number, latent in enumerate(progress(found.latents, "latents"))
    ]
    values: dict[str, dict[str, Any]] = {category: dict.fromkeys(_NAMES) for category in CATEGORIES}
    for category in CATEGORIES:
        for name in _BETTER:
            known = [row[f"{category} {name}"] for row in rows if row[f"{category} {name}"] is not None]
            values[category][name] = sum(known) / len(known) if known else None
        values[category]["latents"] = float(len(rows))
        values[category]["length"] = sum(row["length"] for row in rows) / len(rows) if rows else None
    failures = [] if rows else ["no latent fires often enough"]
    return Evaluation(make_output(NAME, config, finite_or_none(values), sae, target), {"by_latent": rows}, failures)


def details(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per latent."""
    rows = result["eval_result_unstructured"]["by_latent"]
    return [{**row, "patterns": " | ".join(row["patterns"])} for row in rows]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
