"""Statistics that several measures share: means, bootstrap intervals, random directions, matching. Shapes: D = d_in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

RESAMPLES = 2000
"""Bootstrap resamples behind an interval."""


def known_values(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers: None, NaN and infinity are left out."""
    return [value for value in values if value is not None and math.isfinite(value)]


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are numbers, or None where no value is."""
    known = known_values(values)
    return sum(known) / len(known) if known else None


def bootstrap_interval(values: np.ndarray, seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one number per latent, at least one.
        seed: seed of the resamples. Equal lengths and seeds draw equal resamples.
        confidence: share of the resampled means inside the interval.

    Returns:
        Lower and upper end.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if len(values) == 1:  # SciPy refuses a single value, whose resamples are all equal
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def random_direction(like_D: Tensor, generator: torch.Generator) -> Tensor:
    """A direction [D] drawn from an isotropic distribution, with the norm of a given vector."""
    import torch

    direction_D = torch.randn(len(like_D), generator=generator).to(like_D)
    return direction_D * (like_D.norm() / direction_D.norm())


def match_rows(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match rows of two matrices one to one so that the sum of the cosines is largest (Hungarian algorithm).

    Args:
        rows: [n, D]. The cosine of a zero row is 0.
        others: [m, D].

    Returns:
        Indices into rows, indices into others, and the cosine of each of the min(n, m) pairs.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    norms = [np.linalg.norm(side, axis=1, keepdims=True) for side in (rows, others)]
    units = [side / np.where(norm > 0, norm, 1) for side, norm in zip((rows, others), norms, strict=True)]
    cosines = units[0] @ units[1].T
    left, right = linear_sum_assignment(cosines, maximize=True)
    return left, right, cosines[left, right]
