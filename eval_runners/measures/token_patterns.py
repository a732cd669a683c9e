"""Token patterns that explain a latent (N2G), and how well they predict where it fires.

Source: Foote et al., arXiv 2305.19911.
Shapes: C contexts, T tokens of a context without BOS, N runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.data.heldout import bos_id, tokenizer_of
from sae_variants.language_model.hooks import hook_activations

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase

    from sae_variants.language_model.target import Target

WILDCARD = None
END = "end"
EXAMPLES, LONGEST, REPLACEMENTS = 10, 12, 5
"""Defaults: contexts that patterns come from, tokens in a pattern, tokens tried in place of each token."""
Pattern = tuple[int | None, ...]
"""Tokens of a run, with wildcards in place of those that do not matter."""
Trie = dict[Any, Any]
"""Patterns from their last token backwards: token -> trie of what may precede it; `END` where a pattern begins."""
LastActivations = Callable[[list[list[int]]], list[float]]
"""Function from runs of tokens to a latent's activation on the last token of each run."""


def sample_replacements(ids_CT: Tensor, model: HookedTransformer, n: int, seed: int) -> list[int]:
    """Sample tokens of the text, not special ones, to try in place of others."""
    generator = torch.Generator().manual_seed(seed)
    special = tokenizer_of(model).all_special_ids
    tokens = [token for token in ids_CT.unique().tolist() if token not in special]
    return [tokens[i] for i in torch.randperm(len(tokens), generator=generator)[:n]]


def describe_by_patterns(
    sae: SAE[Any],
    target: Target,
    model: HookedTransformer,
    latent: int,
    ids_CT: Tensor,
    acts_CT: Tensor,
    special_CT: Tensor,
    replacements: Sequence[int],
    n_examples: int = EXAMPLES,
    longest: int = LONGEST,
) -> dict[str, Any]:
    """Take a latent's patterns from the first half of the contexts, and score them on the second half.

    Args:
        sae: in inference form.
        target: the hook.
        model: the target's language model.
        latent: number of the latent.
        ids_CT: tokens without BOS.
        acts_CT: activations of the latent.
        special_CT: mask of special tokens, for which nothing is predicted.
        replacements: tokens to try in place of each token.
        n_examples: largest number of contexts that patterns come from.
        longest: largest number of tokens in a pattern.

    Returns:
        `latent`, `patterns` as texts, precision, recall and F1 for all tokens on which the latent fires (`firing ...`)
        and for those of at least half of its largest activation (`strong ...`), and the mean `length` of a pattern.
    """
    half = len(ids_CT) // 2
    last_activations = make_last_activations(sae, target, model, latent)
    patterns = find_patterns(ids_CT[:half], acts_CT[:half], last_activations, replacements, n_examples, longest)
    predicted_CT = match_trie(build_trie(patterns), ids_CT[half:]) & ~special_CT[half:]
    texts = [pattern_text(pattern, tokenizer_of(model)) for pattern in patterns]
    row: dict[str, Any] = {"latent": latent, "patterns": texts}
    strong = acts_CT.max() / 2
    for category, fires_CT in (("firing", acts_CT[half:] > 0), ("strong", acts_CT[half:] >= strong)):
        row |= {f"{category} {name}": value for name, value in precision_recall(predicted_CT, fires_CT).items()}
    return {**row, "length": sum(map(len, patterns)) / max(len(patterns), 1)}


def make_last_activations(sae: SAE[Any], target: Target, model: HookedTransformer, latent: int) -> LastActivations:
    """A function that gives a latent's activation on the last token of runs, each preceded by BOS only."""
    return last_activations_by(target, model, lambda x_ND: sae.encode(x_ND)[:, latent])


def last_activations_by(target: Target, model: HookedTransformer, read: Callable[[Tensor], Tensor]) -> LastActivations:
    """The same for a function from activations at the hook, [N, D], to those of a latent or a direction, [N]."""
    at_hook = hook_activations(model, target.hook_name)
    bos = bos_id(model)

    def last_activations(runs: list[list[int]]) -> list[float]:
        lengths = [len(run) for run in runs]
        ids = torch.full((len(runs), max(lengths) + 1), bos)
        for row, run in enumerate(runs):
            ids[row, 1 : len(run) + 1] = torch.tensor(run)  # what follows the last token cannot change it
        with torch.no_grad():
            x_ND = at_hook(ids)[torch.arange(len(runs)), torch.tensor(lengths)]
            return read(x_ND).tolist()

    return last_activations


def find_patterns(
    ids_CT: Tensor,
    acts_CT: Tensor,
    last_activations: LastActivations,
    replacements: Sequence[int],
    n_examples: int = EXAMPLES,
    longest: int = LONGEST,
) -> list[Pattern]:
    """Find the patterns of a latent, without repeats, in the contexts in which it fires most."""
    examples = find_examples(ids_CT, acts_CT, n_examples, longest)
    candidates = (find_pattern(run, activation, last_activations, replacements) for run, activation in examples)
    return list(dict.fromkeys(pattern for pattern in candidates if pattern is not None))


def find_examples(ids_CT: Tensor, acts_CT: Tensor, n_examples: int, longest: int) -> list[tuple[list[int], float]]:
    """Find the contexts in which a latent fires most.

    Args:
        ids_CT: tokens without BOS.
        acts_CT: activations of the latent.
        n_examples: largest number of contexts.
        longest: largest number of tokens in a run.

    Returns:
        For each context, the run of tokens that ends with the strongest token, and the activation there.
    """
    largest_C, at_C = acts_CT.max(1)
    order = largest_C.argsort(descending=True, stable=True)[:n_examples]
    return [
        (ids_CT[c, max(0, int(at_C[c]) + 1 - longest) : int(at_C[c]) + 1].tolist(), float(largest_C[c]))
        for c in order.tolist()
        if largest_C[c] > 0
    ]


def find_pattern(
    run: Sequence[int], activation: float, last_activations: LastActivations, replacements: Sequence[int]
) -> Pattern | None:
    """Find the shortest end of a run that keeps half of the activation, with wildcards where other tokens keep it too.

    Args:
        run: tokens that end with the one on which the latent fires.
        activation: activation on the last token of the run in the text.
        last_activations: gives the activation on the last token of runs.
        replacements: tokens to try in place of each token.

    Returns:
        The pattern, or None where tokens say nothing: no end of the run keeps half, because the latent depends on
        earlier tokens, or others can replace every one of them.
    """
    enough = activation / 2
    ends = [list(run[-length:]) for length in range(1, len(run) + 1)]
    values = zip(ends, last_activations(ends), strict=True)
    shortest = next((end for end, value in values if value >= enough), None)
    if shortest is None:
        return None
    pattern: list[int | None] = list(shortest)
    for at, token in enumerate(shortest):
        changed = [[*shortest[:at], other, *shortest[at + 1 :]] for other in replacements if other != token]
        acts = last_activations(changed) if changed else []
        if acts and sum(acts) / len(acts) >= enough:
            pattern[at] = WILDCARD
    while pattern and pattern[0] is WILDCARD:
        pattern.pop(0)
    return tuple(pattern) or None


def build_trie(patterns: Iterable[Pattern]) -> Trie:
    """Join patterns into a trie that is read from the last token backwards."""
    root: Trie = {}
    for pattern in patterns:
        node = root
        for token in reversed(pattern):
            node = node.setdefault(token, {})
        node[END] = True
    return root


def match_trie(root: Trie, ids_CT: Tensor) -> Tensor:
    """Mask [C, T] of the tokens on which a pattern ends."""
    matches_CT = torch.zeros(ids_CT.shape, dtype=torch.bool)
    for context, ids in enumerate(ids_CT.tolist()):
        for at in range(len(ids)):
            matches_CT[context, at] = _matches(root, ids, at)
    return matches_CT


def _matches(node: Trie, ids: list[int], at: int) -> bool:
    """Whether the rest of a pattern matches the tokens up to index `at`."""
    if END in node:
        return True
    if at < 0:
        return False
    return any(_matches(node[token], ids, at - 1) for token in (ids[at], WILDCARD) if token in node)


def precision_recall(predicted: Tensor, truth: Tensor) -> dict[str, float | None]:
    """Precision, recall and F1 of a mask.

    Returns:
        `precision` is None where nothing is predicted; `recall` and `f1` are None where nothing is true.
    """
    both = int((predicted & truth).sum())
    precision = both / int(predicted.sum()) if predicted.any() else None
    recall = both / int(truth.sum()) if truth.any() else None
    f1 = None if recall is None else 2 * both / (int(predicted.sum()) + int(truth.sum()))
    return {"precision": precision, "recall": recall, "f1": f1}


def pattern_text(pattern: Pattern, tokenizer: PreTrainedTokenizerBase) -> str:
    """A pattern as people read it: tokens in quotes, wildcards as stars."""
    return " ".join("*" if token is None else repr(tokenizer.decode([token])) for token in pattern)
