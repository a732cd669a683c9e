"""Collectives of an SAE whose latents lie in several processes.

    local k largest -> gather k candidates of each shard -> exact k largest -> each decodes its own -> sum

Gradients of encoder and decoder rows stay with their shard; those of the biases that every process has are summed. The
bytes of a step do not depend on d_sae: N (S k + 2 D) numbers and AuxK's candidates, for N tokens and S shards.

Shapes: N tokens of this process's group, D = d_in, k candidates of a token, S shards, s latents of a shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad
from typing_extensions import override

from sae_variants.ops.shards import Shards
from sae_variants.sharded.ranks import LATENTS, TOKENS, Ranks

MOST_NORM = 1.0
"""Norm at which SAELens' trainer clips gradients."""
ENCODER, SHARDED, REPLICATED = "W_enc", ("W_enc", "b_enc", "W_dec"), ("b_dec",)
"""Parameters by where they lie; the encoder's columns, and the other's rows, belong to latents."""


class _WithValue(torch.autograd.Function):
    """Value of one tensor with the gradient of another; asks for a call at the end of the backward pass."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, value: Tensor, queue: Callable[[], None]) -> Any:
        ctx.queue = queue
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.queue()
        return gradient, None, None


class LatentShards(Shards):
    """A shard of the latents, and a group of the tokens."""

    def __init__(self, ranks: Ranks) -> None:
        """Remember the groups of processes."""
        self.ranks, self.count, self.groups = ranks, ranks.shards, ranks.groups
        self.group, self.index = ranks.mesh.get_coordinate() or (0, 0)
        self._processes = {name: ranks.mesh.get_group(name) for name in (LATENTS, TOKENS)}
        self.sent: Counter[str] = Counter()
        """Bytes that this process gave to collectives, by what they were for."""
        self.after_backward: Callable[[], None] = lambda: None
        """Is called once at the end of each backward pass."""
        self._is_queued = False

    def _sum(self, values: Tensor, over: str, purpose: str, kind: str = "SUM") -> Tensor:
        processes = self._processes[over]
        if dist.get_world_size(processes) == 1:
            return values.detach()
        reduced = values.detach().clone(memory_format=torch.contiguous_format)
        self.sent[purpose] += reduced.nbytes
        dist.all_reduce(reduced, getattr(dist.ReduceOp, kind), processes)
        return reduced

    def _queue(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)  # type: ignore[attr-defined]

    def _finish(self) -> None:
        self._is_queued = False
        self.after_backward()

    @override
    def rows(self, x_ND: Tensor) -> Tensor:
        return x_ND.chunk(self.groups)[self.group]

    @override
    def one_row_in(self, every: int, step: int, n_rows: int) -> slice:
        return slice((step - self.group * n_rows) % every, None, every)

    @override
    def once(self, bias_D: Tensor) -> Tensor:
        return bias_D if self.index == 0 else torch.zeros_like(bias_D)

    @override
    def keep_largest(self, values_Nk: Tensor, k: int) -> Tensor:
        N, own = values_Nk.shape
        candidates_Nk = pad(values_Nk.detach(), (0, k - own), value=-1.0).contiguous()
        gathered = candidates_Nk.new_empty(self.count * N, k)
        self.sent["candidates"] += candidates_Nk.nbytes
        dist.all_gather_into_tensor(gathered, candidates_Nk, self._processes[LATENTS])
        all_NC = gathered.view(self.count, N, k).transpose(0, 1).flatten(1)  # C = S k, shard by shard
        chosen_NC = torch.zeros_like(all_NC, dtype=torch.bool).scatter_(1, all_NC.topk(k, sorted=False).indices, True)
        return values_Nk * chosen_NC[:, self.index * k : self.index * k + own]

    @override
    def join(self, out_ND: Tensor) -> Tensor:
        joined: Any = _WithValue.apply(out_ND, self._sum(out_ND, LATENTS, "reconstructions"), self._queue)
        return joined

    @override
    def mean(self, x_ND: Tensor) -> Tensor:
        return self.over_tokens(x_ND.sum(0)) / self.over_tokens(x_ND.new_tensor(len(x_ND)))

    @override
    def over_tokens(self, sums: Tensor) -> Tensor:
        return self._sum(sums, TOKENS, "numbers")

    @override
    def over_latents(self, sums: Tensor) -> Tensor:
        return self._sum(sums, LATENTS, "numbers")

    @override
    def shown(self, loss: Tensor) -> Tensor:
        value: Any = _WithValue.apply(loss, self.over_tokens(loss), self._queue)
        return value

    @override
    def anywhere(self, flag: bool) -> bool:
        return bool(self.over_tokens(self.over_latents(torch.tensor(float(flag), device=self.ranks.device))))

    @override
    def least(self, values_S: Tensor) -> Tensor:
        return self._sum(values_S, TOKENS, "counts", "MIN")

    @torch.no_grad()
    def finish_gradients(self, sae: nn.Module) -> None:
        """Sum the gradients that other processes have parts of, and clip them by their norm over all latents."""
        for name in (*SHARDED, *REPLICATED):
            parameter = sae.get_parameter(name)
            if parameter.grad is None:  # a bias that another shard adds
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad.mT if name == ENCODER else parameter.grad
            summed = self._sum(gradient, TOKENS, "gradients")
            gradient.copy_(self._sum(summed, LATENTS, "gradients") if name in REPLICATED else summed)
        gradients = {name: sae.get_parameter(name).grad for name in (*SHARDED, *REPLICATED)}
        squares = {name: gradient.float().pow(2).sum() for name, gradient in gradients.items() if gradient is not None}
        total = self.over_latents(torch.stack([squares[name] for name in SHARDED]).sum())
        norm = torch.stack([total, *(squares[name] for name in REPLICATED)]).sum().sqrt()
        for gradient in gradients.values():
            assert gradient is not None
            gradient.mul_((MOST_NORM / (norm + 1e-6)).clamp(max=1.0))
