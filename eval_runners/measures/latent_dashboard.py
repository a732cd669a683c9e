"""What a dashboard of a latent shows: its logits, histograms, the channels it writes to, and examples by activation.

The quantities are those of SAEDashboard, so that latents of different SAEs can be compared on Neuronpedia: logits are
decoder row times unembedding, and examples are the strongest contexts, then some of each of five equal intervals of
the activation.

Shapes: C contexts, T tokens of a context without BOS, D = d_in, S = d_sae, V = vocabulary, E firings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.data.heldout import tokenizer_of
from eval_runners.measures.firing import Firing, token_texts
from eval_runners.measures.logit_effects import extreme_tokens, plain_logits
from sae_variants.common.hashing import hash_seed

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

SHOWN_LOGITS, BINS, CHANNELS = 10, 50, 3
"""Tokens listed in each direction, bars of a histogram, and channels listed: SAEDashboard's defaults."""
STRONGEST, INTERVALS, PER_INTERVAL = 20, 5, 5
"""Examples of the largest activations, intervals of the activation, and examples of each: SAEDashboard's defaults."""


@dataclass(frozen=True)
class Example:
    """A context and the activations of a latent on it."""

    ids: list[int]
    """Token ids of the whole context."""
    acts: list[float]
    """Activation on each token."""
    at: int
    """Index of the token for which the context was chosen."""
    low: float
    """Lower bound of the interval of the activation; -1 for an example of the largest activations."""
    high: float
    """Upper bound of the interval; the latent's largest activation for an example of the largest activations."""
    share: float
    """Share of all tokens whose activation is within the bounds; -1 for an example of the largest activations."""


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width from the smallest to the largest value; none without values."""

    centres: list[float] = field(default_factory=list)
    """Centre of each bar."""
    counts: list[int] = field(default_factory=list)
    """Values in each bar."""

    @classmethod
    def of(cls, values: Tensor) -> Histogram:
        """Count values [N] in `BINS` bars. Values that are all equal are in the middle bar of a range of 1."""
        if not len(values):
            return cls()
        values = values.float().cpu()
        low, high = float(values.min()), float(values.max())
        low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
        edges = torch.linspace(low, high, BINS + 1)
        counts = torch.histc(values, BINS, low, high)
        return cls(((edges[:-1] + edges[1:]) / 2).tolist(), [int(count) for count in counts])


@dataclass(frozen=True)
class LatentDashboard:
    """All that a dashboard shows of a latent."""

    latent: int
    """Its number."""
    density: float
    """Share of tokens on which it fires."""
    max: float
    """Largest activation; 0 if it never fires."""
    raised: list[list[Any]]
    """[text, logit] of the tokens with the largest logits; empty if the decoder is not in the residual stream."""
    lowered: list[list[Any]]
    """[text, logit] of the tokens with the smallest logits, smallest first."""
    logits: Histogram
    """Of its logits over the vocabulary."""
    acts: Histogram
    """Of its activations on tokens on which it fires."""
    channels: list[tuple[int, float, float]]
    """Channels of the hook with the largest decoder weights: index, weight, share of the row's L1 norm."""
    examples: list[Example]
    """The largest activations, then intervals by falling activation."""


@dataclass
class DashboardMaker:
    """An SAE on its text, ready to describe latents."""

    sae: SAE[Any]
    model: HookedTransformer
    firing: Firing
    seed: int

    @cached_property
    def kept_N(self) -> Tensor:
        """Mask of tokens that are not special."""
        return ~self.firing.special_CT.flatten()

    @cached_property
    def n_tokens(self) -> int:
        """Number of tokens that are not special."""
        return self.firing.n_tokens

    @cached_property
    def texts(self) -> list[str]:
        """Text of each token of the vocabulary."""
        return token_texts(range(self.model.cfg.d_vocab), tokenizer_of(self.model))

    @torch.no_grad()
    def describe(self, latents: range) -> list[LatentDashboard]:
        """Describe some latents; the result for a latent does not depend on the others."""
        rows_LD = self.sae.W_dec.detach()[latents.start : latents.stop].float()
        logits_LV = plain_logits(self.model, rows_LD)
        return [
            self._describe(latent, row_D, None if logits_LV is None else logits_LV[number])
            for number, (latent, row_D) in enumerate(zip(latents, rows_LD, strict=True))
        ]

    def _describe(self, latent: int, row_D: Tensor, logits_V: Tensor | None) -> LatentDashboard:
        acts_E, effects = self.firing.firings_of(latent)[1], {"raised": [], "lowered": []}
        if logits_V is not None:
            effects = extreme_tokens(logits_V, tokenizer_of(self.model), SHOWN_LOGITS)
        largest = row_D.topk(min(CHANNELS, len(row_D)))
        norm = float(row_D.abs().sum()) or 1.0
        channels = [
            (index, weight, abs(weight) / norm)
            for weight, index in zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
        ]
        return LatentDashboard(
            latent=latent,
            density=len(acts_E) / self.n_tokens,
            max=float(acts_E.max()) if len(acts_E) else 0.0,
            **effects,
            logits=Histogram() if logits_V is None else Histogram.of(logits_V),
            acts=Histogram.of(acts_E),
            channels=channels,
            examples=list(self._examples(latent)) if len(acts_E) else [],
        )

    def _examples(self, latent: int) -> Iterator[Example]:
        """The contexts with the largest activations, then contexts of tokens sampled from each interval."""
        acts_CT = self.firing.acts_CT(latent)
        largest_C, at_C = acts_CT.max(1)
        highest = float(largest_C.max())
        for context in largest_C.argsort(descending=True, stable=True)[:STRONGEST].tolist():
            if largest_C[context] > 0:
                yield self._example(acts_CT, context, int(at_C[context]), (-1.0, highest, -1.0))
        acts_N, length = acts_CT.flatten(), acts_CT.shape[1]
        generator = torch.Generator().manual_seed(hash_seed([self.seed, latent]) % 2**63)
        bounds = [highest * step / INTERVALS for step in range(INTERVALS)] + [highest]
        for low, high in reversed(list(pairwise(bounds))):
            inside = ((acts_N >= low) & (acts_N <= high) & self.kept_N).nonzero().squeeze(1)
            share = len(inside) / self.n_tokens
            for token in inside[torch.randperm(len(inside), generator=generator)[:PER_INTERVAL]].tolist():
                yield self._example(acts_CT, token // length, token % length, (low, high, share))

    def _example(self, acts_CT: Tensor, context: int, at: int, bounds: tuple[float, float, float]) -> Example:
        return Example(self.firing.ids_CT[context].tolist(), acts_CT[context].tolist(), at, *bounds)
