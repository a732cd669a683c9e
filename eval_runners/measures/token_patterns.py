"""Token patterns that explain a latent (N2G), and how well they predict where it fires.

Foote et al., arXiv 2305.19911. Shapes: C contexts, T tokens, n tokens of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

WILDCARD = None
END = "end"
EXAMPLES, LONGEST, REPLACEMENTS = 10, 12, 5
"""Defaults: contexts that patterns are made from, tokens in a pattern, tokens tried in the place of each."""
Pattern = tuple[int | None, ...]
"""Tokens of a run, wildcards in place of those that do not matter."""


def sample_replacements(ids_CT: Any, model: Any, n: int, seed: int) -> list[int]:
    """Tokens of the text, drawn at random, to try in the place of others."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    special = model.tokenizer.all_special_ids
    others = [token for token in ids_CT.unique().tolist() if token not in special]
    return [others[i] for i in torch.randperm(len(others), generator=generator)[:n]]


def describe_by_patterns(
    sae: Any, target: Any, model: Any, latent: int, ids_CT: Any, acts_CT: Any, replacements: list[int],
    n_examples: int = EXAMPLES, longest: int = LONGEST,
) -> dict[str, Any]:  # fmt: skip
    """The patterns of one latent as text, made of the first half of the contexts, and their scores on the second."""
    half = len(ids_CT) // 2
    last = last_activations(sae, target, model, latent)
    ends = find_examples(ids_CT[:half], acts_CT[:half], n_examples, longest)
    made = (find_pattern(run, activation, last, replacements) for run, activation in ends)
    patterns = dict.fromkeys(one for one in made if one is not None)
    fires = match_trie(build_trie(patterns), ids_CT[half:])
    row: dict[str, Any] = {"latent": latent, "patterns": [pattern_text(one, model.tokenizer) for one in patterns]}
    for category, truth in (("firing", acts_CT[half:] > 0), ("strong", acts_CT[half:] >= acts_CT.max() / 2)):
        row |= {f"{category} {name}": value for name, value in precision_recall(fires, truth).items()}
    return {**row, "length": sum(map(len, patterns)) / max(len(patterns), 1)}


def last_activations(sae: Any, target: Any, model: Any, latent: int) -> Callable[[list[list[int]]], list[float]]:
    """What gives a latent's activation on the last token of each of some runs, each after BOS."""
    import torch

    from sae_variants.language_model.hooks import hook_activations

    at_hook = hook_activations(model, target.hook_name)
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


def find_examples(ids_CT: Any, acts_CT: Any, most: int, longest: int) -> list[tuple[list[int], float]]:
    """Runs of tokens that end where a latent fires most in a context, and how much; where that is most."""
    largest_C, places_C = acts_CT.max(1)
    order = largest_C.argsort(descending=True, stable=True)[:most]
    return [
        (ids_CT[c, max(0, int(places_C[c]) + 1 - longest) : int(places_C[c]) + 1].tolist(), float(largest_C[c]))
        for c in order.tolist()
        if largest_C[c] > 0
    ]


def find_pattern(
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


def build_trie(patterns: Iterable[Pattern]) -> dict[Any, Any]:
    """Patterns from their last token on: token -> what may stand before it, `END` where a pattern begins."""
    root: dict[Any, Any] = {}
    for one in patterns:
        node = root
        for token in reversed(one):
            node = node.setdefault(token, {})
        node[END] = True
    return root


def match_trie(root: dict[Any, Any], ids_CT: Any) -> Any:
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


def precision_recall(said: Any, truth: Any) -> dict[str, float | None]:
    """Precision, recall and their harmonic mean; without anything said or true there is none."""
    both = int((said & truth).sum())
    precision = both / int(said.sum()) if said.any() else None
    recall = both / int(truth.sum()) if truth.any() else None
    f1 = None if recall is None else 2 * both / (int(said.sum()) + int(truth.sum()))
    return {"precision": precision, "recall": recall, "f1": f1}


def pattern_text(one: Pattern, tokenizer: Any) -> str:
    """A pattern as people read it: tokens in quotes, wildcards as stars."""
    return " ".join("*" if token is WILDCARD else repr(tokenizer.decode([token])) for token in one)
