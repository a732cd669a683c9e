"""Exponential moving average of a module's parameters, kept in buffers so that it survives a checkpoint.

a_t = decay · a_(t-1) + (1 - decay) · w_t,      a_0 = 0,      average = a_t / (1 - decay^t)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def add_averages(module: nn.Module, names: Iterable[str]) -> None:
    """Register the buffers `averaged_steps` and, for each parameter, `average_<name>`."""
    device = next(module.parameters()).device
    module.register_buffer("averaged_steps", torch.zeros((), dtype=torch.long, device=device))
    for name in names:
        module.register_buffer(f"average_{name}", torch.zeros_like(module.get_parameter(name).detach()))


@torch.no_grad()
def update_averages(module: nn.Module, names: Iterable[str], decay: float) -> None:
    """Add the present values of the parameters to their averages."""
    module.get_buffer("averaged_steps").add_(1)
    for name in names:
        module.get_buffer(f"average_{name}").lerp_(module.get_parameter(name), 1 - decay)


@torch.no_grad()
def average_of(module: nn.Module, name: str, decay: float) -> Tensor:
    """Return the average of a parameter as it would be after one more update."""
    total = 1 - decay ** (int(module.get_buffer("averaged_steps")) + 1)
    return module.get_buffer(f"average_{name}").lerp(module.get_parameter(name), 1 - decay) / total
