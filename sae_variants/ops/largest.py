"""The n largest of many values, which may lie in several processes.

In one process a sample bounds the values that can be among them. In several, the n-th largest is found by radix select,
8 bits at a time: a histogram of 256 counts, summed over the processes, tells the next ones. What is summed does not
depend on the number of values.

Shapes: M values of this process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sae_variants.ops.host import reads_are_free

SAMPLED = 16
"""One in N entries is sampled to bound the largest ones."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


def top_k_ids(values: Tensor, n: int) -> Tensor:
    """Return the indices [n] of the n largest of the values [M], in any order."""
    sample = values[::SAMPLED]
    rank = int(1.2 * n / SAMPLED) + 64  # so low that the bound is almost surely below the n-th largest
    if rank < len(sample) and reads_are_free(values):
        bound = sample.kthvalue(len(sample) - rank).values
        candidates = (~(values <= bound)).nonzero().squeeze(1)  # NaN among them, which counts as the largest
        if len(candidates) >= n:
            return candidates[values[candidates].topk(n, sorted=False).indices]
    return values.topk(n, sorted=False).indices


def top_k_mask(values: Tensor, n: int) -> Tensor:
    """Return the mask [M] of the n largest of the values [M]."""
    return torch.zeros_like(values, dtype=torch.bool).index_fill_(0, top_k_ids(values, n), True)


def keys_of(values: Tensor) -> Tensor:
    """Return integers [M] in the order of values [M] of floating point: -0 equals 0, and NaN is the largest."""
    keys = _swapped((values + 0.0).view(INTEGERS[values.element_size()]))
    return keys.masked_fill(values.isnan(), torch.iinfo(keys.dtype).max)


def values_of(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of which these are the keys."""
    return _swapped(keys).view(dtype)


def _swapped(bits: Tensor) -> Tensor:
    """Reverse the order of negative numbers, of which those of floating point ascend with their size."""
    return bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)


def nth_largest_key(keys: Tensor, n: int, add: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the n-th largest [] of the integers of all processes, of which there are at least n.

    Args:
        keys: Those of this process [M].
        n: 1 for the largest.
        add: Sums a tensor over the processes.
    """
    left, found = torch.full((), n, device=keys.device), torch.zeros((), dtype=torch.long, device=keys.device)
    is_left_M, highest = torch.ones_like(keys, dtype=torch.long), 8 * keys.element_size() - 8
    for shift in range(highest, -1, -8):
        digit_M = (keys >> shift).long() & 255
        digit_M = digit_M ^ 128 if shift == highest else digit_M  # negative integers come first
        counts = add(torch.zeros(256, dtype=torch.long, device=keys.device).index_add_(0, digit_M, is_left_M))
        reached = counts.flip(0).cumsum(0).flip(0)  # entries that have the digit or a larger one
        digit = (reached >= left).sum() - 1
        left = left - torch.take(reached - counts, digit)
        is_left_M = is_left_M * (digit_M == digit)
        found = (found << 8) | (digit ^ 128 if shift == highest else digit)
    return found.to(keys.dtype)
