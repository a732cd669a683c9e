"""Results -> boards: rows whose numbers may stand side by side, what is best among them, and why not.

A board holds the results of one language model and hook. Of each evaluation it holds those made under the same
conditions (text, context, tokens, settings, data type); results under other conditions go to another board. Ranks are
given among trained rows of equal width, training tokens and, within 10 %, L0, and only where intervals of one standard
error part. Pure: imports no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from eval_runners.contract.contract import value_at
from eval_runners.contract.registry import USUAL_EVALUATIONS
from eval_runners.leaderboard.rows import (
    OLDER,
    Column,
    Number,
    Row,
    column_key,
    metrics_of,
    sae_identity,
    to_sorted_json,
    written_at,
)
from eval_runners.store.read import (
    Result,
    conditions_of,
    describe_differences,
    provenance_of,
    weight_hash_of,
)

AS_LITTLE = 1.02
"""L0 that is at most so many times another's counts as little as it."""
SAME_L0 = 1.1
"""Rows whose L0 is at most so many times the least of their group are ranked together."""


@dataclass(frozen=True)
class Board:
    model: str
    hook_name: str | None
    number: int
    """1 for the board with most results of that model and hook; others hold those made under other conditions."""
    conditions: dict[str, dict[str, Any]]
    """Evaluation -> what all its results on this board have in common."""
    rows: list[Row]
    """Trained ones, group by group, then what is no SAE, then the untrained."""

    @cached_property
    def columns(self) -> list[Column]:
        every = [(evaluation, metric) for evaluation in self.conditions for metric in metrics_of(evaluation)]
        return [column for column in every if any(row.number(column) is not None for row in self.rows)]

    @property
    def shown(self) -> list[Column]:
        """The columns with a short head."""
        return [column for column in self.columns if column[1].short]

    def group(self, row: Row) -> list[Row]:
        """The rows that it may be ranked with, itself among them; none for what is untrained or no SAE."""
        return self._group_of.get(id(row), [])

    @cached_property
    def _group_of(self) -> dict[int, list[Row]]:
        return {id(row): group for group in self.groups for row in group}

    @cached_property
    def groups(self) -> list[list[Row]]:
        trained = [row for row in self.rows if row.results and not row.untrained]
        return list(_groups(trained))

    def rank(self, row: Row, column: Column) -> int | None:
        """1 and how many of the group are better with an interval that parts; None without an interval."""
        own = row.number(column)
        if own is None or own[1] is None or column[1].better == "neither" or len(self.group(row)) < 2:
            return None
        sign = 1 if column[1].better == "higher" else -1
        ends = self._lower_ends(self.group(row), column, sign)
        if len(ends) < 2:
            return None
        return 1 + len(ends) - bisect_right(ends, sign * own[0] + own[1])

    def on_front(self, row: Row, column: Column) -> bool:
        """Whether no trained row of the board has more, by intervals that part, with as little L0 (Pareto)."""
        own, l0 = row.number(column), row.l0
        if not column[1].against_l0 or own is None or l0 is None or not self.group(row):
            return False
        every = self._over_l0(column)
        return len(every) > 1 and not any(a <= AS_LITTLE * l0 and b > own[0] + (own[1] or 0.0) for a, b in every)

    def _lower_ends(self, group: list[Row], column: Column, sign: int) -> list[float]:
        """The worse ends of the intervals of a group, ascending in merit."""
        at = (id(group), column_key(column))
        if at not in self._ends:
            numbers = (row.number(column) for row in group)
            self._ends[at] = sorted(sign * n[0] - n[1] for n in numbers if n and n[1] is not None)
        return self._ends[at]

    @cached_property
    def _ends(self) -> dict[tuple[int, str], list[float]]:
        return {}

    def _over_l0(self, column: Column) -> list[tuple[float, float]]:
        """L0 and the lower end of the interval of every trained row."""
        if (name := column_key(column)) not in self._fronts:
            self._fronts[name] = [
                (other.l0, number[0] - (number[1] or 0.0))
                for group in self.groups
                for other in group
                if other.l0 is not None and (number := other.number(column))
            ]
        return self._fronts[name]

    @cached_property
    def _fronts(self) -> dict[str, list[tuple[float, float]]]:
        return {}


def _groups(rows: list[Row]) -> Iterable[list[Row]]:
    """Rows of one width, training tokens and, within 10 % of the least, L0; what is not known matches nothing."""
    group: list[Row] = []
    known = [row for row in rows if None not in _matched_by(row)]
    for row in sorted(known, key=lambda row: (*_matched_by(row), row.label)):
        *same, l0 = _matched_by(row)
        *of_group, least = _matched_by(group[0] if group else row)
        if group and (same != of_group or l0 > SAME_L0 * least):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
    yield from ([row] for row in rows if row not in known)


def _matched_by(row: Row) -> tuple[Any, Any, Any]:
    return row.d_sae, row.training_tokens, row.l0


def make_boards(results: list[Result]) -> list[Board]:
    """Every result on a board; of several of the same SAE, seed and conditions, the newest."""
    places: dict[tuple[str, str | None], dict[str, list[_Unit]]] = {}
    for unit in _units(results):
        places.setdefault((unit.model, unit.hook_name), {}).setdefault(unit.evaluation, []).append(unit)
    found: list[Board] = []
    for (model, hook_name), by_evaluation in sorted(places.items(), key=str):
        order = sorted(by_evaluation, key=_place)
        clusters = {name: _clusters(by_evaluation[name]) for name in order}
        for number in range(max(map(len, clusters.values()))):
            chosen = {name: parts[number] for name, parts in clusters.items() if number < len(parts)}
            found.append(_board(model, hook_name, number + 1, chosen))
    return found


def _place(evaluation: str) -> tuple[int, str]:
    usual = list(USUAL_EVALUATIONS)
    return (usual.index(evaluation) if evaluation in usual else len(usual)), evaluation


def select_evaluations(board: Board, evaluations: list[str]) -> Board:
    """The columns of these evaluations, in this order, and the rows that have any of them; what is known of a row from
    other evaluations, such as its L0, stays known."""
    conditions = {name: board.conditions[name] for name in evaluations if name in board.conditions}
    narrow = replace(board, conditions=conditions)
    return _ordered(
        replace(narrow, rows=[r for r in board.rows if any(r.number(c) is not None for c in narrow.columns)])
    )


def comparable_rows(asked: list[Result], others: list[Result]) -> list[Row]:
    """What may stand in one table with results just asked for: rows on their board, of their width and training tokens
    or untrained, over the same seeds, that differ from the target's recipe in nothing that they do not."""
    seeds = {provenance_of(result).get("seed") for result in asked}
    same_seeds = [result for result in others if provenance_of(result).get("seed") in seeds]
    hashes = {weight_hash_of(result) for result in asked}
    for board in make_boards([*asked, *same_seeds]):
        ours = [row for row in board.rows if hashes & row.weight_hashes]
        if ours:
            learnt = [row for row in ours if row.training_tokens] or ours
            widths, tokens = {row.d_sae for row in ours}, {0, *(row.training_tokens for row in learnt)}
            whole = [row for row in board.rows if row.results and row not in ours and set(row.seeds) == seeds - {None}]
            fields = {word for row in ours for word in row.fields.split()}
            return [
                row
                for row in whole
                if row.d_sae in widths and row.training_tokens in tokens and set(row.fields.split()) <= fields
            ]
    return []


@dataclass(frozen=True)
class _Unit:
    """Results of one evaluation, under the same conditions, of one kind of SAE: one per seed."""

    model: str
    hook_name: str | None
    evaluation: str
    conditions: dict[str, Any]
    identity: tuple[Any, ...]
    row: Row


def _units(results: list[Result]) -> list[_Unit]:
    found: dict[tuple[Any, ...], dict[Any, Result]] = {}
    about: dict[tuple[Any, ...], tuple[str, str | None, str, dict[str, Any]]] = {}
    for result in results:
        conditions = conditions_of(result)
        evaluation = conditions.pop("evaluation")
        model = str(conditions.pop("model_name", None) or "unknown model").rpartition("/")[2]
        hook_name = conditions.pop("hook_name")
        at = (model, hook_name, evaluation, to_sorted_json(conditions), sae_identity(result))
        about[at] = (model, hook_name, evaluation, conditions)
        seed = provenance_of(result).get("seed")
        of_seed = found.setdefault(at, {})
        if seed not in of_seed or written_at(of_seed[seed]) < written_at(result):
            of_seed[seed] = result
    units = []
    for at, by_seed in found.items():
        one = [by_seed[seed] for seed in sorted(by_seed, key=str)]
        label, d_sae, tokens, _ = at[-1]
        units.append(_Unit(*about[at], at[-1], Row(label, d_sae, tokens, {at[2]: one})))
    return units


def _clusters(units: list[_Unit]) -> list[list[_Unit]]:
    """Units under the same conditions, the largest cluster first; what one does not say separates nothing."""
    clusters: list[list[_Unit]] = []
    for unit in sorted(
        units, key=lambda unit: (-sum(v is not None for v in unit.conditions.values()), unit.identity[0])
    ):
        for cluster in clusters:
            if not any(describe_differences(member.conditions, unit.conditions) for member in cluster):
                cluster.append(unit)
                break
        else:
            clusters.append([unit])
    return sorted(clusters, key=lambda cluster: (-len(cluster), to_sorted_json(cluster[0].conditions)))


def _board(model: str, hook_name: str | None, number: int, chosen: dict[str, list[_Unit]]) -> Board:
    rows: dict[tuple[Any, ...], Row] = {}
    for units in chosen.values():
        for unit in units:
            row = rows.get(unit.identity, replace(unit.row, results={}))
            rows[unit.identity] = replace(row, results={**row.results, **unit.row.results})
    named = _told_apart(list(rows.values()))
    conditions = {name: units[0].conditions for name, units in chosen.items()}
    return _ordered(Board(model, hook_name, number, conditions, [*named, *_references(chosen)]))


def _ordered(board: Board) -> Board:
    """Trained rows group by group, the best first; then what is no SAE; then the untrained."""
    trained = [row for group in board.groups for row in _best_first(group, board.shown)]
    references = [row for row in board.rows if not row.results]
    untrained = sorted((row for row in board.rows if row.untrained), key=lambda row: row.label)
    return replace(board, rows=[*trained, *references, *untrained])


def _told_apart(rows: list[Row]) -> list[Row]:
    """Rows of one label that are different SAEs, trained by different versions of a recipe: the older ones numbered."""
    newest_first = sorted(rows, key=lambda row: -max(map(written_at, row.all_results)))
    seen: dict[tuple[Any, ...], int] = {}
    named = []
    for row in newest_first:
        at = (row.label, row.d_sae, row.training_tokens)
        seen[at] = seen.get(at, 0) + 1
        named.append(replace(row, label=f"{row.label}{OLDER}{seen[at]}") if seen[at] > 1 else row)
    return named


def _best_first(group: list[Row], columns: list[Column]) -> list[Row]:
    if not columns:
        return group
    sign = -1 if columns[0][1].better == "higher" else 1

    def place(row: Row) -> tuple[bool, float]:
        number = row.number(columns[0])
        return (number is None, sign * number[0] if number else 0.0)

    return sorted(group, key=place)


def _references(chosen: dict[str, list[_Unit]]) -> list[Row]:
    """Rows of what is no SAE, such as the residual stream, from the results themselves."""
    numbers: dict[str, dict[str, Number]] = {}
    for evaluation, units in chosen.items():
        results = [result for unit in units for result in unit.row.all_results]
        for metric in metrics_of(evaluation):
            for what, reference in metric.references:
                path = metric.reference_path(reference)
                found = [value for result in results if (value := value_at(result, path)) is not None]
                if found:
                    mean = sum(found) / len(found)
                    numbers.setdefault(what, {})[column_key((evaluation, metric))] = (mean, None)
    return [Row(what, None, None, numbers=found) for what, found in numbers.items()]
