"""dual_adaptive: two levels whose penalty weighs how much a latent fires against how often, by hand.

    λ (α · M + (1-α) · F)

of each level (`_dual` has M and F), α a constant between 0 and 1, λ held so that `k` upper latents, and `lower_k` lower
ones, fire per token. α = 1 is the L1 penalty of `stock:standard` in other units; α = 0 only counts, like a smooth L0
(its tanh is that of SAELens' JumpReLU, arXiv 2407.14435 and 2501.17727). The manual side of `learnable_dual`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sae_variants.registry.variants import register
from sae_variants.two_level.dual_penalty import DualTrainingSAE, DualTrainingSAEConfig, Measured, Penalty
from sae_variants.two_level.saved import LOWER


@dataclass
class DualAdaptiveTrainingSAEConfig(DualTrainingSAEConfig):
    alpha: float = 0.5
    """α, the share of magnitude in the penalty: all of it at 1, none at 0."""
    lower_alpha: float | None = None
    """The same of the lower level, if that is another."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("alpha", self.alpha), ("lower_alpha", self.lower_alpha)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value:g}")


@register(DualAdaptiveTrainingSAEConfig)
class DualAdaptiveTrainingSAE(DualTrainingSAE):
    cfg: Any

    @override
    def alpha(self, name: str) -> Tensor:
        is_own = name == LOWER and self.cfg.lower_alpha is not None
        return torch.tensor(self.cfg.lower_alpha if is_own else self.cfg.alpha, device=self.b_dec.device)

    @override
    def penalty(self, level: Measured) -> Penalty:
        alpha, (total,) = self.alpha(level.name), self.held_by_l0(level)
        return Penalty(total * (alpha * level.M + (1 - alpha) * level.F), total, torch.zeros_like(total))
