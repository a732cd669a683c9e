"""learnable_dual: two levels whose balance of how much latents fire against how often is learned, one α for each level.

    λ_M · M + λ_F · F,        α = λ_M / (λ_M + λ_F)

(`_dual` has M and F.) `k` upper latents, and `lower_k` lower ones, fire per token. `learning`, how α comes about:

- dual_ascent: λ_M has a constraint of its own, Σ a ≤ M*. M* is what latents would write if they were smaller by
  `shrinkage` than fits x best; L1 penalties make them smaller still, tanh leaves large ones alone. λ_M is raised while
  Σ a > M* and falls otherwise, as soon as L0 has come down to k. So α is as much magnitude as that shrinkage allows.
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

from sae_variants.registry.variants import register
from sae_variants.two_level.dual_penalty import LEVELS, DualTrainingSAE, DualTrainingSAEConfig, Measured, Penalty

FARTHEST = math.log(99)
"""λ_M : λ_F stays within 1 : 99 and 99 : 1, so that a constraint that is long kept can be felt again soon."""


@dataclass
class LearnableDualTrainingSAEConfig(DualTrainingSAEConfig):
    learning: Literal["dual_ascent", "naive", "uncertainty"] = "dual_ascent"
    """How α is learned."""
    start_alpha: float = 0.5
    """Where α of both levels starts."""
    shrinkage: float = 0.03
    """How much smaller than the best multiple of it what a level writes shall be; more lets magnitude cost more."""
    magnitude_rate: float = 0.1
    """log λ_M per step while there is no shrinkage at all, or twice what there shall be."""
    variance_speed: float = 10.0
    """How many times as fast as other parameters log v is learned."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning not in ("dual_ascent", "naive", "uncertainty"):
            raise ValueError(f"learning must be dual_ascent, naive or uncertainty, not {self.learning!r}")
        if not 0 < self.shrinkage < 1:
            raise ValueError(f"shrinkage must be above 0 and below 1, not {self.shrinkage:g}")
        if not 0 <= self.magnitude_rate < math.inf or not 0 < self.variance_speed < math.inf:
            raise ValueError("magnitude_rate must not be negative, and variance_speed must be positive")
        if not 0 < self.start_alpha < 1:
            raise ValueError(f"start_alpha must be above 0 and below 1, not {self.start_alpha:g}")
        at_rest = self.reference_steps + self.descent_steps
        fewest = min((self.steps_of(name) for name in LEVELS), default=0)
        if self.learning == "dual_ascent" and self.total_steps and fewest <= at_rest:
            raise ValueError(
                f"α rests for reference_steps + descent_steps = {at_rest} steps, and a level trains for {fewest}: "
                "train for more tokens, or lower these"
            )


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
        log_lambda = self.log_multipliers[level.index]
        drive = (1 - level.shrinkage / self.cfg.shrinkage).clamp(-1, 1)
        if self.steps_to_go(level.index) < 0:
            log_lambda[0] += self.cfg.magnitude_rate * drive
            log_lambda[0] = log_lambda[0].clamp(log_lambda[1] - FARTHEST, log_lambda[1] + FARTHEST)
        lambda_M, lambda_F = self.held_by_l0(level)
        return Penalty(lambda_M * level.M + lambda_F * level.F, lambda_M + lambda_F, drive)

    def _naive(self, level: Measured) -> Penalty:
        alpha, (total,) = self.alphas[level.index], self.held_by_l0(level)
        drive = -total * (level.M - level.F).detach()
        return Penalty(total * (alpha * level.M + (1 - alpha) * level.F), total, drive)

    def _uncertainty(self, level: Measured) -> Penalty:
        log_v = self.cfg.variance_speed * self.log_variances[level.index]
        (held,) = self.held_by_l0(level)
        terms = torch.stack([level.M, level.F])
        shares = (-log_v).exp()
        drive = (shares * terms).detach()[1] - (shares * terms).detach()[0]
        return Penalty(held * (shares * terms + log_v).sum(), held * shares.sum().detach(), drive)
