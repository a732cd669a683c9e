"""How much latents fire against how often: the penalty that two levels of latents share, held at a wanted L0.

    P = λ_M · M + λ_F · F        M = Σ_i w_i a_i / M₀        F = Σ_i w_i tanh(c a_i) / F₀

of a level's latents a [N, S] in the units of what they write (decoder rows of unit norm), means over tokens. M₀ and F₀
are the means over the first steps of the level's training, then frozen: both terms begin at 1, whatever their units.
Weights w of mean 1 adapt to each latent: α of them follows its mean activation, 1-α how often it fires, which
saturates, because some very frequent latents are structure of the language model (arXiv 2506.15679).

How λ_M : λ_F comes about is the variant's; α = λ_M / (λ_M + λ_F) is its balance. Both are raised while L0 > k, which
both terms bring down: dual ascent in log λ, with a term proportional to the present error, which damps its oscillation
(PID Lagrangian methods, arXiv 2007.03964). So all SAEs of these variants have the L0 asked for, whatever their balance.

What happened in each step is kept in `trace`. Shapes: N tokens, S latents of a level, T steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.two_level.config import TwoLevelTrainingSAEConfig
from sae_variants.two_level.saved import LOWER
from sae_variants.two_level.training import Level, TwoLevelTrainingSAE, squared_error

LEVELS = (LOWER, "upper")
COLUMNS = ("alpha", "drive", "penalty", "magnitude", "frequency", "l0", "error")
"""Of each level in the trace: α; what moves it; λ_M + λ_F; M; F; L0; squared error of the reconstruction."""


@dataclass
class DualTrainingSAEConfig(TwoLevelTrainingSAEConfig, ABC):
    aux_loss_coefficient: float = 0.1
    """Weight of AuxK in both levels; ReLU wakes all dead latents at once where it is large."""
    steepness: float = 4.0
    """c: an activation of 1/c counts about as much as the largest for how often a latent fires."""
    adaptation: float = 0.25
    """Share of a latent's weight in the penalty that adapts to it; 0 weighs all latents alike."""
    saturation: float = 0.1
    """Share of tokens on which a latent must fire for half of the largest weight that frequency gives."""
    penalty_coefficient: float = 10.0
    """λ_M + λ_F at the start."""
    reference_steps: int = 10
    """Steps of a level's training over which M₀ and F₀ are measured; multipliers rest meanwhile."""
    descent_steps: int = 50
    """Steps of a level's training after those in which the wanted L0 falls to its value, from what L0 was then."""
    rate: float = 0.05
    """How fast multipliers rise: log λ per step, for a constraint that is broken by a factor of e or more."""
    gain: float = 1.0
    """What such an error adds to log λ while it lasts."""
    frequency_scale: float = 1.0
    """Unit of F before F₀ is measured: α must not depend on it."""
    tracing: bool = True
    """Whether each step is written to the trace."""

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

    def wanted_l0(self, name: str) -> float:
        return self.k_of_lower if name == LOWER else self.k


@dataclass
class Measured:
    """One level in one step. Only M and F have a gradient."""

    name: str
    M: Tensor
    F: Tensor
    l0: Tensor
    """Latents that fire, per token."""
    shrinkage: Tensor
    """s of which x̂ - b would have to be scaled by 1 / (1 - s) to be nearest to x - b."""

    @property
    def index(self) -> int:
        return LEVELS.index(self.name)


@dataclass
class Penalty:
    """What a variant makes of it."""

    loss: Tensor
    """λ_M · M + λ_F · F and what else its multipliers need."""
    total: Tensor
    """λ_M + λ_F"""
    drive: Tensor
    """What moves α, up where it is positive, unless α rests; its size is the variant's own."""


class DualTrainingSAE(TwoLevelTrainingSAE, ABC):
    cfg: Any
    level_steps: Tensor
    references: Tensor
    first_l0: Tensor
    frequency_L: Tensor
    frequency_U: Tensor
    log_multipliers: Tensor
    trace_TC: Tensor

    def __init__(self, cfg: DualTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        device = self.b_dec.device
        self.register_buffer("level_steps", torch.zeros(2, dtype=torch.long, device=device))
        self.register_buffer("references", torch.zeros(2, 2, dtype=torch.float64, device=device))
        self.register_buffer("first_l0", torch.zeros(2, device=device))
        self.register_buffer("frequency_L", torch.zeros(cfg.d_lower, device=device))
        self.register_buffer("frequency_U", torch.zeros(cfg.d_sae, device=device))
        start = torch.tensor([self.start_multipliers()] * len(LEVELS), dtype=torch.float64, device=device)
        self.register_buffer("log_multipliers", start.log())
        steps = cfg.total_steps if cfg.tracing else 0
        self.register_buffer("trace_TC", torch.full((steps, 1 + len(LEVELS) * len(COLUMNS)), math.nan, device=device))
        self._row: dict[str, Tensor] = {}

    @override
    def activation(self, k: float) -> nn.Module:
        return nn.ReLU()

    def start_multipliers(self) -> list[float]:
        """λ of each constraint of a level at the start."""
        return [self.cfg.penalty_coefficient]

    @abstractmethod
    def alpha(self, name: str) -> Tensor:
        """α of a level as it is, without gradient."""

    @abstractmethod
    def penalty(self, level: Measured) -> Penalty:
        """What a level pays in this step; raises multipliers."""

    def held_by_l0(self, level: Measured) -> Tensor:
        """The multipliers of a level, all raised by as much while L0 is too high, once M₀ and F₀ are known."""
        log_lambda = self.log_multipliers[level.index]
        if not self._is_measured(level.index):
            return log_lambda.exp().float()
        error = self.l0_error(level).double().clamp(-1, 1)
        log_lambda += self.cfg.rate * error
        return (log_lambda + self.cfg.gain * error).exp().float()

    def steps_to_go(self, index: int) -> int:
        """Steps until the wanted L0 of a level is the final one."""
        return self.cfg.reference_steps + self.cfg.descent_steps - int(self.level_steps[index])

    def l0_error(self, level: Measured) -> Tensor:
        """log(L0 / wanted), where L0 counts as half a latent at least."""
        ahead = min(1.0, max(0, self.steps_to_go(level.index)) / max(1, self.cfg.descent_steps))
        error = (level.l0.clamp(min=0.5) / self.cfg.wanted_l0(level.name)).log()
        at_first = (self.first_l0[level.index].clamp(min=0.5) / self.cfg.wanted_l0(level.name)).log()
        return error - ahead * at_first.clamp(min=0)

    def _is_measured(self, index: int) -> bool:
        return int(self.level_steps[index]) > self.cfg.reference_steps

    @override
    def sparsity_losses(self, level: Level, name: str, x_ND: Tensor) -> dict[str, Tensor]:
        measured = self._measured(level, name, x_ND)
        paid = self.penalty(measured)
        if self.cfg.tracing:
            self.note(measured, paid, level, x_ND)
        return {"penalty_loss": paid.loss}

    def _measured(self, level: Level, name: str, x_ND: Tensor) -> Measured:
        """Takes M and F, and, in the first steps, their references."""
        cfg, i = self.cfg, LEVELS.index(name)
        self.level_steps[i] += 1
        active_S = self.activity_L if name == LOWER else self.activity_U
        fires_S = self.frequency_L if name == LOWER else self.frequency_U
        with torch.no_grad():
            fires_NS = level.acts > 0
            fires_S += 0.05 * (fires_NS.float().mean(0) - fires_S)
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
        output = super().training_forward_pass(step_input)
        if step_input.n_training_steps < len(self.trace_TC):
            self.note_step(step_input.n_training_steps)
        return output

    @torch.no_grad()
    def note(self, measured: Measured, paid: Penalty, level: Level, x_ND: Tensor) -> None:
        """What the trace says of one level in this step."""
        told = (self.alpha(measured.name), paid.drive, paid.total, measured.M, measured.F, measured.l0)
        row = [value.detach().float() for value in (*told, squared_error(x_ND, level.out))]
        self._row[measured.name] = torch.stack(row)

    def note_step(self, step: int) -> None:
        """Writes what was noted of both levels."""
        empty = self.trace_TC.new_full((len(COLUMNS),), math.nan)
        phase = empty.new_full((1,), self.cfg.phase(step))
        self.trace_TC[step] = torch.cat([phase, *(self._row.get(name, empty) for name in LEVELS)])

    @property
    @override
    def trace(self) -> dict[str, Tensor]:
        """`lower.references` and `upper.references`, M₀ and F₀ [2]; and, where steps are traced, columns [T].

        Columns are `phase`, `lower.alpha`, ..., NaN where a level did not train.
        """
        names = ["phase", *(f"{level}.{column}" for level in LEVELS for column in COLUMNS)]
        columns = dict(zip(names, self.trace_TC.unbind(1), strict=True)) if len(self.trace_TC) else {}
        return columns | {f"{level}.references": self.references[i] for i, level in enumerate(LEVELS)}


@torch.no_grad()
def shrinkage(x_ND: Tensor, level: Level) -> Tensor:
    """1 - γ, γ the relative reconstruction bias of arXiv 2404.16014; between -1 and 1."""
    bias_D = level.bias.float()
    written_ND = level.out.float() - bias_D
    fit = ((x_ND.float() - bias_D) * written_ND).sum()
    return (1 - written_ND.pow(2).sum() / fit.clamp(min=1e-12)).clamp(-1, 1)


def magnitude(acts_NS: Tensor, weights_S: Tensor) -> Tensor:
    """Σ_i w_i a_i, mean over tokens."""
    return (acts_NS @ weights_S.to(acts_NS)).mean()


def frequency(acts_NS: Tensor, weights_S: Tensor, steepness: float) -> Tensor:
    """Σ_i w_i tanh(c a_i), mean over tokens: a count of what fires that has a gradient."""
    return ((steepness * acts_NS).tanh() @ weights_S.to(acts_NS)).mean()


def latent_weights(active_S: Tensor, fires_S: Tensor, alpha: Tensor, adaptation: float, saturation: float) -> Tensor:
    """Weights [S] of mean 1: 1 - adaptation, and adaptation times what grows with magnitude and with frequency.

    Args:
        active_S: running mean activation. fires_S: running share of tokens on which a latent fires.
        saturation: the share at which half of the largest weight for frequency is reached.
    """
    often_S = fires_S / (fires_S + saturation)
    grown = [part / part.mean() if part.any() else torch.ones_like(part) for part in (active_S, often_S)]
    return 1 - adaptation + adaptation * (alpha * grown[0] + (1 - alpha) * grown[1])
