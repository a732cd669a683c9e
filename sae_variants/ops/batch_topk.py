"""Pure tensor functions that more than one variant uses.

Shapes: N tokens, S latents, n windows, W tokens in a window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchTopK(nn.Module):
    """The k * N largest positive entries of a [N, S] batch, zeros elsewhere; k counts latents per token on average.

    Equal to the bit to SAELens' module of that name (arXiv 2412.06410). That one sorts what it keeps, which it does not
    need, and looks at the whole batch where a sample tells which few entries can be among the largest at all.
    """

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre_NS: Tensor) -> Tensor:
        acts_NS = pre_NS.relu()
        kept = top_k_mask(acts_NS.detach().flatten(), int(self.k * acts_NS.shape[:-1].numel())).view(acts_NS.shape)
        return torch.where(kept, acts_NS, 0.0)


SAMPLED = 16
"""One entry in so many is looked at to bound the largest ones."""


def top_k_mask(values: Tensor, n: int) -> Tensor:
    """Which of the values [M] are the n largest, as a mask."""
    kept = torch.zeros_like(values, dtype=torch.bool)
    sample = values[::SAMPLED]
    rank = int(1.2 * n / SAMPLED) + 64  # far enough down that the bound is below the n-th largest but by bad luck
    if rank < len(sample):
        bound = sample.kthvalue(len(sample) - rank).values
        candidates = (values > bound).nonzero().squeeze(1)
        if len(candidates) >= n:
            return kept.index_fill_(0, candidates[values[candidates].topk(n, sorted=False).indices], True)
    return kept.index_fill_(0, values.topk(n, sorted=False).indices, True)


def split_windows(rows_ND: Tensor, window: int) -> Tensor:
    """[n*W, D] -> [n, W, D]; rows of a window are consecutive tokens of one context."""
    if len(rows_ND) % window:
        raise ValueError(f"{len(rows_ND)} rows cannot be split into windows of {window} tokens")
    return rows_ND.unflatten(0, (-1, window))
