"""Means over seeds: intervals and paired tests by Student's t, and Holm's correction for many tests. Imports no torch.

Source: Student, Biometrika 1908; Holm, Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import inf, sqrt
from statistics import stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
"""Probability of a false difference; intervals hold the mean with 1 - LEVEL."""
FEWEST_SEEDS = 3
"""Seeds that two SAEs must share for a test of their difference."""
ROUNDING = 1e-12
"""Relative size up to which a difference is taken for a rounding error."""


@cache
def t_quantile(n: int) -> float:
    """Half of the `1 - LEVEL` interval of a mean of n numbers, in standard errors: 4.30 for three, 2.78 for five."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 1 - LEVEL / 2))


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean, by Student's t with n - 1 degrees of freedom; None for one number."""
    if len(values) < 2:
        return None
    return t_quantile(len(values)) * stdev(values) / sqrt(len(values))


def common_differences(here: Mapping[int, float], there: Mapping[int, float]) -> list[float]:
    """Number of the one minus number of the other, for each seed that both have."""
    return [here[seed] - there[seed] for seed in sorted(here.keys() & there.keys())]


def paired_p_values(values_RS: np.ndarray, other_S: np.ndarray) -> np.ndarray:
    """Two-sided p values of paired t-tests of several SAEs against one, over the seeds that both have.

    Where all differences are equal there is no spread to compare with; then p is that of the sign test, 2^(1 - n).

    Args:
        values_RS: numbers of R SAEs, by seed; NaN where an SAE lacks a seed.
        other_S: numbers of the one, by seed.

    Returns:
        p [R]; 1 for an SAE with fewer than `FEWEST_SEEDS` common seeds, and for one that does not differ.
    """
    import numpy as np
    from scipy.special import stdtr

    differences_RS = values_RS - other_S
    n_R = np.isfinite(differences_RS).sum(1)
    enough_R = n_R >= FEWEST_SEEDS
    differences_RS = np.where(enough_R[:, None], differences_RS, 0.0)
    mean_R = np.nanmean(differences_RS, axis=1)
    squares_R = np.nansum((differences_RS - mean_R[:, None]) ** 2, axis=1)
    n_R = np.maximum(n_R, 2)
    error_R = np.sqrt(squares_R / (n_R - 1) / n_R)
    scale = max(float(np.nanmax(np.abs(values_RS), initial=0)), float(np.nanmax(np.abs(other_S), initial=0)))
    spreads_R = error_R > ROUNDING * scale
    p_R = 2 * stdtr(n_R - 1, -np.abs(mean_R) / np.where(spreads_R, error_R, 1.0))
    p_R = np.where(spreads_R, p_R, 2.0 ** (1 - n_R))
    return np.where(enough_R & (np.abs(mean_R) > ROUNDING * scale), p_R, 1.0)


def paired_p_value(differences: Sequence[float]) -> float:
    """`paired_p_values` of the differences of two SAEs, one per seed."""
    import numpy as np

    return float(paired_p_values(np.array([differences], float), np.zeros(len(differences)))[0])


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several tests are significant, so that a false one is among them with probability `LEVEL` at most."""
    significant = [False] * len(p_values)
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > LEVEL / (len(p_values) - done):
            break
        significant[index] = True
    return significant


def least_reliable_difference(spread: float, n: int) -> float:
    """Smallest difference of two means over n seeds that a paired t-test takes for real.

    Args:
        spread: standard deviation, over seeds, of the difference of two SAEs of the same seed.
        n: number of seeds; infinity for fewer than two.
    """
    return t_quantile(n) * spread / sqrt(n) if n > 1 else inf
