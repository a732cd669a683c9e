"""Where the latents of an SAE fire on held-out text, and excerpts of that text.

Shapes: C contexts, T tokens of a context without BOS, D = d_in, S = d_sae, E places where a latent fires.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval_runners.data.heldout import activations_of, heldout_tokens
from sae_variants.language_model.target import Target

BEFORE, AFTER = 24, 8
"""Tokens of an excerpt before and after the one it is about, within the document."""


@dataclass(frozen=True)
class Excerpt:
    ids: list[int]
    acts: list[float]
    """Of the latent it is about, on each token."""
    at: int
    """Which token it is about: where the latent fires most in the context."""
    context: int
    first: int
    """Its first token's place in the context."""


@dataclass(frozen=True)
class Firing:
    ids_CT: Tensor
    special_CT: Tensor
    places_E: Tensor
    """context · T + token of all places where latents fire, latent by latent."""
    acts_E: Tensor
    ends_S: Tensor
    """Where the places of each latent end."""
    gain_S: Tensor
    """By how much the squared error would rise without each latent, over the squared distance from the mean."""

    def counts_S(self) -> Tensor:
        """Tokens on which each latent fires."""
        return self.ends_S.diff(prepend=self.ends_S.new_zeros(1))

    @property
    def tokens(self) -> int:
        """Tokens that are not special."""
        return int((~self.special_CT).sum())

    def of(self, latent: int) -> tuple[Tensor, Tensor]:
        """Its places and activations there."""
        end = int(self.ends_S[latent])
        start = int(self.ends_S[latent - 1]) if latent else 0
        return self.places_E[start:end], self.acts_E[start:end]

    def acts_CT(self, latent: int) -> Tensor:
        found = torch.zeros(self.ids_CT.numel())
        places, acts = self.of(latent)
        found[places] = acts
        return found.view_as(self.ids_CT)

    def excerpts(self, latent: int) -> Iterator[Excerpt]:
        """One of each context in which it fires, by falling activation; none twice of the same text."""
        acts_CT = self.acts_CT(latent)
        largest_C, at_C = acts_CT.max(1)
        seen = set()
        for context in largest_C.argsort(descending=True, stable=True).tolist():
            if largest_C[context] <= 0:
                return
            found = self.excerpt(acts_CT, context, int(at_C[context]))
            if tuple(found.ids) not in seen:
                seen.add(tuple(found.ids))
                yield found

    def excerpt(self, acts_CT: Tensor, context: int, at: int) -> Excerpt:
        """The text around a token, as far as its document goes."""
        ends = self.special_CT[context].nonzero().squeeze(1)
        first = max([at - BEFORE, 0, *(int(e) + 1 for e in ends[ends < at])])
        last = min([at + AFTER + 1, self.ids_CT.shape[1], *(int(e) for e in ends[ends > at])])
        acts = acts_CT[context, first:last].tolist()
        return Excerpt(self.ids_CT[context, first:last].tolist(), acts, at - first, context, first)


@torch.no_grad()
def collect_firing(sae: Any, target: Target, model: Any, n_contexts: int, context_size: int) -> Firing:
    """What fires where on the first contexts of the held-out text."""
    ids_CT = heldout_tokens(target, model, n_contexts, context_size)
    latents, places, acts, specials = [], [], [], []
    gain_S = torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
    total_D, squares, offset = torch.zeros(sae.cfg.d_in, dtype=torch.float64), 0.0, 0
    norms_S = sae.W_dec.pow(2).sum(1)
    for x_CTD, special_CT in activations_of(ids_CT, target, model):
        x_ND, own_N = x_CTD.flatten(0, 1), ~special_CT.flatten()
        acts_NS = sae.encode(x_ND) * own_N[:, None]
        error_ND = (x_ND - sae.decode(acts_NS)) * own_N[:, None]
        gain_S += (acts_NS * (2 * error_ND @ sae.W_dec.T + acts_NS * norms_S)).double().sum(0).cpu()
        total_D += x_ND[own_N].double().sum(0).cpu()
        squares += x_ND[own_N].double().pow(2).sum().item()
        token_E, latent_E = acts_NS.nonzero(as_tuple=True)
        latents.append(latent_E.cpu())
        places.append((token_E + offset).cpu())
        acts.append(acts_NS[token_E, latent_E].float().cpu())
        specials.append(special_CT.cpu())
        offset += len(x_ND)
    special_CT = torch.cat(specials)
    around_mean = squares - total_D.pow(2).sum().item() / max(int((~special_CT).sum()), 1)
    latent_E = torch.cat(latents)
    order = latent_E.argsort(stable=True)
    ends_S = torch.bincount(latent_E, minlength=sae.cfg.d_sae).cumsum(0)
    return Firing(
        ids_CT[:, 1:], special_CT, torch.cat(places)[order], torch.cat(acts)[order], ends_S, gain_S / around_mean
    )


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Each token as text."""
    return tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
