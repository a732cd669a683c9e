"""Two levels with a penalty whose balance of magnitude against frequency is learned, with one α per level.

    λ_M · M + λ_F · F,        α = λ_M / (λ_M + λ_F)

`two_level.dual_penalty` defines M and F. `k` upper and `lower_k` lower latents fire per token. `learning` selects how α
is learned:

- dual_ascent: λ_M has a constraint of its own, that the output shrinks by at most `shrinkage` relative to the
  least-squares scale. An L1 penalty shrinks latents, and tanh leaves large ones almost unchanged. λ_M rises while the
  output shrinks less and falls while it shrinks more, once L0 has reached k. α is then as large as that shrinkage
  allows.
- naive: α is a parameter of the loss λ (α M + (1-α) F), clamped to [0, 1]. Its gradient λ (M - F) does not depend on α,
  so α runs to 0 or 1. It is an ablation that shows this.
- uncertainty: λ (M / v_M + log v_M + F / v_F + log v_F) with learned v (Kendall et al., arXiv 1705.07115); L0 sets λ.

Shapes: α and λ per level; M and F are scalars.
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
from sae_variants.two_level.dual_penalty import DualTrainingSAE, DualTrainingSAEConfig
from sae_variants.two_level.penalty_terms import LEVELS, Measured, Penalty

LARGEST_LOG_RATIO = math.log(99)
"""λ_M : λ_F stays between 1 : 99 and 99 : 1, so that a constraint that was inactive for long can soon act again."""


@dataclass
class LearnableDualTrainingSAEConfig(DualTrainingSAEConfig):
    """Config of `learnable_dual`."""

    learning: Literal["dual_ascent", "naive", "uncertainty"] = "dual_ascent"
    """Method by which α is learned; naive is an ablation."""
    start_alpha: float = 0.5
    """Initial α of both levels."""
    shrinkage: float = 0.03
    """Target shrinkage of a level's output relative to the least-squares scale; a larger one lets α rise further."""
    magnitude_rate: float = 0.1
    """Change of log λ_M per step: a rise without shrinkage, a fall at twice the target shrinkage."""
    variance_speed: float = 10.0
    """Factor of the learning rate of log v."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning not in ("dual_ascent", "naive", "uncertainty"):
            raise ValueError(f"learning must be dual_ascent, naive or uncertainty, not {self.learning!r}")
        if not 0 < self.shrinkage < 1:
            raise ValueError(f"shrinkage must be above 0 and below 1, not {self.shrinkage:g}")
        if not 0 <= self.magnitude_rate < math.inf:
            raise ValueError(f"magnitude_rate must not be negative, not {self.magnitude_rate:g}")
        if not 0 < self.variance_speed < math.inf:
            raise ValueError(f"variance_speed must be positive, not {self.variance_speed:g}")
        if not 0 < self.start_alpha < 1:
            raise ValueError(f"start_alpha must be above 0 and below 1, not {self.start_alpha:g}")
        frozen_steps = self.reference_steps + self.descent_steps
        fewest = min((self.steps_of(name) for name in LEVELS), default=0)
        if self.learning == "dual_ascent" and self.total_steps and fewest <= frozen_steps:
            raise ValueError(
                f"α is frozen for reference_steps + descent_steps = {frozen_steps} steps, and a level trains for "
                f"{fewest}: train for more tokens, or lower these"
            )


@register(LearnableDualTrainingSAEConfig)
class LearnableDualTrainingSAE(DualTrainingSAE):
    """Two levels in training, with a learned α."""

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
            log_lambda[0] = log_lambda[0].clamp(log_lambda[1] - LARGEST_LOG_RATIO, log_lambda[1] + LARGEST_LOG_RATIO)
        lambda_M, lambda_F = self.held_by_l0(level)
        return Penalty(lambda_M * level.M + lambda_F * level.F, lambda_M + lambda_F, drive)

    def _naive(self, level: Measured) -> Penalty:
        alpha, (total,) = self.alphas[level.index], self.held_by_l0(level)
        drive = -total * (level.M - level.F).detach()
        return Penalty(total * (alpha * level.M + (1 - alpha) * level.F), total, drive)

    def _uncertainty(self, level: Measured) -> Penalty:
        log_v = self.cfg.variance_speed * self.log_variances[level.index]
        (total,) = self.held_by_l0(level)
        terms = torch.stack([level.M, level.F])
        weights = (-log_v).exp()
        drive = (weights * terms).detach()[1] - (weights * terms).detach()[0]
        return Penalty(total * (weights * terms + log_v).sum(), total * weights.sum().detach(), drive)
