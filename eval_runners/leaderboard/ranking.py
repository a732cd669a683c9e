"""A board: rows whose numbers are comparable, those that may be ranked, ranks, and the Pareto front over L0.

Trained rows of equal width, training tokens and, within 2 %, L0 are compared pair by pair: paired t-tests over the
seeds that both have, at least three, with Holm's correction for the comparisons of a column. Pure: imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from eval_runners.leaderboard.rows import Column, Row, metrics_of
from eval_runners.store.seeds import FEWEST_SEEDS, LEVEL, holm, paired_p_value

SAME_L0 = 1.02
"""Two L0 of which one is at most this factor above the other count as equal."""


@dataclass(frozen=True)
class Board:
    """Rows of one language model and hook, whose results of each evaluation were made under the same conditions."""

    model: str
    hook_name: str | None
    number: int
    """1 for the board with most results of that model and hook; others hold those made under other conditions."""
    conditions: dict[str, dict[str, Any]]
    """Evaluation -> conditions that all its results on this board have in common."""
    rows: list[Row]
    """Trained ones, group by group, then references, then the untrained."""
    chosen: tuple[Column, ...] = ()
    """Columns to show. Empty: those whose metric has a short head."""

    @cached_property
    def columns(self) -> list[Column]:
        """Every column in which a row has a number."""
        known = [Column(evaluation, metric) for evaluation in self.conditions for metric in metrics_of(evaluation)]
        return [column for column in known if any(row.number(column) is not None for row in self.rows)]

    @property
    def shown(self) -> list[Column]:
        """The columns that tables show."""
        return list(self.chosen) or [column for column in self.columns if column.metric.short]

    @cached_property
    def groups(self) -> list[list[Row]]:
        """Trained rows of one width and number of training tokens, each of about the L0 of the next."""
        return list(_group_rows([row for row in self.rows if row.results and not row.untrained]))

    def matched(self, row: Row) -> list[Row]:
        """The other rows that may be ranked with this one. Empty for untrained rows and references."""
        return [other for other in self._group_of.get(id(row), []) if other is not row and _have_same_l0(row, other)]

    def rank(self, row: Row, column: Column) -> int | None:
        """1 plus the number of matched rows that are better by a test.

        None without a direction, for a metric that is not for ranking, and where no matched row shares enough seeds.
        """
        tests = self._tests(column).get(id(row))
        return None if tests is None else 1 + sum(is_better for is_better in tests.values())

    def is_best(self, row: Row, column: Column) -> bool:
        """Whether it is better, by tests, than every matched row; than one that shares too few seeds, by its mean."""
        if self.rank(row, column) != 1:
            return False
        number, every = row.number(column), self._tests(column)
        assert number is not None, "a row with a rank has a number"
        for other in self.matched(row):
            if id(row) in (tests := every.get(id(other), {})):
                if not tests[id(row)]:
                    return False
            elif (theirs := other.number(column)) and _is_better(theirs[0], number[0], column):
                return False
        return True

    def on_front(self, row: Row, column: Column) -> bool:
        """Whether no trained row of the board is better at the same or a smaller L0.

        Better is one of a better mean, by a paired t-test where they share enough seeds.
        """
        number, l0 = row.number(column), row.l0
        if not column.metric.against_l0 or number is None or l0 is None or id(row) not in self._group_of:
            return False
        points = self._points_over_l0(column)
        others = [other for x, _, other in points if x <= SAME_L0 * l0 and other is not row]
        better = (other for x, y, other in points if x <= SAME_L0 * l0 and _is_better(y, number[0], column))
        return len(points) > 1 and not any(_differ(row, other, column, LEVEL / len(others)) for other in better)

    @cached_property
    def _group_of(self) -> dict[int, list[Row]]:
        return {id(row): group for group in self.groups for row in group}

    def _tests(self, column: Column) -> dict[int, dict[int, bool]]:
        """Id of each row that was compared -> id of each row that it was compared with -> whether that is better."""
        if column.key not in self._tests_of:
            is_ranked = column.metric.better != "neither" and column.metric.trust != "not for ranking"
            groups = self.groups if is_ranked else []
            self._tests_of[column.key] = dict(item for group in groups for item in _compare(group, column).items())
        return self._tests_of[column.key]

    @cached_property
    def _tests_of(self) -> dict[str, dict[int, dict[int, bool]]]:
        return {}

    def _points_over_l0(self, column: Column) -> list[tuple[float, float, Row]]:
        """L0 and mean of every trained row."""
        if column.key not in self._points:
            self._points[column.key] = [
                (other.l0, number[0], other)
                for group in self.groups
                for other in group
                if other.l0 is not None and (number := other.number(column))
            ]
        return self._points[column.key]

    @cached_property
    def _points(self) -> dict[str, list[tuple[float, float, Row]]]:
        return {}


def _compare(group: Sequence[Row], column: Column) -> dict[int, dict[int, bool]]:
    """Test every pair of matched rows of a group, as `Board._tests` gives it."""
    pairs = [
        (row, other, differences)
        for row, other in combinations((row for row in group if row.number(column)), 2)
        if _have_same_l0(row, other) and len(differences := _differences(row, other, column)) >= FEWEST_SEEDS
    ]
    significant = holm([paired_p_value(differences) for _, _, differences in pairs])
    tests: dict[int, dict[int, bool]] = {}
    for (row, other, differences), is_real in zip(pairs, significant, strict=True):
        is_better = _is_better(sum(differences), 0, column)
        tests.setdefault(id(row), {})[id(other)] = is_real and not is_better
        tests.setdefault(id(other), {})[id(row)] = is_real and is_better
    return tests


def _differences(row: Row, other: Row, column: Column) -> list[float]:
    """Number of the one minus number of the other, for each seed that both have."""
    here, there = row.by_seed(column), other.by_seed(column)
    return [here[seed] - there[seed] for seed in here.keys() & there.keys()]


def _differ(row: Row, other: Row, column: Column, level: float) -> bool:
    """Whether two rows differ by a test; rows that share too few seeds for one are taken to."""
    differences = _differences(row, other, column)
    return len(differences) < FEWEST_SEEDS or paired_p_value(differences) <= level


def _is_better(value: float, than: float, column: Column) -> bool:
    return value < than if column.metric.better == "lower" else value > than


def _have_same_l0(row: Row, other: Row) -> bool:
    least, most = sorted((row.l0 or 0.0, other.l0 or 0.0))
    return most <= SAME_L0 * least


def _group_rows(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows of one width and training tokens, in order of L0, cut where the next L0 is not the same.

    A row for which one of them is unknown is a group of its own.
    """
    known = [row for row in rows if None not in _matched_by(row)]
    group: list[Row] = []
    for row in sorted(known, key=lambda row: (*_matched_by(row), row.label)):
        if group and (_matched_by(row)[:2] != _matched_by(group[-1])[:2] or not _have_same_l0(group[-1], row)):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
    yield from ([row] for row in rows if row not in known)


def _matched_by(row: Row) -> tuple[Any, Any, Any]:
    return row.d_sae, row.training_tokens, row.l0
