"""A board: rows whose numbers are comparable, the groups that are ranked, ranks, and the Pareto front over L0.

A group holds trained rows of equal width, training tokens and, within 3 %, L0. Its best row is compared with every
other by paired t-tests over the seeds that both have, at least three, with Holm's correction for their number. It and
the rows next to it that are not told apart have rank 1; the next rank begins with the best of the rest. Pure: imports
no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eval_runners.leaderboard.rows import Column, Row, metrics_of
from eval_runners.store.seeds import FEWEST_SEEDS, LEVEL, common_differences, holm, paired_p_value, paired_p_values

SAME_L0 = 1.03
"""Two L0 of which one is at most this factor above the other count as equal."""
ABOUT_L0 = 1.15
"""Rows whose L0 are within this factor stand together in tables."""


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
        """Trained rows of one width, number of training tokens and L0."""
        return list(_group_rows(self._trained, SAME_L0))

    @cached_property
    def levels(self) -> list[list[Row]]:
        """Trained rows of one width, number of training tokens and about the same L0, as tables show them."""
        return list(_group_rows(self._trained, ABOUT_L0))

    @property
    def _trained(self) -> list[Row]:
        return [row for row in self.rows if row.results and not row.untrained]

    def group(self, row: Row) -> list[Row]:
        """Rows that may be ranked with this one, itself included. Empty for untrained rows and references."""
        number = self._number_of.get(id(row))
        return [] if number is None else self.groups[number]

    def rank(self, row: Row, column: Column) -> int | None:
        """1 plus the number of rows of the group that belong to a better rank.

        None without a direction, for a metric that is not for ranking, for fewer than three seeds, and where no other
        row of the group has as many.
        """
        return self._ranks(column).get(id(row))

    def is_best(self, row: Row, column: Column) -> bool:
        """Whether it alone has rank 1, and is better than the rest of the same width, tokens and L0.

        The rest are rows without a rank, and rows within 3 % of its L0 in a neighbouring group. Their numbers must lie
        beyond its interval.
        """
        number = row.number(column)
        if self.rank(row, column) != 1 or number is None or number[1] is None:
            return False
        sign, group = _sign(column), self.group(row)
        for other in self._matched(row):
            theirs = other.number(column)
            if other is row or theirs is None:
                continue
            rank = self.rank(other, column) if self.group(other) is group else None
            if rank == 1 or (rank is None and sign * theirs[0] >= sign * number[0] - number[1]):
                return False
        return True

    def on_front(self, row: Row, column: Column) -> bool:
        """Whether no trained row of the board is better at the same or a smaller L0.

        Better is one of a better mean, by a paired t-test where they share three seeds; and one of a better mean that
        is not on the front itself.
        """
        return id(row) in self._front(column)

    @cached_property
    def _number_of(self) -> dict[int, int]:
        """Id of each trained row -> number of its group."""
        return {id(row): number for number, group in enumerate(self.groups) for row in group}

    def _matched(self, row: Row) -> Iterator[Row]:
        """Rows of a row's group, and of the groups beside it as far as they have its width, tokens and L0."""
        own = self._number_of[id(row)]
        yield from self.groups[own]
        for beside in (reversed(self.groups[:own]), self.groups[own + 1 :]):
            for group in beside:
                matched = [other for other in group if _are_matched(row, other)]
                if not matched:
                    break
                yield from matched

    def _ranks(self, column: Column) -> dict[int, int]:
        """Id of each row that has a rank -> its rank."""
        if column.key not in self._ranks_of:
            is_ranked = column.metric.better != "neither" and column.metric.trust != "not for ranking"
            groups = self.groups if is_ranked else []
            self._ranks_of[column.key] = {id(row): rank for group in groups for row, rank in _rank(group, column)}
        return self._ranks_of[column.key]

    @cached_property
    def _ranks_of(self) -> dict[str, dict[int, int]]:
        return {}

    def _front(self, column: Column) -> set[int]:
        """Ids of the rows on the Pareto front."""
        if column.key not in self._fronts:
            rows = [row for group in self.groups for row in group if row.l0 is not None and row.number(column)]
            of_interest = column.metric.against_l0 and len(rows) > 1
            self._fronts[column.key] = {id(row) for row in _front(rows, column)} if of_interest else set()
        return self._fronts[column.key]

    @cached_property
    def _fronts(self) -> dict[str, set[int]]:
        return {}


def _sign(column: Column) -> int:
    return -1 if column.metric.better == "lower" else 1


def _best_first(rows: Iterable[Row], column: Column) -> list[Row]:
    sign = _sign(column)
    means = [(sign * number[0], row) for row in rows if (number := row.number(column))]
    return [row for _, row in sorted(means, key=lambda item: -item[0])]


def _rank(group: Sequence[Row], column: Column) -> Iterable[tuple[Row, int]]:
    """Ranks of the rows of a group that have enough seeds, if there are two."""
    import numpy as np

    rows = _best_first((row for row in group if len(row.by_seed(column)) >= FEWEST_SEEDS), column)
    if len(rows) < 2:
        return
    seeds = sorted({seed for row in rows for seed in row.by_seed(column)})
    values_RS = np.array([[row.by_seed(column).get(seed, np.nan) for seed in seeds] for row in rows])
    first = 0
    while first < len(rows):
        told_apart = holm(paired_p_values(values_RS[first + 1 :], values_RS[first]).tolist())
        n_equal = 1 + (told_apart.index(True) if True in told_apart else len(told_apart))
        for row in rows[first : first + n_equal]:
            yield row, first + 1
        first += n_equal


def _front(rows: Sequence[Row], column: Column) -> Iterable[Row]:
    """Rows that no other is better than at the same or a smaller L0, the best first.

    Each is compared with the best row at the same or a smaller L0. One that is not told apart from it stays on the
    front, unless a row between the two, of a better mean than its own, left it.
    """
    done: list[Row] = []
    lowest_off = float("inf")  # L0 of the sparsest row that is not on the front, of those with better means
    for row in _best_first(rows, column):
        assert row.l0 is not None, "rows without an L0 are not on the front"
        same_or_less = SAME_L0 * row.l0
        best = next((other for other in done if other.l0 is not None and other.l0 <= same_or_less), None)
        done.append(row)
        if lowest_off <= same_or_less or (best is not None and _differ(row, best, column)):
            lowest_off = min(lowest_off, row.l0)
        else:
            yield row


def _differ(row: Row, better: Row, column: Column) -> bool:
    """Whether two rows differ by a test, or by their means where they share too few seeds for one."""
    differences = common_differences(row.by_seed(column), better.by_seed(column))
    if len(differences) >= FEWEST_SEEDS:
        return paired_p_value(differences) <= LEVEL
    mine, theirs = row.number(column), better.number(column)
    return mine is not None and theirs is not None and mine[0] != theirs[0]


def _are_matched(row: Row, other: Row) -> bool:
    """Whether two rows have the same width, training tokens and, within `SAME_L0`, L0."""
    least, most = sorted((row.l0 or 0.0, other.l0 or 0.0))
    same_sizes = (row.d_sae, row.training_tokens) == (other.d_sae, other.training_tokens)
    return same_sizes and most <= SAME_L0 * least


def _group_rows(rows: Sequence[Row], factor: float) -> Iterable[list[Row]]:
    """Rows of one width, training tokens and, within a factor, L0.

    A row for which one of them is unknown is a group of its own.
    """
    by_sizes: dict[tuple[int, int], list[Row]] = {}
    alone = []
    for row in rows:
        if row.d_sae is None or row.training_tokens is None or row.l0 is None:
            alone.append([row])
        else:
            by_sizes.setdefault((row.d_sae, row.training_tokens), []).append(row)
    for _, same_size in sorted(by_sizes.items()):
        yield from _split_by_l0(sorted(same_size, key=lambda row: (row.l0, row.label)), factor)
    yield from alone


def _split_by_l0(rows: list[Row], factor: float) -> Iterable[list[Row]]:
    """Cut rows in order of L0 at their widest gaps, until the L0 of each part are within a factor."""
    levels = [row.l0 or 0.0 for row in rows]
    if levels[-1] <= factor * levels[0]:
        yield rows
        return
    cut = max(range(1, len(levels)), key=lambda i: levels[i] / levels[i - 1] if levels[i - 1] else float("inf"))
    yield from _split_by_l0(rows[:cut], factor)
    yield from _split_by_l0(rows[cut:], factor)
