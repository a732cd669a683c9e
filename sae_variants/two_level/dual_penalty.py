"""Two levels with a penalty on the magnitude and the frequency of latents, at a target L0.

    P = λ_M · M + λ_F · F        M = Σ_i w_i a_i / M₀        F = Σ_i w_i tanh(c a_i) / F₀

Here a [N, S] are the latents of a level in the units of the output, and M and F are means over tokens. M₀ and F₀ are
the means over the first steps of the level's training. They are then frozen, so both terms start at 1, whatever their
units. The weights w of mean 1 adapt to each latent: a share α follows its mean activation, and 1 - α its frequency. The
latter saturates, because some very frequent latents reflect structure of the language model (arXiv 2506.15679).

The variant determines the ratio λ_M : λ_F; α = λ_M / (λ_M + λ_F) is its balance. Both multipliers rise while L0 > k,
and both terms lower L0 (`ops.l0_control`). All SAEs therefore reach the requested L0 at any balance; where it ends a
little above, the saved SAE has thresholds that hold it.

`trace` records every step. Shapes: N tokens, D = d_in, S latents of a level, L lower and U upper latents, T steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.errors import squared_error
from sae_variants.ops.l0_control import follow_l0, l0_error
from sae_variants.two_level.config import TwoLevelTrainingSAEConfig
from sae_variants.two_level.levels import Level
from sae_variants.two_level.penalty_terms import (
    LEVELS,
    Measured,
    Penalty,
    frequency,
    latent_weights,
    magnitude,
    shrinkage,
)
from sae_variants.two_level.saved import LOWER
from sae_variants.two_level.training import TwoLevelTrainingSAE

COLUMNS = ("alpha", "drive", "penalty", "magnitude", "frequency", "l0", "error")
"""Columns of each level in the trace: α; the drive on it; λ_M + λ_F; M; F; L0; squared error of the reconstruction."""
FREQUENCY_RATE = 0.05
"""Rate at which the running frequencies follow those of a step."""


@dataclass
class DualTrainingSAEConfig(TwoLevelTrainingSAEConfig, ABC):
    """Config that the variants with this penalty share."""

    added: ClassVar[Mapping[str, Any]] = {**TwoLevelTrainingSAEConfig.added, "exact_l0": False}

    decoder_init_norm: float | None = 1.0
    """Initial norm of the rows of both decoders; the encoders start as their transposes."""
    aux_loss_coefficient: float = 0.1
    """Weight of AuxK in both levels; with ReLU a large weight revives all dead latents at once."""
    steepness: float = 4.0
    """Steepness c of the tanh: an activation of 1/c counts for the frequency about as much as the largest one."""
    adaptation: float = 0.25
    """Share of a latent's weight in the penalty that adapts to the latent; 0 weights all latents equally."""
    saturation: float = 0.1
    """Share of tokens on which a latent must fire to get half of the largest weight for frequency."""
    penalty_coefficient: float = 10.0
    """Initial λ_M + λ_F."""
    reference_steps: int = 10
    """Steps of a level's training over which M₀ and F₀ are measured; multipliers are constant meanwhile."""
    descent_steps: int = 50
    """Following steps of a level's training over which the target L0 falls from the measured L0 to its final value."""
    rate: float = 0.05
    """Rise of log λ per step while L0 exceeds its target by a factor of e or more."""
    gain: float = 1.0
    """Term of log λ that is proportional to the present error, for an error by a factor of e or more."""
    frequency_scale: float = 1.0
    """Unit of F before division by F₀; α must not depend on it."""
    exact_l0: bool = True
    """Whether each level of the saved SAE gets a threshold above 0 where more latents fire than it shall have."""
    tracing: bool = True
    """Whether the trace records each step."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.adaptation <= 1:
            raise ValueError(f"adaptation must be between 0 and 1, not {self.adaptation:g}")
        for name in ("steepness", "saturation", "penalty_coefficient", "frequency_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")
        if min(self.rate, self.gain, self.descent_steps) < 0 or self.reference_steps < 1:
            raise ValueError("rate, gain, descent_steps must not be negative, and reference_steps must be at least 1")

    def target_l0(self, name: str) -> float:
        """Return the final target L0 of a level."""
        return self.k_of_lower if name == LOWER else self.k


class DualTrainingSAE(TwoLevelTrainingSAE, ABC):
    """Two levels in training with the penalty; a variant defines `alpha` and `penalty`."""

    cfg: Any
    level_steps: list[int]
    """Training steps of the lower and the upper level, the present one included."""
    references: Tensor
    first_l0: Tensor
    frequency_L: Tensor
    frequency_U: Tensor
    log_multipliers: Tensor
    trace_TC: Tensor

    def __init__(self, cfg: DualTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        device = self.b_dec.device
        self.level_steps = [0, 0]
        self.register_buffer("references", torch.zeros(2, 2, dtype=torch.float64, device=device))
        self.register_buffer("first_l0", torch.zeros(2, device=device))
        self.register_buffer("frequency_L", torch.zeros(cfg.d_lower, device=device))
        self.register_buffer("frequency_U", torch.zeros(cfg.d_sae, device=device))
        start = torch.tensor([self.start_multipliers()] * len(LEVELS), dtype=torch.float64, device=device)
        self.register_buffer("log_multipliers", start.log())
        steps = cfg.total_steps if cfg.tracing else 0
        self.register_buffer("trace_TC", torch.full((steps, 1 + len(LEVELS) * len(COLUMNS)), math.nan, device=device))
        self._row: dict[str, Tensor] = {}

    @property
    @override
    def calibrates(self) -> bool:
        return self.cfg.exact_l0

    @override
    def activation(self, k: float) -> nn.Module:
        return nn.ReLU()

    def start_multipliers(self) -> list[float]:
        """Return the initial λ of each constraint of a level."""
        return [self.cfg.penalty_coefficient]

    @abstractmethod
    def alpha(self, name: str) -> Tensor:
        """Return the present α of a level, without gradient."""

    @abstractmethod
    def penalty(self, level: Measured) -> Penalty:
        """Return the penalty of a level in this step, and update its multipliers."""

    def held_by_l0(self, level: Measured) -> Tensor:
        """Return the multipliers of a level; once M₀ and F₀ are measured, all rise equally while L0 is too high."""
        log_lambda = self.log_multipliers[level.index]
        if not self._is_measured(level.index):
            return log_lambda.exp().float()
        return follow_l0(log_lambda, self.l0_error(level), self.cfg.rate, self.cfg.gain)

    def steps_to_go(self, index: int) -> int:
        """Return the number of steps until the target L0 of a level is final; negative afterwards."""
        return self.cfg.reference_steps + self.cfg.descent_steps - self.level_steps[index]

    def l0_error(self, level: Measured) -> Tensor:
        """Return log(L0 / target), where L0 counts as at least half a latent."""
        ahead = min(1.0, max(0, self.steps_to_go(level.index)) / max(1, self.cfg.descent_steps))
        return l0_error(level.l0, self.cfg.target_l0(level.name), self.first_l0[level.index], ahead)

    def _is_measured(self, index: int) -> bool:
        return self.level_steps[index] > self.cfg.reference_steps

    @override
    def sparsity_losses(self, level: Level, name: str, x_ND: Tensor) -> dict[str, Tensor]:
        measured = self._measure(level, name, x_ND)
        penalty = self.penalty(measured)
        if self.cfg.tracing:
            self._trace_level(measured, penalty, level, x_ND)
        return {"penalty_loss": penalty.loss}

    def _measure(self, level: Level, name: str, x_ND: Tensor) -> Measured:
        """Measure M and F, and their references in the first steps."""
        cfg, i = self.cfg, LEVELS.index(name)
        self.level_steps[i] += 1
        active_S = self.activity_L if name == LOWER else self.activity_U
        fires_S = self.frequency_L if name == LOWER else self.frequency_U
        with torch.no_grad():
            fires_NS = level.acts > 0
            fires_S += FREQUENCY_RATE * (fires_NS.float().mean(0) - fires_S)
            adaptation = cfg.adaptation if self._is_measured(i) else 0.0
            w_S = latent_weights(active_S, fires_S, self.alpha(name), adaptation, cfg.saturation)
        M, F = magnitude(level.acts, w_S), cfg.frequency_scale * frequency(level.acts, w_S, cfg.steepness)
        if not self._is_measured(i):
            measured = torch.stack([M, F]).detach().double()
            self.references[i] += (measured - self.references[i]) / self.level_steps[i]
            self.first_l0[i] = fires_NS.sum(-1).float().mean()
        M0, F0 = self.references[i].clamp(min=1e-12).float()
        return Measured(name, M / M0, F / F0, fires_NS.sum(-1).float().mean(), shrinkage(x_ND, level))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self._row = {}
        self.level_steps = self.cfg.steps_before(step_input.n_training_steps)
        output = super().training_forward_pass(step_input)
        if step_input.n_training_steps < len(self.trace_TC):
            self._trace_step(step_input.n_training_steps)
        return output

    @torch.no_grad()
    def _trace_level(self, measured: Measured, penalty: Penalty, level: Level, x_ND: Tensor) -> None:
        """Keep the columns of one level until the step is traced."""
        values = (self.alpha(measured.name), penalty.drive, penalty.total, measured.M, measured.F, measured.l0)
        row = [value.detach().float() for value in (*values, squared_error(x_ND, level.out))]
        self._row[measured.name] = torch.stack(row)

    def _trace_step(self, step: int) -> None:
        """Write the columns of both levels; those of a level that does not train are NaN."""
        empty = self.trace_TC.new_full((len(COLUMNS),), math.nan)
        phase = empty.new_full((1,), self.cfg.phase(step))
        self.trace_TC[step] = torch.cat([phase, *(self._row.get(name, empty) for name in LEVELS)])

    @property
    @override
    def trace(self) -> dict[str, Tensor]:
        """Columns [T] over the steps, and the references M₀ and F₀ [2] of each level.

        The columns are `phase`, `lower.alpha`, ...; they are NaN where a level did not train, and absent without
        tracing. The references are `lower.references` and `upper.references`.
        """
        names = ["phase", *(f"{level}.{column}" for level in LEVELS for column in COLUMNS)]
        columns = dict(zip(names, self.trace_TC.unbind(1), strict=True)) if len(self.trace_TC) else {}
        return columns | {f"{level}.references": self.references[i] for i, level in enumerate(LEVELS)}
