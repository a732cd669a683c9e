"""Consistency of latents over the tokens of a window, in three forms.

Shapes: n windows, W tokens in a window, L latents, P pairs of tokens of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_variants.ops.shards import HERE, Shards

EPSILON = 1e-6


def split_pairs(codes_nWL: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
    """Return the codes [n, P, L] of the later and of the earlier token of P pairs of tokens of every window."""
    if pairs == "adjacent":
        return codes_nWL[:, 1:], codes_nWL[:, :-1]
    later, earlier = torch.tril_indices(codes_nWL.shape[1], codes_nWL.shape[1], offset=-1)
    return codes_nWL[:, later], codes_nWL[:, earlier]


def contrastive_loss(
    slow_nWL: Tensor,
    contrast: str = "cosine",
    temperature: float = 0.1,
    pairs: str = "adjacent",
    context_n: Tensor | None = None,
    shards: Shards = HERE,
) -> Tensor:
    """Return the symmetric InfoNCE loss over pairs of tokens.

    The negatives of a window are the windows of other contexts, at the same two positions: what lasts through a context
    would be punished if its windows were told apart.

    Args:
        slow_nWL: Slow latents [n, W, L].
        contrast: `cosine` or `dot`.
        temperature: Divisor of the cosine.
        pairs: `adjacent` or `earlier`.
        context_n: Number [n] of the context of each window; None if no two windows have the same.
        shards: Where other slow latents of the same windows lie.
    """
    windows = len(slow_nWL)
    codes = shards.normalized(slow_nWL, EPSILON) if contrast == "cosine" else slow_nWL
    scale = 1 / temperature if contrast == "cosine" else 1.0
    later_nPL, earlier_nPL = split_pairs(codes, pairs)
    logits_Pnn = shards.join(scale * later_nPL.transpose(0, 1) @ earlier_nPL.permute(1, 2, 0), "contrasts")
    if context_n is not None:
        same_nn = context_n[:, None] == context_n
        logits_Pnn = logits_Pnn.masked_fill(same_nn.fill_diagonal_(False), -torch.inf)
    target = torch.arange(windows, device=codes.device).expand(len(logits_Pnn), windows)
    forward = F.cross_entropy(logits_Pnn.flatten(0, 1), target.flatten())
    backward = F.cross_entropy(logits_Pnn.transpose(1, 2).flatten(0, 1), target.flatten())
    return (forward + backward) / 2


def variance_loss(slow_nWL: Tensor) -> Tensor:
    """Return the variance over the mean square within a window, averaged over windows and latents that fire in them.

    The result is between 0 and 1, and does not depend on the scale of the latents.
    """
    largest_n1L = slow_nWL.detach().amax(1, keepdim=True)
    active_nL = largest_n1L.squeeze(1) > 0
    scaled_nWL = slow_nWL / torch.where(largest_n1L > 0, largest_n1L, 1.0)
    square_nL = torch.where(active_nL, scaled_nWL.pow(2).mean(1), 1.0)
    return (scaled_nWL.var(1, unbiased=False) / square_nL).sum() / active_nL.sum().clamp(min=1)


def similarity_loss(slow_nWL: Tensor, pairs: str = "adjacent") -> Tensor:
    """Return the mean of 1 - cos between the codes of pairs of tokens; between 0 and 1 for non-negative codes."""
    later_nPL, earlier_nPL = split_pairs(slow_nWL, pairs)
    return (1 - F.cosine_similarity(later_nPL, earlier_nPL, dim=-1, eps=EPSILON)).mean()
