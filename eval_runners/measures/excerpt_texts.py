"""Excerpts as pages show them: token texts with activations, from the strongest contexts and from weaker ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
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
    """Make an excerpt of whole words.

    Returns:
        `tokens` (texts), `acts` (with three digits), `at` (index of the strongest token), and `cut`: whether text of
        the document was left out before and after.
    """
    texts = token_texts(excerpt.ids, tokenizer)
    first, last = whole_words(texts, excerpt.at, excerpt.is_cut_before, excerpt.is_cut_after)
    acts = [float(f"{act:.3g}") if act else 0 for act in excerpt.acts[first:last]]
    cut = [excerpt.is_cut_before, excerpt.is_cut_after]
    return {"tokens": texts[first:last], "acts": acts, "at": excerpt.at - first, "cut": cut}


def whole_words(texts: Sequence[str], at: int, is_cut_before: bool, is_cut_after: bool) -> tuple[int, int]:
    """Find the stretch of an excerpt that neither begins nor ends within a word.

    Args:
        texts: texts of the excerpt's tokens.
        at: index of the main token, which is never left out.
        is_cut_before: whether the first token may continue a word.
        is_cut_after: whether a word may go on after the last token.

    Returns:
        Start and end of the tokens to keep. A side without any end of a word is kept whole.
    """
    sides = ["", *texts, ""]
    between = [
        not (_is_of_word(left[-1:]) and _is_of_word(right[:1])) for left, right in pairwise(sides)
    ]  # between[i]: whether a word may begin at token i
    between[0], between[-1] = not _is_of_word(texts[0][:1]), not _is_of_word(texts[-1][-1:])
    first = next((i for i in range(at + 1) if between[i]), 0) if is_cut_before else 0
    last = next((i for i in range(len(texts), at, -1) if between[i]), len(texts)) if is_cut_after else len(texts)
    return first, last


def _is_of_word(character: str) -> bool:
    return character.isalnum() or (character != "" and character in "'’_-")
