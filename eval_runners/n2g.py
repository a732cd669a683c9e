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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Direction, Evaluation, Metric
from sae_variants.common.errors import UsageError

NAME = "n2g"
CATEGORIES = ("firing", "strong")
_NAMES = ("precision", "recall", "f1", "latents", "length")
WILDCARD = None
END = "end"

Pattern = tuple[int | None, ...]
"""Tokens of a run, wildcards in place of those that do not matter."""


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
    from eval_runners.store import envelope as _envelope

    return _envelope.envelope_class(NAME, EvalConfig, CATEGORIES, _NAMES)


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings. UsageError for those that cannot be."""
    if config.n_contexts < 2 * config.n_min:
        raise UsageError(f"--n-contexts {config.n_contexts} must be at least twice --n-min {config.n_min}")
    return config, {}


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """Means over latents; a row per latent with its patterns as text."""
    from eval_runners.measures import sampled_latents as _drawn
    from eval_runners.saebench import shared as _saebench
    from eval_runners.store import envelope as _envelope
    from eval_runners.store import result as _result

    _saebench.require_numbers(sae)
    found = _drawn.drawn(
        sae, target, model, config.n_contexts, config.context_size, config.n_latents, config.n_min, config.seed
    )
    replacements = replacing(found.ids_CT, model, config)
    rows = [
        described(sae, target, model, latent, found.ids_CT, found.acts_CTP[..., number], replacements, config)
        for number, latent in enumerate(_saebench.progress(found.latents, "latents"))
    ]
    values: dict[str, dict[str, Any]] = {category: dict.fromkeys(_NAMES) for category in CATEGORIES}
    for category in CATEGORIES:
        for name in _BETTER:
            known = [row[f"{category} {name}"] for row in rows if row[f"{category} {name}"] is not None]
            values[category][name] = sum(known) / len(known) if known else None
        values[category]["latents"] = float(len(rows))
        values[category]["length"] = sum(row["length"] for row in rows) / len(rows) if rows else None
    failures = [] if rows else ["no latent fires often enough"]
    return Evaluation(
        _envelope.envelope(NAME, config, _result.finite(values), sae, target), {"by_latent": rows}, failures
    )


def replacing(ids_CT: Any, model: Any, config: EvalConfig) -> list[int]:
    """Tokens of the text, drawn at random, to try in the place of others."""
    import torch

    generator = torch.Generator().manual_seed(config.seed)
    special = model.tokenizer.all_special_ids
    others = [token for token in ids_CT.unique().tolist() if token not in special]
    return [others[i] for i in torch.randperm(len(others), generator=generator)[: config.replacements]]


def described(
    sae: Any, target: Any, model: Any, latent: int, ids_CT: Any, acts_CT: Any, replacements: list[int],
    config: EvalConfig,
) -> dict[str, Any]:  # fmt: skip
    """The patterns of one latent as text, made of the first half of the contexts, and their scores on the second."""
    half = len(ids_CT) // 2
    last = last_activations(sae, target, model, latent)
    ends = examples(ids_CT[:half], acts_CT[:half], config.examples, config.longest)
    made = (pattern(run, activation, last, replacements) for run, activation in ends)
    patterns = dict.fromkeys(one for one in made if one is not None)
    fires = matches(trie(patterns), ids_CT[half:])
    row: dict[str, Any] = {"latent": latent, "patterns": [text(one, model.tokenizer) for one in patterns]}
    for category, truth in (("firing", acts_CT[half:] > 0), ("strong", acts_CT[half:] >= acts_CT.max() / 2)):
        row |= {f"{category} {name}": value for name, value in scores(fires, truth).items()}
    return {**row, "length": sum(map(len, patterns)) / max(len(patterns), 1)}


def last_activations(sae: Any, target: Any, model: Any, latent: int) -> Callable[[list[list[int]]], list[float]]:
    """What gives a latent's activation on the last token of each of some runs, each after BOS."""
    import torch

    from sae_variants.language_model import load as _models

    at_hook = _models.hook_activations(model, target.hook_name)
    bos = model.tokenizer.bos_token_id

    def of(runs: list[list[int]]) -> list[float]:
        lengths = [len(run) for run in runs]
        ids = torch.full((len(runs), max(lengths) + 1), bos)
        for row, run in enumerate(runs):
            ids[row, 1 : len(run) + 1] = torch.tensor(run)  # what follows the last token cannot change it
        with torch.no_grad():
            x_ND = at_hook(ids)[torch.arange(len(runs)), torch.tensor(lengths)]
            return sae.encode(x_ND)[:, latent].tolist()

    return of


def examples(ids_CT: Any, acts_CT: Any, most: int, longest: int) -> list[tuple[list[int], float]]:
    """Runs of tokens that end where a latent fires most in a context, and how much; where that is most."""
    largest_C, places_C = acts_CT.max(1)
    order = largest_C.argsort(descending=True, stable=True)[:most]
    return [
        (ids_CT[c, max(0, int(places_C[c]) + 1 - longest) : int(places_C[c]) + 1].tolist(), float(largest_C[c]))
        for c in order.tolist()
        if largest_C[c] > 0
    ]


def pattern(
    run: Sequence[int], activation: float, last: Callable[[list[list[int]]], list[float]], replacements: Sequence[int]
) -> Pattern | None:
    """The shortest end of a run that keeps half of the activation, wildcards in it where others keep it as well.

    None where no end of the run does: what it fires on is farther back.

    Args:
        activation: that in the text.
        last: gives the activations on the last token of runs.
        replacements: tokens to try in the place of each.
    """
    ends = [list(run[-length:]) for length in range(1, len(run) + 1)]
    enough = activation / 2
    shortest = next((end for end, value in zip(ends, last(ends), strict=True) if value >= enough), None)
    if shortest is None:
        return None
    found: list[int | None] = list(shortest)
    for place, token in enumerate(shortest):
        changed = [[*shortest[:place], other, *shortest[place + 1 :]] for other in replacements if other != token]
        values = last(changed) if changed else []
        if values and sum(values) / len(values) >= enough:
            found[place] = WILDCARD
    while len(found) > 1 and found[0] is WILDCARD:
        found.pop(0)
    return tuple(found)


def trie(patterns: Iterable[Pattern]) -> dict[Any, Any]:
    """Patterns from their last token on: token -> what may stand before it, `END` where a pattern begins."""
    root: dict[Any, Any] = {}
    for one in patterns:
        node = root
        for token in reversed(one):
            node = node.setdefault(token, {})
        node[END] = True
    return root


def matches(root: dict[Any, Any], ids_CT: Any) -> Any:
    """Mask [C, T] of the tokens at which a pattern ends."""
    import torch

    found = torch.zeros(ids_CT.shape, dtype=torch.bool)
    for context, ids in enumerate(ids_CT.tolist()):
        for place in range(len(ids)):
            found[context, place] = _ends(root, ids, place)
    return found


def _ends(node: dict[Any, Any], ids: list[int], place: int) -> bool:
    """Whether what is left of a pattern ends at this place."""
    if END in node:
        return True
    if place < 0:
        return False
    return any(_ends(node[token], ids, place - 1) for token in (ids[place], WILDCARD) if token in node)


def scores(said: Any, truth: Any) -> dict[str, float | None]:
    """Precision, recall and their harmonic mean; without anything said or true there is none."""
    both = int((said & truth).sum())
    precision = both / int(said.sum()) if said.any() else None
    recall = both / int(truth.sum()) if truth.any() else None
    f1 = None if recall is None else 2 * both / (int(said.sum()) + int(truth.sum()))
    return {"precision": precision, "recall": recall, "f1": f1}


def text(one: Pattern, tokenizer: Any) -> str:
    """A pattern as people read it: tokens in quotes, wildcards as stars."""
    return " ".join("*" if token is WILDCARD else repr(tokenizer.decode([token])) for token in one)


def details(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per latent."""
    rows = result["eval_result_unstructured"]["by_latent"]
    return [{**row, "patterns": " | ".join(row["patterns"])} for row in rows]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run

    run(Path(__file__).stem)
