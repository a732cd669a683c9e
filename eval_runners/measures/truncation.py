"""Explained variance of reconstructions from the k' latents of each token that write most.

Source: Gao et al., arXiv 2406.04093, section 5.2.
Shapes: N tokens, D = d_in, S = d_sae.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from sae_variants.ops.explained_variance import ExplainedVariance

if TYPE_CHECKING:
    from sae_lens import SAE

TOKENS_PER_BATCH = 1024


def truncated_explained_variances(sae: SAE[Any], x_ND: Tensor, kept: Sequence[int]) -> dict[int, float]:
    """Explained variance when only the k' latents of each token that write most are kept, for each k'.

    A latent writes its activation times the norm of its decoder row.

    Returns:
        k' -> explained variance.
    """
    variances = {k: ExplainedVariance() for k in kept}
    norm_S = sae.W_dec.detach().norm(dim=1)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # then activations are norms already
        norm_S = torch.ones_like(norm_S)
    with torch.no_grad(), allow_latents(sae, max(kept)):
        for x in x_ND.split(TOKENS_PER_BATCH):
            acts_NS = sae.encode(x)
            order = (acts_NS * norm_S).topk(min(max(kept), acts_NS.shape[1]), dim=-1).indices
            for k, variance in variances.items():
                largest = order[:, :k]
                kept_NS = torch.zeros_like(acts_NS).scatter(-1, largest, acts_NS.gather(-1, largest))
                variance.add(x, sae.decode(kept_NS) - x)
    return {k: variance.value for k, variance in variances.items()}


@contextlib.contextmanager
def allow_latents(sae: SAE[Any], k: int) -> Iterator[None]:
    """Let a TopK SAE have k latents per token, or all of its latents where it has fewer. Others stay as they are."""
    from sae_lens.saes.topk_sae import TopK

    if type(sae.activation_fn) is not TopK:
        yield
        return
    with mock.patch.object(sae.activation_fn, "k", min(k, sae.cfg.d_sae)):
        yield
