"""Geometric median: the point with the least sum of distances, by Weiszfeld's iteration.

Shapes: N points, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 100
TOLERANCE = 1e-6
"""Relative change at which the iteration ends."""


@torch.no_grad()
def geometric_median(x_ND: Tensor) -> Tensor:
    """Return the geometric median [D] of points [N, D]."""
    x_ND = x_ND.float()
    median_D = x_ND.mean(0)
    for _ in range(STEPS):
        weights_N = 1 / (x_ND - median_D).norm(dim=1).clamp(min=1e-8)
        moved_D = weights_N @ x_ND / weights_N.sum()
        has_converged = (moved_D - median_D).norm() <= TOLERANCE * median_D.norm()
        median_D = moved_D
        if has_converged:
            break
    return median_D
