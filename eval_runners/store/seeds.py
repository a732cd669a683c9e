"""Means over seeds: intervals and paired tests by Student's t, and Holm's correction for many tests. Imports no torch.

Source: Student, Biometrika 1908; Holm, Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import inf, sqrt
from statistics import fmean, stdev

LEVEL = 0.05
"""Probability of a false difference; intervals hold the mean with 1 - LEVEL."""
FEWEST_SEEDS = 3
"""Seeds that two SAEs must share for a test of their difference."""


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


def paired_p_value(differences: Sequence[float]) -> float:
    """Two-sided p value of the paired t-test that the differences of two SAEs, one per seed, are 0 on average.

    Args:
        differences: at least two. If all are equal, p is 0, or 1 if they are 0.
    """
    from scipy.special import stdtr

    mean, error = fmean(differences), stdev(differences) / sqrt(len(differences))
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(len(differences) - 1, -abs(mean) / error))


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
