"""Squared errors of a reconstruction.

Shapes: N tokens, D = d_in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_variants.ops.shards import HERE, Shards


def squared_error(target_ND: Tensor, output_ND: Tensor) -> Tensor:
    """Return the sum over the last dimension, averaged over tokens."""
    return (output_ND - target_ND).pow(2).sum(-1).mean()


def relative_squared_error(target_ND: Tensor, output_ND: Tensor, shards: Shards = HERE) -> Tensor:
    """Return the squared error in units of the error of predicting the mean.

    A target that its mean predicts exactly has the error 0, without gradient. Where other processes hold other tokens,
    it is this process's part of the error.
    """
    dtype = torch.promote_types(target_ND.dtype, torch.float32)
    squares = (target_ND - output_ND).to(dtype).pow(2).sum()
    target_ND = target_ND.detach().to(dtype)
    total = shards.over_tokens((target_ND - shards.mean(target_ND)).pow(2).sum())
    varies = total > 1e-12 * shards.over_tokens(target_ND.pow(2).sum())
    return squares * torch.where(varies, 1 / total.clamp(min=1e-30), 0.0)
