"""Adam for weights and moments of 16 bits, whose small steps are not lost: it rounds up or down at random.

A step of Adam is mostly smaller than half the distance of two neighbouring bfloat16 numbers, and rounding to the
nearest would drop it; the mean of the squared gradient would hardly move at all. Rounded up or down with the
probabilities that keep the mean, many small steps add up. Steps are computed in float32, some rows at a time.

Source: Gupta et al., arXiv 1502.02551; for bfloat16 and Adam, Zamirai et al., arXiv 2010.06192.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

from sae_variants.common.hashing import hash_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

ROWS = 1 << 22
"""Numbers, about, that are computed in float32 at a time."""
DROPPED = 16
"""Bits of a float32 that a bfloat16 lacks."""


def round_randomly(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 numbers to one of the two neighbouring bfloat16 numbers, such that the mean is kept."""
    import torch

    bits = values.contiguous().view(torch.int32)  # a bfloat16 has the upper half of them
    noise = torch.randint(0, 1 << DROPPED, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    rounded = (bits + noise).bitwise_and_(-(1 << DROPPED)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()


def round_steps(optimizer: Optimizer, seed: int) -> None:
    """Let Adam take the steps of all bfloat16 parameters in float32, and round what is kept at random.

    Args:
        optimizer: Adam, without weight decay.
        seed: Seed of the rounding; a training that goes on after an interruption rounds as one that was not stopped.
    """
    import torch

    def step(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for number, p in enumerate(group["params"]):
                if p.grad is None or p.dtype != torch.bfloat16:
                    continue
                state = optimizer.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                state["step"] += 1
                count = int(state["step"])
                generator = torch.Generator(p.device).manual_seed(hash_seed(["rounding", seed, number, count]))
                _step(group, p.data, p.grad, state, count, generator)
                p.grad = None  # Adam leaves out what has no gradient

    optimizer.register_step_pre_hook(step)


def _step(
    group: dict[str, Any], p: Tensor, grad: Tensor, state: dict[str, Any], count: int, generator: torch.Generator
) -> None:
    """Take one step of a parameter, some rows at a time."""
    beta1, beta2 = group["betas"]
    rate = group["lr"] / (1 - beta1**count)
    rows = max(1, ROWS // max(1, p[:1].numel()))
    parts = zip(*(values.split(rows) for values in (p, grad, state["exp_avg"], state["exp_avg_sq"])), strict=True)
    for weights, gradient, kept_mean, kept_square in parts:
        gradient = gradient.float()
        mean = kept_mean.float().lerp_(gradient, 1 - beta1)
        square = kept_square.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        divisor = (square.sqrt() / sqrt(1 - beta2**count)).add_(group["eps"])
        moved = weights.float().addcdiv_(mean, divisor, value=-rate)
        for kept, values in ((weights, moved), (kept_mean, mean), (kept_square, square)):
            kept.copy_(round_randomly(values, generator))
