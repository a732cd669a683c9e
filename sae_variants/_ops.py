"""Pure tensor functions that more than one variant uses.

Shapes: N tokens, S latents, n windows, W tokens in a window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchTopK(nn.Module):
    """The k * N largest positive entries of a [N, S] batch, zeros elsewhere; k counts latents per token on average.

    Equal to the bit to SAELens' module of that name (arXiv 2412.06410). That one asks for sorted values, which it
    does not need and which take most of a training step on CPU.
    """

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre_NS: Tensor) -> Tensor:
        acts_NS = pre_NS.relu()
        flat = acts_NS.flatten()
        tokens = acts_NS.shape[:-1].numel()
        top = torch.topk(flat, int(self.k * tokens), sorted=False)
        return torch.zeros_like(flat).scatter(-1, top.indices, top.values).reshape(acts_NS.shape)


def split_windows(rows_ND: Tensor, window: int) -> Tensor:
    """[n*W, D] -> [n, W, D]; rows of a window are consecutive tokens of one context."""
    if len(rows_ND) % window:
        raise ValueError(f"{len(rows_ND)} rows cannot be split into windows of {window} tokens")
    return rows_ND.unflatten(0, (-1, window))
