"""Where the latents of an SAE fire on held-out text, and excerpts of that text.

Shapes: C contexts, T tokens of a context without BOS, N = C T, D = d_in, S = d_sae, E firings (a latent on a token).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.data.heldout import activations_of, heldout_tokens
from sae_variants.language_model.target import Target
from sae_variants.ops.explained_variance import ExplainedVariance

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerBase

BEFORE, AFTER = 24, 8
"""Largest number of tokens of an excerpt before and after its main token, within the document."""


@dataclass(frozen=True)
class Excerpt:
    """Text around the token of a context on which a latent fires most."""

    ids: list[int]
    """Token ids."""
    acts: list[float]
    """Activation of the latent on each token."""
    at: int
    """Index, within the excerpt, of the token on which the latent fires most."""
    context: int
    """Index of the context."""
    first: int
    """Index, within the context, of the excerpt's first token."""
    is_cut_before: bool = False
    """Whether the document may go on before the excerpt."""
    is_cut_after: bool = False
    """Whether the document may go on after the excerpt."""


@dataclass(frozen=True)
class Firing:
    """All firings of an SAE's latents on some contexts."""

    ids_CT: Tensor
    """Token ids."""
    special_CT: Tensor
    """Mask of special tokens, on which no latent counts as firing."""
    tokens_E: Tensor
    """Token of each firing, as context · T + index in the context, ordered by latent."""
    acts_E: Tensor
    """Activation of each firing."""
    ends_S: Tensor
    """Where the firings of each latent end in `tokens_E`."""
    gain_S: Tensor
    """Increase of the squared error without each latent, relative to the squared distance from the mean."""

    def counts_S(self) -> Tensor:
        """Number of tokens on which each latent fires."""
        return self.ends_S.diff(prepend=self.ends_S.new_zeros(1))

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are not special."""
        return int((~self.special_CT).sum())

    def firings_of(self, latent: int) -> tuple[Tensor, Tensor]:
        """Tokens and activations of the firings of one latent, as in `tokens_E` and `acts_E`."""
        end = int(self.ends_S[latent])
        start = int(self.ends_S[latent - 1]) if latent else 0
        return self.tokens_E[start:end], self.acts_E[start:end]

    def acts_CT(self, latent: int) -> Tensor:
        """Activations [C, T] of one latent."""
        acts_N = torch.zeros(self.ids_CT.numel())
        tokens, acts = self.firings_of(latent)
        acts_N[tokens] = acts
        return acts_N.view_as(self.ids_CT)

    def excerpts(self, latent: int) -> Iterator[Excerpt]:
        """An excerpt from each context in which a latent fires, by falling activation; each text once."""
        acts_CT = self.acts_CT(latent)
        largest_C, at_C = acts_CT.max(1)
        seen = set()
        for context in largest_C.argsort(descending=True, stable=True).tolist():
            if largest_C[context] <= 0:
                return
            excerpt = self.excerpt(acts_CT, context, int(at_C[context]))
            if tuple(excerpt.ids) not in seen:
                seen.add(tuple(excerpt.ids))
                yield excerpt

    def excerpt(self, acts_CT: Tensor, context: int, at: int) -> Excerpt:
        """The text around a token, within its document.

        Args:
            acts_CT: activations of the latent.
            context: index of the context.
            at: index of the token in the context.
        """
        special_T, length = self.special_CT[context], self.ids_CT.shape[1]
        ends = special_T.nonzero().squeeze(1)
        first = max([at - BEFORE, 0, *(int(end) + 1 for end in ends[ends < at])])
        last = min([at + AFTER + 1, length, *(int(end) for end in ends[ends > at])])
        acts = acts_CT[context, first:last].tolist()
        return Excerpt(
            ids=self.ids_CT[context, first:last].tolist(),
            acts=acts,
            at=at - first,
            context=context,
            first=first,
            is_cut_before=first == 0 or not special_T[first - 1],
            is_cut_after=last == length or not special_T[last],
        )


@torch.no_grad()
def collect_firing(
    sae: SAE[Any], target: Target, model: HookedTransformer, n_contexts: int, context_size: int
) -> Firing:
    """Encode the first contexts of the held-out text, and keep all firings.

    Args:
        sae: in inference form.
        target: the hook and the text.
        model: the target's language model.
        n_contexts: largest number of contexts.
        context_size: tokens in a context, BOS included.
    """
    ids_CT = heldout_tokens(target, model, n_contexts, context_size)
    return gather_firing(sae, activations_of(ids_CT, target, model), ids_CT[:, 1:])


@torch.no_grad()
def gather_firing(sae: SAE[Any], batches: Iterable[tuple[Tensor, Tensor]], ids_CT: Tensor) -> Firing:
    """Encode activations, and keep all firings.

    Args:
        sae: in inference form.
        batches: activations [C, T, D] of some contexts, and the mask [C, T] of special tokens.
        ids_CT: token ids of all contexts.
    """
    latents, tokens, acts, specials = [], [], [], []
    gain_S = torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
    variance, offset = ExplainedVariance(), 0
    squared_norms_S = sae.W_dec.pow(2).sum(1)
    for x_CTD, special_CT in batches:
        x_ND, kept_N = x_CTD.flatten(0, 1), ~special_CT.flatten()
        acts_NS = sae.encode(x_ND) * kept_N[:, None]
        error_ND = (x_ND - sae.decode(acts_NS)) * kept_N[:, None]
        # |error + a d|² - |error|² of a latent with activation a and decoder row d
        gain_S += (acts_NS * (2 * error_ND @ sae.W_dec.T + acts_NS * squared_norms_S)).double().sum(0).cpu()
        variance.add(x_ND[kept_N], error_ND[kept_N])
        token_E, latent_E = acts_NS.nonzero(as_tuple=True)
        latents.append(latent_E.cpu())
        tokens.append((token_E + offset).cpu())
        acts.append(acts_NS[token_E, latent_E].float().cpu())
        specials.append(special_CT.cpu())
        offset += len(x_ND)
    latent_E = torch.cat(latents)
    order = latent_E.argsort(stable=True)
    return Firing(
        ids_CT=ids_CT,
        special_CT=torch.cat(specials),
        tokens_E=torch.cat(tokens)[order],
        acts_E=torch.cat(acts)[order],
        ends_S=torch.bincount(latent_E, minlength=sae.cfg.d_sae).cumsum(0),
        gain_S=gain_S / variance.total,
    )


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token."""
    return tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
