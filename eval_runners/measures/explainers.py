"""Judges of explanations: patterns of tokens, which need no network, and a language model behind an endpoint.

The pattern judge explains a latent by N2G's patterns of tokens, and finds an excerpt or a mark right where a pattern
ends. It is no language model: its scores say how far fixed patterns go.

Source: Foote et al., arXiv 2305.19911, for the patterns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from eval_runners.data.heldout import tokenizer_of
from eval_runners.data.judges import REFUSED, EndpointJudge
from eval_runners.measures.explanation_tests import Excerpt
from eval_runners.measures.token_patterns import (
    REPLACEMENTS,
    Pattern,
    Trie,
    build_trie,
    find_patterns,
    last_activations_by,
    match_trie,
    pattern_text,
    sample_replacements,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase

    from sae_variants.language_model.target import Target

PATTERNS = "patterns"
"""Name of the judge that needs no network."""
NOTHING = "no pattern"
SHOWN = 5
"""Excerpts in a question to a language model."""
MOST = 10
"""A language model's rating of what it is sure of."""
LENGTHS = {"explanation": 80, "rating": 40}
"""Tokens, at most, of a reply."""
_ROLE = "A latent of a sparse autoencoder of a language model fires on some tokens of a text."
_EXPLAIN = (
    "In the excerpts below, the tokens on which it fires stand between << and >>. Say in one sentence what these "
    "tokens have in common, as specifically as the excerpts allow, and nothing else."
)
_RATE = {
    "detection": "how sure you are that it fires on at least one token of the excerpt",
    "fuzzing": "how sure you are that the tokens between << and >> are those on which it fires",
}


def tokens_of_latent(excerpt_tokens: int, n_examples: int, n_tests: int, controls: Collection[str]) -> int:
    """Return how many tokens, about, the questions on a latent and on its controls take."""
    explaining = 100 + n_examples * excerpt_tokens + LENGTHS["explanation"]
    rating = 2 * ceil(2 * n_tests / SHOWN) * (250 + SHOWN * excerpt_tokens + LENGTHS["rating"])
    alone = 1 + ("random" in controls)
    return alone * explaining + (alone + ("shuffled" in controls)) * rating


class PatternJudge:
    """Patterns of tokens as explanations, and whether they match as ratings."""

    def __init__(self, patterns_of: Callable[[int], list[Pattern]], tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep what finds the patterns of a latent by its place."""
        self._patterns_of = patterns_of
        self._tokenizer = tokenizer
        self._tries: dict[str, Trie] = {}

    def explain(self, examples: Sequence[Excerpt], place: int) -> str:
        """Return the patterns of the latent as text."""
        patterns = self._patterns_of(place)
        text = " | ".join(pattern_text(pattern, self._tokenizer) for pattern in patterns) or NOTHING
        self._tries[text] = build_trie(patterns)
        return text

    def rate(self, explanation: str, excerpts: Sequence[Excerpt], measure: str) -> list[float | None]:
        """Return 1 where a pattern matches, and in fuzzing the share of the marked tokens on which one does."""
        trie = self._tries[explanation]
        matched_EL = match_trie(trie, torch.tensor([excerpt.ids for excerpt in excerpts]))
        if measure == "detection":
            return matched_EL.any(1).float().tolist()
        marked_EL = torch.tensor([excerpt.marked for excerpt in excerpts])
        return ((matched_EL & marked_EL).sum(1) / marked_EL.sum(1).clamp(min=1)).tolist()


class ModelJudge:
    """A language model behind an endpoint, which rates excerpts from 0 to 10."""

    def __init__(self, endpoint: EndpointJudge, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep the endpoint, and the tokenizer of the excerpts."""
        self.endpoint = endpoint
        self.unread = 0
        """Replies that hold no ratings."""
        self._tokenizer = tokenizer

    def explain(self, examples: Sequence[Excerpt], place: int) -> str:
        """Ask for an explanation."""
        return self._ask(f"{_EXPLAIN}\n\n{self._listed(examples, True)}", LENGTHS["explanation"]).strip()

    def rate(self, explanation: str, excerpts: Sequence[Excerpt], measure: str) -> list[float | None]:
        """Ask for ratings of a few excerpts at a time, in an order that mixes both answers."""
        order = torch.randperm(len(excerpts), generator=torch.Generator().manual_seed(0)).tolist()
        ratings: list[float | None] = [None] * len(excerpts)
        if explanation == REFUSED:
            return ratings
        for start in range(0, len(order), SHOWN):
            some = order[start : start + SHOWN]
            task = (
                f"It is said to fire on this: {explanation}\n\nFor each of the {len(some)} excerpts below, say "
                f"{_RATE[measure]}: a whole number from 0 (certainly not) to {MOST} (certainly). Reply with a JSON "
                f"list of {len(some)} numbers, in the order of the excerpts, and nothing else."
            )
            listed = self._listed([excerpts[e] for e in some], measure == "fuzzing")
            reply = self._ask(f"{task}\n\n{listed}", LENGTHS["rating"])
            for e, rating in zip(some, self._read(reply, len(some)), strict=True):
                ratings[e] = rating
        return ratings

    def _ask(self, task: str, length: int) -> str:
        messages = [{"role": "system", "content": _ROLE}, {"role": "user", "content": task}]
        return self.endpoint.answer(messages, length)

    def _listed(self, excerpts: Sequence[Excerpt], with_marks: bool) -> str:
        return "\n".join(f"{i}. {self._text(excerpt, with_marks)}" for i, excerpt in enumerate(excerpts, start=1))

    def _text(self, excerpt: Excerpt, with_marks: bool) -> str:
        """The excerpt on one line, each run of marked tokens between << and >>."""
        parts: list[str] = []
        runs: list[tuple[bool, list[int]]] = []
        for token, is_marked in zip(excerpt.ids, excerpt.marked, strict=True):
            if runs and runs[-1][0] == (is_marked and with_marks):
                runs[-1][1].append(token)
            else:
                runs.append((is_marked and with_marks, [token]))
        for is_marked, ids in runs:
            text = str(self._tokenizer.decode(ids)).replace("\n", "⏎")
            parts.append(f"<<{text}>>" if is_marked else text)
        return "".join(parts)

    def _read(self, reply: str, count: int) -> list[float | None]:
        """Read ratings from a reply; none if it does not hold one for each excerpt."""
        found: Any = None
        if match := re.search(r"\[[^\[\]]*\]", reply):
            try:
                found = json.loads(match.group())
            except ValueError:
                found = None
        if (
            not isinstance(found, list)
            or len(found) != count
            or not all(type(value) in (int, float) and 0 <= value <= MOST for value in found)
        ):
            self.unread += 1
            return [None] * count
        return [value / MOST for value in found]


def pattern_judge(
    target: Target,
    model: HookedTransformer,
    ids_CT: Tensor,
    acts_CTP: Tensor,
    read: Callable[[Tensor, int], Tensor],
    seed: int,
) -> PatternJudge:
    """Return the judge that takes patterns of latents from the first half of the contexts.

    Args:
        target: the hook.
        model: the target's language model.
        ids_CT: tokens without BOS.
        acts_CTP: activations of the latents.
        read: from activations at the hook, [N, D], and the place of a latent to its activations, [N].
        seed: seed of the tokens that are tried in place of others.
    """
    half = len(ids_CT) // 2
    replacements = sample_replacements(ids_CT, model, REPLACEMENTS, seed)

    def patterns_of(place: int) -> list[Pattern]:
        last_activations = last_activations_by(target, model, lambda x_ND: read(x_ND, place))
        return find_patterns(ids_CT[:half], acts_CTP[:half, :, place], last_activations, replacements)

    return PatternJudge(patterns_of, tokenizer_of(model))
