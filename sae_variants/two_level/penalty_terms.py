"""Terms of the penalty on magnitude and frequency, as pure functions, and what a level measures in a step.

Shapes: N tokens, S latents of a level, D = d_in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_variants.two_level.levels import Level
from sae_variants.two_level.saved import LOWER

LEVELS = (LOWER, "upper")


@dataclass
class Measured:
    """Measurements of one level in one step; only M and F have a gradient."""

    name: str
    """`lower` or `upper`."""
    M: Tensor
    """Magnitude in units of its reference."""
    F: Tensor
    """Frequency in units of its reference."""
    l0: Tensor
    """Latents that fire per token."""
    shrinkage: Tensor
    """Shrinkage of the level's output relative to the least-squares scale."""

    @property
    def index(self) -> int:
        """Index of the level in `LEVELS`."""
        return LEVELS.index(self.name)


@dataclass
class Penalty:
    """Penalty that a variant derives from the measurements of a level."""

    loss: Tensor
    """λ_M · M + λ_F · F and any term that the multipliers need."""
    total: Tensor
    """λ_M + λ_F."""
    drive: Tensor
    """Drive on α: positive values raise it. Ignored while α is frozen; the scale depends on the variant."""


@torch.no_grad()
def shrinkage(x_ND: Tensor, level: Level) -> Tensor:
    """Return s such that x̂ - b, scaled by 1 / (1 - s), is nearest to x - b; between -1 and 1.

    1 - s is the relative reconstruction bias of arXiv 2404.16014.
    """
    bias_D = level.bias.float()
    output_ND = level.out.float() - bias_D
    fit = ((x_ND.float() - bias_D) * output_ND).sum()
    return (1 - output_ND.pow(2).sum() / fit.clamp(min=1e-12)).clamp(-1, 1)


def magnitude(acts_NS: Tensor, weights_S: Tensor) -> Tensor:
    """Return Σ_i w_i a_i, averaged over tokens."""
    return (acts_NS @ weights_S.to(acts_NS)).mean()


def frequency(acts_NS: Tensor, weights_S: Tensor, steepness: float) -> Tensor:
    """Return Σ_i w_i tanh(c a_i), averaged over tokens: a differentiable count of the latents that fire."""
    return ((steepness * acts_NS).tanh() @ weights_S.to(acts_NS)).mean()


def latent_weights(active_S: Tensor, fires_S: Tensor, alpha: Tensor, adaptation: float, saturation: float) -> Tensor:
    """Return the weights of latents in the penalty.

    A weight is 1 - adaptation, plus adaptation times a mean of a part that grows with magnitude, of weight α, and a
    part that grows with frequency, of weight 1 - α.

    Args:
        active_S: Running mean activation [S].
        fires_S: Running share of tokens on which a latent fires [S].
        alpha: α, between 0 and 1.
        adaptation: Share of the weight that adapts.
        saturation: Share of tokens at which half of the largest weight for frequency is reached.

    Returns:
        Weights [S] of mean 1.
    """
    often_S = fires_S / (fires_S + saturation)
    parts = [torch.where(part.any(), part / part.mean(), 1.0) for part in (active_S, often_S)]
    return 1 - adaptation + adaptation * (alpha * parts[0] + (1 - alpha) * parts[1])
