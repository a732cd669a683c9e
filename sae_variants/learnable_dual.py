"""learnable_dual: two levels whose balance of how much latents fire against how often is learned, one α for each level.

    λ_M · M + λ_F · F,        α = λ_M / (λ_M + λ_F)

(`_dual` has M and F.) `k` upper latents, and `lower_k` lower ones, fire per token. `learning`, how α comes about:

- dual_ascent: F's constraint is that L0, M's that what latents write, Σ a, is at most `magnitude` · √L0 · |x|, which is
  what L0 equal latents at right angles would write. One multiplier each, raised while its constraint is broken.
- naive: α is a parameter of the loss λ (α M + (1-α) F), clamped to [0, 1]. Its gradient λ (M - F) does not depend on α,
  so it runs to the end that the terms favour: an ablation that shows it.
- uncertainty: λ (M / v_M + log v_M + F / v_F + log v_F), v learned (Kendall et al., arXiv 1705.07115), λ held by L0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_variants._dual import LEVELS, DualTrainingSAE, DualTrainingSAEConfig, Measured, Penalty
from sae_variants._register import register


@dataclass
class LearnableDualTrainingSAEConfig(DualTrainingSAEConfig):
    learning: Literal["dual_ascent", "naive", "uncertainty"] = "dual_ascent"
    """How α is learned."""
    start_alpha: float = 0.5
    """Where α of both levels starts."""
    magnitude: float = 0.8
    """What latents may write in all, as a share of what L0 equal ones at right angles would, to reconstruct x."""
    variance_speed: float = 10.0
    """How many times as fast as other parameters log v is learned."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "learnable_dual"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning not in ("dual_ascent", "naive", "uncertainty"):
            raise ValueError(f"learning must be dual_ascent, naive or uncertainty, not {self.learning!r}")
        if self.magnitude <= 0 or self.variance_speed <= 0:
            raise ValueError("magnitude and variance_speed must be positive")
        if not 0 < self.start_alpha < 1:
            raise ValueError(f"start_alpha must be above 0 and below 1, not {self.start_alpha:g}")


@register(LearnableDualTrainingSAEConfig)
class LearnableDualTrainingSAE(DualTrainingSAE):
    cfg: Any
    alphas: nn.Parameter
    log_variances: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.learning == "dual_ascent":
            return
        alphas = torch.full((len(LEVELS),), self.cfg.start_alpha, device=self.b_dec.device)
        if self.cfg.learning == "naive":
            self.alphas = nn.Parameter(alphas)
        else:
            log_v = -torch.stack([alphas, 1 - alphas], 1).log()
            self.log_variances = nn.Parameter(log_v / self.cfg.variance_speed)

    @override
    def start_multipliers(self) -> list[float]:
        alpha, total = self.cfg.start_alpha, self.cfg.penalty_coefficient
        return [alpha * total, (1 - alpha) * total] if self.cfg.learning == "dual_ascent" else [total]

    @override
    @torch.no_grad()
    def alpha(self, name: str) -> Tensor:
        i = LEVELS.index(name)
        if self.cfg.learning == "naive":
            return self.alphas[i].clamp(0, 1)
        if self.cfg.learning == "uncertainty":
            return (-self.cfg.variance_speed * self.log_variances[i]).softmax(0)[0]
        return self.log_multipliers[i].softmax(0)[0].float()

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if self.cfg.learning == "naive":
            self.alphas.data.clamp_(0, 1)
        return super().training_forward_pass(step_input)

    @override
    def penalty(self, level: Measured) -> Penalty:
        if self.cfg.learning == "naive":
            return self._naive(level)
        if self.cfg.learning == "uncertainty":
            return self._uncertainty(level)
        errors = self.magnitude_error(level), self.l0_error(level)
        lambda_M, lambda_F = (self.raised(level, i, error) for i, error in enumerate(errors))
        drive = errors[0].clamp(-1, 1) - errors[1].clamp(-1, 1)
        return Penalty(lambda_M * level.M + lambda_F * level.F, lambda_M + lambda_F, drive)

    def magnitude_error(self, level: Measured) -> Tensor:
        """log(Σ a / what it may be)."""
        wanted = self.cfg.magnitude * math.sqrt(self.cfg.wanted_l0(level.name)) * level.size
        return (level.written.clamp(min=1e-6) / wanted).log()

    def _naive(self, level: Measured) -> Penalty:
        alpha, total = self.alphas[level.index], self.raised(level, 0, self.l0_error(level))
        drive = -total * (level.M - level.F).detach()
        return Penalty(total * (alpha * level.M + (1 - alpha) * level.F), total, drive)

    def _uncertainty(self, level: Measured) -> Penalty:
        log_v = self.cfg.variance_speed * self.log_variances[level.index]
        held = self.raised(level, 0, self.l0_error(level))
        terms = torch.stack([level.M, level.F])
        shares = (-log_v).exp()
        drive = (shares * terms).detach()[1] - (shares * terms).detach()[0]
        return Penalty(held * (shares * terms + log_v).sum(), held * shares.sum().detach(), drive)
