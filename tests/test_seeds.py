"""Intervals and tests over seeds, against SciPy's and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from eval_runners.store.seeds import (
    half_width,
    holm,
    least_reliable_difference,
    paired_p_value,
    paired_p_values,
    t_quantile,
)

VALUES, OTHERS = [0.81, 0.84, 0.80, 0.86, 0.83], [0.80, 0.85, 0.77, 0.84, 0.80]


def test_an_interval_is_student_s():
    low, high = stats.t.interval(0.95, 4, loc=sum(VALUES) / 5, scale=stats.sem(VALUES))
    assert half_width(VALUES) == pytest.approx((high - low) / 2)
    assert half_width([1.0]) is None
    assert half_width([1.0, 1.0]) == 0
    assert [round(t_quantile(n), 2) for n in (2, 3, 5)] == [12.71, 4.30, 2.78]


def test_a_paired_test_is_scipy_s():
    differences = [value - other for value, other in zip(VALUES, OTHERS, strict=True)]
    assert paired_p_value(differences) == pytest.approx(stats.ttest_rel(VALUES, OTHERS).pvalue)
    assert paired_p_value([-d for d in differences]) == pytest.approx(paired_p_value(differences))
    assert (paired_p_value([0.1] * 3), paired_p_value([0.0] * 3)) == (0.25, 1), (
        "by the sign test where nothing scatters"
    )


def test_several_saes_are_tested_at_once():
    nan = float("nan")
    rows = np.array([VALUES, [*VALUES[:3], nan, nan], [0.7, 0.8, nan, nan, nan], OTHERS])
    p = paired_p_values(rows, np.array(OTHERS))
    assert p[0] == pytest.approx(stats.ttest_rel(VALUES, OTHERS).pvalue)
    assert p[1] == pytest.approx(stats.ttest_rel(VALUES[:3], OTHERS[:3]).pvalue)
    assert p[2:].tolist() == [1, 1], "two common seeds; the same SAE"


def test_holm_by_hand():
    # sorted: .01 <= .05 / 4, .015 <= .05 / 3, .03 > .05 / 2: the rest are not significant, .04 <= .05 included
    assert holm([0.04, 0.01, 0.03, 0.015]) == [False, True, False, True]
    assert holm([0.04]) == [True]
    assert holm([]) == []


def test_a_difference_is_significant_exactly_from_the_least_reliable_one_on():
    spread, n = 0.02, 5
    least = least_reliable_difference(spread, n)
    shape = [-1.0, -0.5, 0.0, 0.5, 1.0]
    scale = spread / stats.tstd(shape)
    assert paired_p_value([1.001 * least + scale * x for x in shape]) < 0.05
    assert paired_p_value([0.999 * least + scale * x for x in shape]) > 0.05
    assert math.isinf(least_reliable_difference(spread, 1))
