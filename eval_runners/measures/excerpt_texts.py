"""Excerpts as pages show them: token texts with activations, from the strongest contexts and from weaker ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eval_runners.measures.firing import Excerpt, token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP = 8
"""Excerpts with the largest activations."""
QUANTILES, PER_QUANTILE = (0.75, 0.5, 0.25), 2
"""Quantiles of the other excerpts' activations, and excerpts near each."""


def excerpt_groups(
    excerpts: Iterable[Excerpt], tokenizer: PreTrainedTokenizerBase, top: int = TOP
) -> dict[str, list[Any]]:
    """Select the excerpts of the largest activations, and some near quantiles of all others.

    Args:
        excerpts: by falling activation.
        tokenizer: gives the text of each token.
        top: excerpts of the largest activations.

    Returns:
        `top`: excerpts; `lower`: a `quantile` with its `excerpts` for each quantile, none for too few excerpts.
    """
    every = list(excerpts)
    rest = every[top:]
    lower = []
    for quantile in QUANTILES if len(rest) >= len(QUANTILES) * PER_QUANTILE else ():
        start = min(max(round((1 - quantile) * len(rest)) - PER_QUANTILE // 2, 0), len(rest) - PER_QUANTILE)
        texts = [excerpt_text(excerpt, tokenizer) for excerpt in rest[start : start + PER_QUANTILE]]
        lower.append({"quantile": quantile, "excerpts": texts})
    return {"top": [excerpt_text(excerpt, tokenizer) for excerpt in every[:top]], "lower": lower}


def excerpt_text(excerpt: Excerpt, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Token texts, activations with three digits, and the index of the strongest token."""
    acts = [float(f"{act:.3g}") for act in excerpt.acts]
    return {"tokens": token_texts(excerpt.ids, tokenizer), "acts": acts, "at": excerpt.at}
