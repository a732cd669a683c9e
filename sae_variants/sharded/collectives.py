"""Sums over processes and gathers of their tensors, whose bytes are counted, and gradients through what they give.

Shapes: R processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sae_variants.sharded.ranks import ALL, LATENTS, TOKENS, Ranks


class _OfAll(torch.autograd.Function):
    """Value that depends on a process's own tensor, with a function from its gradient to that of the own tensor."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, value: Tensor, own_gradient: Callable[[Tensor], Tensor]) -> Any:
        ctx.own_gradient = own_gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.own_gradient(gradient), None, None


class Collectives:
    """Collectives over all processes, those of one shard, or those of one group of tokens."""

    def __init__(self, ranks: Ranks) -> None:
        """Remember the groups of processes."""
        self._processes = {ALL: dist.group.WORLD, **{name: ranks.mesh.get_group(name) for name in (LATENTS, TOKENS)}}
        self.sent: Counter[str] = Counter()
        """Bytes that this process gave to collectives, by what they were for."""

    def _sum(self, values: Tensor, over: str, purpose: str, kind: str = "SUM") -> Tensor:
        processes = self._processes[over]
        if dist.get_world_size(processes) == 1:
            return values.detach()
        reduced = values.detach().clone(memory_format=torch.contiguous_format)
        self.sent[purpose] += reduced.nbytes
        dist.all_reduce(reduced, getattr(dist.ReduceOp, kind), processes)
        return reduced

    def _gather(self, own: Tensor, over: str, purpose: str) -> Tensor:
        """Return the tensors [...] of the processes as one [R, ...]."""
        processes = self._processes[over]
        if dist.get_world_size(processes) == 1:
            return own[None]
        gathered = own.new_empty(dist.get_world_size(processes), *own.shape)
        self.sent[purpose] += own.nbytes
        dist.all_gather_into_tensor(gathered.view(-1), own.flatten(), processes)
        return gathered

    def _of_all(self, own: Tensor, value: Tensor, own_gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a value that depends on this process's own tensor, whose gradient is a function of the value's."""
        result: Any = _OfAll.apply(own, value, own_gradient)
        return result
