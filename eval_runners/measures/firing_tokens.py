"""Tokens on which a latent fires, and tokens before and after them.

Shapes: C contexts, T tokens of a context without BOS, E firings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval_runners.measures.firing import Firing, token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 5
"""Tokens that are listed."""
LABEL_TOKENS, LABEL_SHARE = 3, 0.05
"""Tokens of a label at most, and the share of the activation that each but the first must have."""

TokenShares = list[tuple[str | None, float]]
"""Text of each token and its share of the activation, largest first. None is the end of a document or context."""


def describe_firing_tokens(
    firing: Firing, latent: int, tokenizer: PreTrainedTokenizerBase, shown: int = SHOWN_TOKENS
) -> dict[str, TokenShares]:
    """List the tokens on which a latent fires, and those before and after them.

    Args:
        firing: firings of the SAE.
        latent: number of a latent.
        tokenizer: gives the text of tokens.
        shown: tokens of each list.

    Returns:
        `on`, `before` and `after`: each token's share of the summed activation.
    """
    tokens_E, acts_E = firing.firings_of(latent)
    length, ids_N = firing.ids_CT.shape[1], firing.ids_CT.flatten()
    special_N = firing.special_CT.flatten()
    lists = {}
    for name, step in (("before", -1), ("on", 0), ("after", 1)):
        position_E = tokens_E % length + step
        exists_E = (position_E >= 0) & (position_E < length)
        other_E = (tokens_E + step) * exists_E
        is_text_E = exists_E & ~special_N[other_E]
        lists[name] = _largest_shares(torch.where(is_text_E, ids_N[other_E], -1), acts_E, tokenizer, shown)
    return lists


def label_by_tokens(firing: Firing, latent: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A short label: the tokens, in quotes, that have the largest shares of a latent's activation.

    Returns:
        Empty for a latent that does not fire.
    """
    tokens_E, acts_E = firing.firings_of(latent)
    if not len(tokens_E):
        return ""
    shares = _largest_shares(firing.ids_CT.flatten()[tokens_E], acts_E, tokenizer, LABEL_TOKENS)
    return ", ".join(repr(text) for number, (text, share) in enumerate(shares) if not number or share >= LABEL_SHARE)


def _largest_shares(ids_E: Tensor, acts_E: Tensor, tokenizer: PreTrainedTokenizerBase, shown: int) -> TokenShares:
    """Sum activations by token id, -1 for no token, and list the largest sums relative to all of them."""
    ids, number_E = ids_E.unique(return_inverse=True)
    sums = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, number_E, acts_E.double())
    largest = sums.topk(min(shown, len(ids)))
    found = ids[largest.indices].tolist()
    texts = token_texts([max(token, 0) for token in found], tokenizer)
    total = float(sums.sum())
    return [
        (None if token < 0 else text, float(f"{value / total:.3g}"))
        for token, text, value in zip(found, texts, largest.values.tolist(), strict=True)
    ]
