"""Explained variance over a stream of tokens. Shapes: N tokens, D = d_in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ExplainedVariance:
    """Explained variance over a stream of tokens: 1 - Σ|x - x̂|² / Σ|x - mean(x)|², summed in float64."""

    count: int = 0
    sum_D: Tensor | float = 0.0
    squares: float = 0.0
    errors: float = 0.0

    def add(self, x_ND: Tensor, error_ND: Tensor) -> None:
        """Add tokens.

        Args:
            x_ND: activations.
            error_ND: x - x̂, or x̂ - x.
        """
        x = x_ND.double()
        self.count += len(x)
        self.sum_D = self.sum_D + x.sum(0)
        self.squares += x.pow(2).sum().item()
        self.errors += error_ND.double().pow(2).sum().item()

    @property
    def total(self) -> float:
        """Σ|x - mean(x)|²."""
        return self.squares - (torch.as_tensor(self.sum_D).pow(2).sum() / max(self.count, 1)).item()

    @property
    def unexplained(self) -> float:
        """Squared error relative to predicting the mean: 1 - explained variance. NaN where activations never vary."""
        return self.errors / self.total if self.total > 0 else float("nan")

    @property
    def value(self) -> float:
        """The explained variance. NaN where activations never vary."""
        return 1 - self.unexplained
