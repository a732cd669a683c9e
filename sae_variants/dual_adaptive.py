"""Two levels with a penalty that balances the magnitude of latents against their frequency by a fixed weight.

    λ (α · M + (1-α) · F)

`two_level.dual_penalty` defines M and F of each level. α is a constant between 0 and 1; λ is adapted so that `k` upper
and `lower_k` lower latents fire per token. α = 1 is the L1 penalty of `stock:standard` in other units. α = 0 counts
latents like a smooth L0; its tanh is that of SAELens' JumpReLU (arXiv 2407.14435 and 2501.17727). `learnable_dual`
learns α.

Shapes: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sae_variants.registry.variants import register
from sae_variants.two_level.dual_penalty import DualTrainingSAE, DualTrainingSAEConfig
from sae_variants.two_level.penalty_terms import Measured, Penalty
from sae_variants.two_level.saved import LOWER


@dataclass
class DualAdaptiveTrainingSAEConfig(DualTrainingSAEConfig):
    """Config of `dual_adaptive`."""

    alpha: float = 0.5
    """α, share of magnitude in the penalty, between 0 (frequency only) and 1 (magnitude only)."""
    lower_alpha: float | None = None
    """α of the lower level; none uses that of the upper level."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("alpha", self.alpha), ("lower_alpha", self.lower_alpha)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value:g}")


@register(DualAdaptiveTrainingSAEConfig)
class DualAdaptiveTrainingSAE(DualTrainingSAE):
    """Two levels in training, with a fixed α."""

    cfg: Any

    @override
    def alpha(self, name: str) -> Tensor:
        differs = name == LOWER and self.cfg.lower_alpha is not None
        return torch.tensor(self.cfg.lower_alpha if differs else self.cfg.alpha, device=self.b_dec.device)

    @override
    def penalty(self, level: Measured) -> Penalty:
        alpha, (total,) = self.alpha(level.name), self.held_by_l0(level)
        return Penalty(total * (alpha * level.M + (1 - alpha) * level.F), total, torch.zeros_like(total))
