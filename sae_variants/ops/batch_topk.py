"""BatchTopK, which keeps the largest latents of a batch, and the windows of a batch.

Source: Bussmann et al., arXiv 2412.06410.

The saved threshold that takes the batch's place is measured at the end of the training, by `ops/threshold.py`; SAELens
folds it into a JumpReLU, and `two_level/folding.py` does so for the levels of a two-level SAE.

Shapes: N tokens, S latents, D numbers in a row, n windows, W tokens in a window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sae_variants.ops.shards import HERE, Shards


class BatchTopK(nn.Module):
    """Keeps the k * N largest positive entries of a batch [N, S] and sets the others to zero.

    k counts latents per token, averaged over the batch. The result is bitwise equal to that of SAELens' module of the
    same name. This module is faster: it does not sort the entries that it keeps, and a sample of the batch bounds the
    entries that can be among the largest.
    """

    shards: Shards = HERE
    """Where the batch lies."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre_NS: Tensor) -> Tensor:
        """Return the activations [N, S] of pre-activations [N, S]."""
        acts_NS = pre_NS.relu()
        n_tokens = acts_NS.shape[:-1].numel() * self.shards.groups
        kept = self.shards.top_k_mask(acts_NS.detach().flatten(), int(self.k * n_tokens)).view(acts_NS.shape)
        return torch.where(kept, acts_NS, 0.0)


def split_windows(rows_ND: Tensor, window: int) -> Tensor:
    """Return rows [n*W, D] as windows [n, W, D]; the rows of a window are consecutive tokens of one context."""
    if len(rows_ND) % window:
        raise ValueError(f"{len(rows_ND)} rows cannot be split into windows of {window} tokens")
    return rows_ND.unflatten(0, (-1, window))
