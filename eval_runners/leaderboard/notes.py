"""Notes below a table: commands that made its rows, reasons for missing numbers, reasons to treat rows as untrained."""

from __future__ import annotations

from collections.abc import Iterable

from eval_runners.leaderboard.ranking import Board
from eval_runners.store.read import provenance_of

MOST_NAMES = 8
"""Rows that a note names one by one; more are counted."""


def one_line(label: str) -> str:
    """A label as it may stand in a Markdown table."""
    return " ".join(label.replace("|", "\\|").split())


def untrained_reasons(board: Board) -> list[tuple[str, str]]:
    """Label and first reason of every untrained row."""
    return [(one_line(row.label), row.untrained[0]) for row in board.rows if row.untrained]


def trust_notes(board: Board) -> list[str]:
    """What to make of the columns shown that are to be read with care, or not at all for ranking."""
    columns_of: dict[tuple[str, str], list[str]] = {}
    for column in board.shown:
        if column.metric.trust in ("with care", "not for ranking"):
            columns_of.setdefault((column.metric.trust, column.metric.why_trust), []).append(column.head)
    return [f"{', '.join(heads)}: {trust}: {why}." for (trust, why), heads in columns_of.items()]


def command_notes(board: Board) -> list[str]:
    """Each command with its commit, and the rows that it made, by evaluation."""
    rows_of: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in board.rows:
        for evaluation in board.conditions:
            for provenance in map(provenance_of, row.results.get(evaluation, [])):
                if command := provenance.get("command"):
                    by_evaluation = rows_of.setdefault((command, provenance.get("commit") or "unknown"), {})
                    by_evaluation.setdefault(evaluation, []).append(one_line(row.label))
    return [f"`{command}`, commit {commit}: {_list_rows(rows)}" for (command, commit), rows in rows_of.items()]


def missing_notes(board: Board) -> list[str]:
    """Why numbers are missing: one line for each reason and set of columns."""
    labels_of: dict[tuple[str, str], list[str]] = {}
    for row in board.rows:
        heads_of: dict[str, list[str]] = {}
        for column in board.shown:
            if row.results and row.number(column) is None:
                heads_of.setdefault(row.why_missing(column), []).append(column.head)
        for reason, heads in heads_of.items():
            key = (reason, "" if reason.endswith("was not run") else ", ".join(heads))
            labels_of.setdefault(key, []).append(one_line(row.label))
    return [
        f"no {heads} of {_list_names(labels)}: {reason}" if heads else f"{reason} for {_list_names(labels)}"
        for (reason, heads), labels in labels_of.items()
    ]


def _list_rows(rows: dict[str, list[str]]) -> str:
    """Evaluations and rows; evaluations of the same rows together."""
    evaluations_of: dict[tuple[str, ...], list[str]] = {}
    for evaluation, labels in rows.items():
        evaluations_of.setdefault(tuple(dict.fromkeys(labels)), []).append(evaluation)
    return "; ".join(f"{', '.join(names)} of {_list_names(labels)}" for labels, names in evaluations_of.items())


def _list_names(labels: Iterable[str]) -> str:
    names = list(labels)
    return ", ".join(f"`{name}`" for name in names) if len(names) <= MOST_NAMES else f"{len(names)} rows"
