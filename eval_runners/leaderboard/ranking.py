"""A board: rows whose numbers are comparable, the groups that may be ranked, ranks, and the Pareto front over L0.

Ranks are given among trained rows of equal width, training tokens and, within 10 %, L0, and only where intervals of one
standard error do not overlap. Pure: imports no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eval_runners.leaderboard.rows import Column, Row, metrics_of

EQUAL_L0 = 1.02
"""On the Pareto front, an L0 at most this factor above another counts as equal to it."""
SAME_L0 = 1.1
"""Rows whose L0 is at most this factor above the smallest of their group are ranked together."""


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

    def group(self, row: Row) -> list[Row]:
        """Rows that may be ranked with this one, itself included. Empty for untrained rows and references."""
        return self._group_of.get(id(row), [])

    @cached_property
    def groups(self) -> list[list[Row]]:
        """Trained rows of one width, number of training tokens and L0."""
        return list(_group_rows([row for row in self.rows if row.results and not row.untrained]))

    def rank(self, row: Row, column: Column) -> int | None:
        """1 plus the number of rows of the group that are better with an interval that does not overlap.

        None without an interval, without a direction, or in a group of one.
        """
        number = row.number(column)
        if number is None or number[1] is None or column.metric.better == "neither" or len(self.group(row)) < 2:
            return None
        sign = 1 if column.metric.better == "higher" else -1
        ends = self._worse_ends(self.group(row), column, sign)
        if len(ends) < 2:
            return None
        return 1 + len(ends) - bisect_right(ends, sign * number[0] + number[1])

    def on_front(self, row: Row, column: Column) -> bool:
        """Whether no trained row of the board is better at the same or a smaller L0, beyond one standard error."""
        number, l0 = row.number(column), row.l0
        if not column.metric.against_l0 or number is None or l0 is None or not self.group(row):
            return False
        points, upper = self._points_over_l0(column), number[0] + (number[1] or 0.0)
        return len(points) > 1 and not any(x <= EQUAL_L0 * l0 and y > upper for x, y in points)

    @cached_property
    def _group_of(self) -> dict[int, list[Row]]:
        return {id(row): group for group in self.groups for row in group}

    def _worse_ends(self, group: list[Row], column: Column, sign: int) -> list[float]:
        """The worse ends of the intervals of a group, the worst first."""
        key = (id(group), column.key)
        if key not in self._ends:
            numbers = (row.number(column) for row in group)
            self._ends[key] = sorted(sign * n[0] - n[1] for n in numbers if n and n[1] is not None)
        return self._ends[key]

    @cached_property
    def _ends(self) -> dict[tuple[int, str], list[float]]:
        return {}

    def _points_over_l0(self, column: Column) -> list[tuple[float, float]]:
        """L0 and the lower end of the interval of every trained row."""
        if column.key not in self._points:
            self._points[column.key] = [
                (other.l0, number[0] - (number[1] or 0.0))
                for group in self.groups
                for other in group
                if other.l0 is not None and (number := other.number(column))
            ]
        return self._points[column.key]

    @cached_property
    def _points(self) -> dict[str, list[tuple[float, float]]]:
        return {}


def _group_rows(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows of one width, training tokens and L0. A row for which one of them is unknown is a group of its own."""
    known = [row for row in rows if None not in _matched_by(row)]
    group: list[Row] = []
    for row in sorted(known, key=lambda row: (*_matched_by(row), row.label)):
        *sizes, l0 = _matched_by(row)
        *group_sizes, least_l0 = _matched_by(group[0] if group else row)
        if group and (sizes != group_sizes or l0 > SAME_L0 * least_l0):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
    yield from ([row] for row in rows if row not in known)


def _matched_by(row: Row) -> tuple[Any, Any, Any]:
    return row.d_sae, row.training_tokens, row.l0
