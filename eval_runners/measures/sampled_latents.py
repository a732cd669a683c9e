"""Latents sampled at random from those that fire often enough, and their activations on held-out text.

Shapes: C contexts, T tokens of a context without BOS, D = d_in, S = d_sae, P sampled latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.data.heldout import activations_of, heldout_tokens
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class SampledLatents:
    """Sampled latents and the text that they are measured on."""

    ids_CT: Tensor
    """Token ids, without BOS."""
    latents: list[int]
    """Numbers of the latents, rising."""
    acts_CTP: Tensor
    """Activations of the latents; 0 on special tokens."""
    special_CT: Tensor
    """Mask of special tokens."""


def sample_latents(
    sae: SAE[Any],
    target: Target,
    model: HookedTransformer,
    n_contexts: int,
    context_size: int,
    n_latents: int,
    n_min: int,
    seed: int,
    option: str = "--n-min",
) -> SampledLatents:
    """Sample latents that fire in at least `n_min` contexts of each half of the held-out text.

    Args:
        sae: in inference form.
        target: the hook and the text.
        model: the target's language model.
        n_contexts: largest number of contexts.
        context_size: tokens in a context, BOS included.
        n_latents: largest number of latents.
        n_min: contexts of each half in which a latent must fire.
        seed: seed of the sample.
        option: the option that sets `n_min`, for the error.

    Returns:
        The latents; none where no latent fires often enough.

    Raises:
        UsageError: the text has fewer than 2 · n_min contexts.
    """
    ids_CT = heldout_tokens(target, model, n_contexts, context_size)
    if len(ids_CT) < 2 * n_min:
        raise UsageError(
            f"{len(ids_CT)} contexts of {context_size} tokens are fewer than the {2 * n_min} needed: raise "
            f"--n-contexts, or lower {option}, or --context-size where the text has no more"
        )
    batches = [(x.cpu(), special.cpu()) for x, special in activations_of(ids_CT, target, model)]
    counts_2S = torch.zeros(2, sae.cfg.d_sae, dtype=torch.long)
    context = 0
    for x_CTD, special_CT in batches:
        for fires_TS in _encode(sae, x_CTD, special_CT) > 0:
            counts_2S[int(context >= len(ids_CT) // 2)] += fires_TS.any(0)
            context += 1
    candidates = (counts_2S >= n_min).all(0).nonzero().squeeze(1)
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    latents_P = candidates[order[:n_latents]].sort().values
    acts = [_encode(sae, x_CTD, special_CT)[..., latents_P] for x_CTD, special_CT in batches]
    special_CT = torch.cat([special_CT for _, special_CT in batches])
    return SampledLatents(ids_CT[:, 1:], latents_P.tolist(), torch.cat(acts), special_CT)


@torch.no_grad()
def _encode(sae: SAE[Any], x_CTD: Tensor, special_CT: Tensor) -> Tensor:
    """Latents [C, T, S]; 0 on special tokens."""
    return sae.encode(x_CTD.to(sae.W_dec.device)).float().cpu() * ~special_CT[..., None]
