"""Consistency of latents over the tokens of a window, in three forms.

Shapes: n windows, m of them in this process, W tokens in a window, L latents, P pairs of tokens of a window.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_variants.ops.shards import HERE, Shards

EPSILON = 1e-6


def pairs_of(codes_nWL: Tensor, pairs: str) -> tuple[Any, Any]:
    """Return the places in a window of the later and of the earlier tokens of P pairs of its tokens."""
    if pairs == "adjacent":
        return slice(1, None), slice(None, -1)
    later_P, earlier_P = torch.tril_indices(codes_nWL.shape[1], codes_nWL.shape[1], offset=-1)
    return later_P, earlier_P


def contrastive_loss(
    slow_mWL: Tensor,
    contrast: str = "cosine",
    temperature: float = 0.1,
    pairs: str = "adjacent",
    context_n: Tensor | None = None,
    shards: Shards = HERE,
) -> Tensor:
    """Return the symmetric InfoNCE loss over pairs of tokens.

    The negatives of a window are the windows of other contexts, at the same two positions: what lasts through a context
    would be punished if its windows were told apart. Where the windows lie in several groups of processes, a process
    compares the later tokens of its own ones with the earlier tokens of all, and the mean of the groups is the loss.

    Args:
        slow_mWL: Slow latents [m, W, L] of the windows of this process, m of n.
        contrast: `cosine` or `dot`.
        temperature: Divisor of the cosine.
        pairs: `adjacent` or `earlier`.
        context_n: Number [n] of the context of each window of all groups; None if no two windows have the same.
        shards: Where other windows, and other slow latents of the same windows, lie.
    """
    codes_mWL = shards.normalized(slow_mWL, EPSILON) if contrast == "cosine" else slow_mWL
    scale = 1 / temperature if contrast == "cosine" else 1.0
    codes_nWL, first = shards.of_all_groups(codes_mWL)
    m, n = len(codes_mWL), len(codes_nWL)
    own = slice(first, first + m)
    later, earlier = pairs_of(codes_mWL, pairs)
    later_PmL, earlier_PLn = codes_mWL[:, later].transpose(0, 1), codes_nWL[:, earlier].permute(1, 2, 0)
    logits_Pmn = shards.join(scale * later_PmL @ earlier_PLn, "contrasts")
    if context_n is not None:
        same_mn = context_n[own, None] == context_n
        same_mn[:, own].fill_diagonal_(False)
        logits_Pmn = logits_Pmn.masked_fill(same_mn, -torch.inf)
    earlier_Pmm = [logits_Pmn[:, :, own].transpose(1, 2)]  # tokens of own windows, against the later ones of all
    if shards.groups > 1:  # those of another group count as one, with the logarithm of the sum of their exponentials
        others_gPn = shards.of_other_groups(logits_Pmn.logsumexp(1), "contrasts")
        earlier_Pmm.append(others_gPn[:, :, own].permute(1, 2, 0))
    target_m = torch.arange(m, device=codes_mWL.device)
    pairs_of_mean = len(logits_Pmn) * n / shards.groups
    forward = _cross_entropy(logits_Pmn, first + target_m) / pairs_of_mean
    backward = _cross_entropy(torch.cat(earlier_Pmm, -1), target_m) / pairs_of_mean
    return (forward + backward) / 2


def _cross_entropy(logits_PmC: Tensor, target_m: Tensor) -> Tensor:
    """Return the sum of the cross entropies of logits [P, m, C], of which one [m] is the right one."""
    return F.cross_entropy(logits_PmC.flatten(0, 1), target_m.repeat(len(logits_PmC)), reduction="sum")


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
    later, earlier = pairs_of(slow_nWL, pairs)
    return (1 - F.cosine_similarity(slow_nWL[:, later], slow_nWL[:, earlier], dim=-1, eps=EPSILON)).mean()
