"""Put results on boards, and choose evaluations, columns and comparable rows of a board.

A board holds the results of one language model and hook. Of each evaluation it holds those made under the same
conditions (text, context, tokens, settings, data type); results under other conditions go to another board. Pure:
imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval_runners.contract.contract import value_at
from eval_runners.contract.registry import USUAL_EVALUATIONS
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.rows import (
    OLDER,
    Column,
    Number,
    Row,
    metrics_of,
    sae_identity,
    to_sorted_json,
    written_at,
)
from eval_runners.store.read import (
    Result,
    conditions_of,
    describe_differences,
    eval_seed_of,
    provenance_of,
    weight_hash_of,
)
from sae_variants.common.errors import UsageError, check_name


def make_boards(results: Sequence[Result]) -> list[Board]:
    """Put every result on a board. Of several of one SAE, seed and conditions, the newest counts.

    Results by other evaluation seeds, which only `reliability` reads, are left out.
    """
    results = [result for result in results if not eval_seed_of(result)]
    units_by_hook: dict[tuple[str, str | None], dict[str, list[_Unit]]] = {}
    for unit in _make_units(results):
        units_by_hook.setdefault((unit.model, unit.hook_name), {}).setdefault(unit.evaluation, []).append(unit)
    boards: list[Board] = []
    for (model, hook_name), by_evaluation in sorted(units_by_hook.items(), key=str):
        order = sorted(by_evaluation, key=_evaluation_order)
        clusters = {name: _cluster_units(by_evaluation[name]) for name in order}
        for number in range(max(map(len, clusters.values()))):
            units = {name: parts[number] for name, parts in clusters.items() if number < len(parts)}
            boards.append(_make_board(model, hook_name, number + 1, units))
    return boards


def select_evaluations(board: Board, evaluations: Sequence[str]) -> Board:
    """The board with the columns of these evaluations, in this order, and the rows that have a number in any of them.

    Values of other evaluations that a row is matched by, such as its L0, stay known.
    """
    conditions = {name: board.conditions[name] for name in evaluations if name in board.conditions}
    narrow = replace(board, conditions=conditions)
    return _with_rows_of(narrow, narrow.columns)


def select_columns(board: Board, keys: Sequence[str]) -> Board:
    """The board that shows these columns, in this order, and the rows that have a number in any of them.

    Args:
        board: rows of one language model and hook.
        keys: metric keys such as `l0`, or `evaluation.metric` where several evaluations have that metric.

    Raises:
        UsageError: no column of the board, or several, have that key.
    """
    by_key: dict[str, list[Column]] = {}
    for column in board.columns:
        for key in {column.key, column.metric.key}:
            by_key.setdefault(key, []).append(column)
    for key in keys:
        check_name("column", key, by_key)
        if len(by_key[key]) > 1:
            names = " or ".join(column.key for column in by_key[key])
            raise UsageError(f"the column {key!r} is ambiguous: write {names}")
    chosen = tuple(by_key[key][0] for key in keys)
    conditions = {column.evaluation: board.conditions[column.evaluation] for column in chosen}
    return _with_rows_of(replace(board, chosen=chosen, conditions=conditions), chosen)


def comparable_rows(requested: Sequence[Result], others: Sequence[Result]) -> list[Row]:
    """Rows comparable with the requested ones: same board, width, tokens and seeds, and no further overrides.

    Untrained rows of that width are comparable, too.
    """
    seeds = {provenance_of(result).get("seed") for result in requested}
    same_seeds = [result for result in others if provenance_of(result).get("seed") in seeds]
    hashes = {weight_hash_of(result) for result in requested}
    for board in make_boards([*requested, *same_seeds]):
        ours = [row for row in board.rows if hashes & row.weight_hashes]
        if ours and all(_belongs(result, board) for result in requested):
            trained = [row for row in ours if row.training_tokens] or ours
            widths, tokens = {row.d_sae for row in ours}, {0, *(row.training_tokens for row in trained)}
            fields = {word for row in ours for word in row.fields.split()}
            return [
                row
                for row in board.rows
                if row.results
                and row not in ours
                and set(row.seeds) == seeds - {None}
                and row.d_sae in widths
                and row.training_tokens in tokens
                and set(row.fields.split()) <= fields
            ]
    return []


def _belongs(result: Result, board: Board) -> bool:
    """Whether a result was made under the conditions of a board, which may hold its SAE by another one."""
    evaluation = result["eval_type_id"]
    return evaluation in board.conditions and not describe_differences(
        conditions_of(result), board.conditions[evaluation]
    )


@dataclass(frozen=True)
class _Unit:
    """Results of one evaluation, under the same conditions, of one kind of SAE: one per seed."""

    model: str
    hook_name: str | None
    evaluation: str
    conditions: dict[str, Any]
    identity: tuple[Any, ...]
    row: Row


def _make_units(results: Sequence[Result]) -> list[_Unit]:
    by_seed: dict[tuple[Any, ...], dict[Any, Result]] = {}
    heads: dict[tuple[Any, ...], tuple[str, str | None, str, dict[str, Any]]] = {}
    for result in results:
        conditions = conditions_of(result)
        evaluation = conditions.pop("evaluation")
        model = str(conditions.pop("model_name", None) or "unknown model").rpartition("/")[2]
        hook_name = conditions.pop("hook_name")
        key = (model, hook_name, evaluation, to_sorted_json(conditions), sae_identity(result))
        heads[key] = (model, hook_name, evaluation, conditions)
        seed = provenance_of(result).get("seed")
        newest = by_seed.setdefault(key, {})
        if seed not in newest or written_at(newest[seed]) < written_at(result):
            newest[seed] = result
    units = []
    for key, newest in by_seed.items():
        evaluation, identity = key[2], key[-1]
        label, d_sae, tokens, _ = identity
        row = Row(label, d_sae, tokens, {evaluation: [newest[seed] for seed in sorted(newest, key=str)]})
        units.append(_Unit(*heads[key], identity, row))
    return units


def _cluster_units(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Units under the same conditions, the largest cluster first. A condition that is not stated separates nothing."""
    clusters: list[list[_Unit]] = []
    members: list[dict[str, dict[str, Any]]] = []  # of each cluster, its distinct conditions
    for unit in sorted(units, key=lambda unit: (-_number_stated(unit), unit.identity[0])):
        key = to_sorted_json(unit.conditions)
        for cluster, distinct in zip(clusters, members, strict=True):
            if key in distinct or not any(describe_differences(each, unit.conditions) for each in distinct.values()):
                cluster.append(unit)
                distinct[key] = unit.conditions
                break
        else:
            clusters.append([unit])
            members.append({key: unit.conditions})
    return sorted(clusters, key=lambda cluster: (-len(cluster), to_sorted_json(cluster[0].conditions)))


def _number_stated(unit: _Unit) -> int:
    return sum(value is not None for value in unit.conditions.values())


def _evaluation_order(evaluation: str) -> tuple[int, str]:
    usual = list(USUAL_EVALUATIONS)
    return (usual.index(evaluation) if evaluation in usual else len(usual)), evaluation


def _make_board(model: str, hook_name: str | None, number: int, units: dict[str, list[_Unit]]) -> Board:
    rows: dict[tuple[Any, ...], Row] = {}
    for unit in (unit for group in units.values() for unit in group):
        row = rows.get(unit.identity, replace(unit.row, results={}))
        rows[unit.identity] = replace(row, results={**row.results, **unit.row.results})
    conditions = {name: group[0].conditions for name, group in units.items()}
    every = [*_number_older(list(rows.values())), *_reference_rows(units)]
    return _sort_rows(Board(model, hook_name, number, conditions, every))


def _with_rows_of(board: Board, columns: Sequence[Column]) -> Board:
    """The board without rows that have no number in any of the columns, sorted anew."""
    rows = [row for row in board.rows if any(row.number(column) is not None for column in columns)]
    return _sort_rows(replace(board, rows=rows))


def _sort_rows(board: Board) -> Board:
    """Trained rows level by level, the best of the first column first; then references; then the untrained."""
    trained = [row for level in board.levels for row in _best_first(level, board.shown)]
    references = [row for row in board.rows if not row.results]
    untrained = sorted((row for row in board.rows if row.untrained), key=lambda row: row.label)
    return replace(board, rows=[*trained, *references, *untrained])


def _best_first(group: list[Row], columns: Sequence[Column]) -> list[Row]:
    if not columns:
        return group
    sign = -1 if columns[0].metric.better == "higher" else 1

    def order(row: Row) -> tuple[bool, float]:
        number = row.number(columns[0])
        return (number is None, sign * number[0] if number else 0.0)

    return sorted(group, key=order)


def _number_older(rows: Sequence[Row]) -> list[Row]:
    """Rows of one label that are different SAEs, trained by different versions of a recipe: the older ones numbered."""
    newest_first = sorted(rows, key=lambda row: -max(map(written_at, row.all_results)))
    counts: dict[tuple[Any, ...], int] = {}
    numbered = []
    for row in newest_first:
        key = (row.label, row.d_sae, row.training_tokens)
        counts[key] = counts.get(key, 0) + 1
        numbered.append(replace(row, label=f"{row.label}{OLDER}{counts[key]}") if counts[key] > 1 else row)
    return numbered


def _reference_rows(units: dict[str, list[_Unit]]) -> list[Row]:
    """Rows of what is no SAE, such as the residual stream: means over the results that state it."""
    numbers: dict[str, dict[str, Number]] = {}
    for evaluation, group in units.items():
        results = [result for unit in group for result in unit.row.all_results]
        for metric in metrics_of(evaluation):
            for title, reference_id in metric.references:
                path = metric.reference_path(reference_id)
                values = [value for result in results if (value := value_at(result, path)) is not None]
                if values:
                    mean = sum(values) / len(values)
                    numbers.setdefault(title, {})[Column(evaluation, metric).key] = (mean, None)
    return [Row(title, None, None, reference_numbers=of_title) for title, of_title in numbers.items()]
