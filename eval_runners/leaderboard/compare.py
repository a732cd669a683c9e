"""Explain why two rows of the leaderboard are not ranked together."""

from __future__ import annotations

from typing import Any

from eval_runners.leaderboard.boards import SAME_L0, Board
from eval_runners.leaderboard.rows import Row, training_fields
from eval_runners.store.read import (
    conditions_of,
    describe_differences,
)
from sae_variants.common.errors import check_name


def find_rows(boards: list[Board], name: str) -> list[tuple[Board, Row]]:
    every = [(board, row) for board in boards for row in board.rows if row.results]
    places = [(board, row) for board, row in every if name in (row.label, f"{board.model}/{row.label}")]
    if not places:
        near = {row.label for _, row in every if row.name == name.partition("[")[0]}
        check_name("row", name, near or {row.name for _, row in every})
    return places


def _differing_fields(row: Row, other: Row) -> dict[str, tuple[Any, Any]]:
    """What two SAEs of one name were trained with, by field; nothing of SAEs that do not say."""
    if row.name != other.name:
        return {}
    here, there = (training_fields(one.all_results[0]) for one in (row, other))
    return {field: (here[field], there[field]) for field in here if field in there}


def why_separate(board: Board, row: Row, other_board: Board, other: Row) -> list[str]:
    """In words, why two rows are not ranked together, or are only in part."""
    lines = [
        f"{what} is {a} for {row.label} and {b} for {other.label}"
        for what, a, b in (
            ("language model", board.model, other_board.model),
            ("hook", board.hook_name, other_board.hook_name),
            ("d_sae", row.d_sae, other.d_sae),
            ("number of training tokens", row.training_tokens, other.training_tokens),
        )
        if a != b
    ]
    lines += [
        f"{field} is {a} for {row.label} and {b} for {other.label}"
        for field, (a, b) in _differing_fields(row, other).items()
        if a != b
    ]
    matched = board is other_board and other in board.group(row)
    levels = sorted(one.l0 for one in (row, other) if one.l0)
    if not matched and len(levels) == 2 and (not lines or levels[1] > SAME_L0 * levels[0]):
        lines.append(f"L0 is {row.l0:.1f} for {row.label} and {other.l0:.1f} for {other.label}: matched is within 10 %")
    lines += [f"L0 of {one.label} is not known" for one in (row, other) if one.l0 is None]
    lines += [f"{one.label} is untrained: {'; '.join(one.untrained)}" for one in (row, other) if one.untrained]
    for evaluation in dict.fromkeys([*row.results, *other.results]):
        missing = [one.label for one in (row, other) if evaluation not in one.results]
        if missing:
            lines.append(f"{evaluation} was not run for {', '.join(missing)}")
            continue
        here, there = (conditions_of(one.results[evaluation][0]) for one in (row, other))
        lines += [f"{evaluation}: {difference}" for difference in describe_differences(here, there)]
    lines += [f"{one.label} has one seed, so no interval" for one in (row, other) if len(one.seeds) < 2]
    return lines
