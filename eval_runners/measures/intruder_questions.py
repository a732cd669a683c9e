"""Questions of the intruder task: four excerpts of one latent and an intruder, or a control of five latents.

Shapes: C contexts, T tokens of a context without BOS.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from eval_runners.measures.excerpt_texts import whole_words
from eval_runners.measures.firing import Excerpt, Firing, token_texts
from eval_runners.measures.intrusion import CHOICES, Item
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

STRANGERS = 20
"""Latents whose excerpts are candidates for an intruder."""
MIN_TOKENS = 10
"""Smallest number of tokens on which a latent of a question fires."""
MAX_DENSITY = 0.2
"""Largest share of tokens on which a latent of a question fires: few excerpts lack a denser latent."""


@dataclass(frozen=True)
class Question:
    """Excerpts in the order in which they are shown, with the solution."""

    item: Item
    """The solution."""
    excerpts: list[Excerpt]
    """The excerpts [CHOICES]."""
    latents: list[int]
    """Latent of each excerpt."""


def sample_questions(
    firing: Firing, sae: int, label: str, items: int, controls: int, strongest: int, seed: int
) -> list[Question]:
    """Sample the questions of one SAE.

    Args:
        firing: firings of the SAE.
        sae: number of the SAE in the study.
        label: name of the SAE, for the error.
        items: questions with excerpts of one latent and an intruder, in which that latent does not fire.
        controls: questions with excerpts of five latents, one of them the intruder by chance.
        strongest: excerpts come from this many contexts, those in which a latent fires most.
        seed: equal seeds, numbers of the SAE and firings give equal questions.

    Raises:
        UsageError: too few latents fire often enough.
    """
    return _Sampler(firing, sae, strongest, random.Random(f"{seed} {sae}")).sample(label, items, controls)


class _Sampler:
    """Draws the questions of one SAE, in one stream of random numbers."""

    def __init__(self, firing: Firing, sae: int, strongest: int, generator: random.Random) -> None:
        self.firing, self.sae, self.strongest, self.generator = firing, sae, strongest, generator
        counts = firing.counts_S().tolist()
        most = MAX_DENSITY * firing.n_tokens
        self.latents = [latent for latent, count in enumerate(counts) if MIN_TOKENS <= count <= most]
        generator.shuffle(self.latents)
        self.pools: dict[int, list[Excerpt]] = {}

    def sample(self, label: str, items: int, controls: int) -> list[Question]:
        questions: list[Question] = []
        for latent in self.latents:
            if len(questions) == items:
                break
            if len(self.pool(latent)) >= CHOICES and (question := self.item(latent)):
                questions.append(question)
        if len(questions) < items:
            raise UsageError(
                f"{label}: only {len(questions)} latents are fit for questions; these fire on at least {MIN_TOKENS} "
                f"tokens and on at most {MAX_DENSITY:.0%} of {self.firing.n_tokens}: lower --items, raise "
                "--n-contexts, or leave this SAE out"
            )
        return questions + [control for _ in range(controls) if (control := self.control())]

    def pool(self, latent: int) -> list[Excerpt]:
        """The excerpts of a latent that questions may show."""
        if latent not in self.pools:
            self.pools[latent] = list(islice(self.firing.excerpts(latent), self.strongest))
        return self.pools[latent]

    def item(self, latent: int) -> Question | None:
        """A question about a latent, or None where it fires in every candidate for an intruder."""
        acts_CT = self.firing.acts_CT(latent)
        excerpts = self.generator.sample(self.pool(latent), CHOICES - 1)
        strangers = [
            (other, excerpt)
            for other in self.generator.sample(self.latents, min(len(self.latents), STRANGERS))
            if other != latent
            for excerpt in self.generator.sample(self.pool(other), len(self.pool(other)))
            if not _fires_in(acts_CT, excerpt)
        ]
        lengths = [len(excerpt.ids) for excerpt in excerpts]
        alike = [stranger for stranger in strangers if min(lengths) <= len(stranger[1].ids) <= max(lengths)]
        if not strangers:
            return None
        intruder = [*alike, *strangers][0]  # of similar length where there is one, so that length is no hint
        return self.shuffled([*((latent, excerpt) for excerpt in excerpts), intruder], CHOICES - 1, has_latent=True)

    def control(self) -> Question | None:
        """A question without a common latent, or None where there are too few latents."""
        latents = self.generator.sample(self.latents, min(CHOICES, len(self.latents)))
        if len(latents) < CHOICES:
            return None
        excerpts: list[tuple[int, Excerpt]] = []
        for latent in latents:
            shown = {(excerpt.context, excerpt.first) for _, excerpt in excerpts}
            fresh = [excerpt for excerpt in self.pool(latent) if (excerpt.context, excerpt.first) not in shown]
            if not fresh:
                return None
            excerpts.append((latent, self.generator.choice(fresh)))
        return self.shuffled(excerpts, self.generator.randrange(CHOICES), has_latent=False)

    def shuffled(self, excerpts: Sequence[tuple[int, Excerpt]], intruder: int, has_latent: bool) -> Question:
        order = self.generator.sample(range(CHOICES), CHOICES)
        return Question(
            item=Item(self.sae, has_latent, order.index(intruder)),
            excerpts=[excerpts[number][1] for number in order],
            latents=[excerpts[number][0] for number in order],
        )


def _fires_in(acts_CT: Tensor, excerpt: Excerpt) -> bool:
    """Whether a latent fires anywhere in an excerpt."""
    return bool(acts_CT[excerpt.context, excerpt.first : excerpt.first + len(excerpt.ids)].any())


def question_texts(question: Question, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The excerpts as the page shows them, of whole words.

    Activations are relative to the excerpt's largest, which is no hint then.
    """
    shown = []
    for excerpt in question.excerpts:
        texts = token_texts(excerpt.ids, tokenizer)
        first, last = whole_words(texts, excerpt.at, excerpt.is_cut_before, excerpt.is_cut_after)
        acts = [round(act / max(excerpt.acts), 2) for act in excerpt.acts[first:last]]
        shown.append({"tokens": texts[first:last], "at": excerpt.at - first, "acts": acts})
    return shown
