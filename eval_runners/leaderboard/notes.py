"""Notes below a table: commands that made its rows, reasons for missing numbers, reasons to treat rows as untrained."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from eval_runners.leaderboard.ranking import Board
from eval_runners.store.read import provenance_of

MOST_NAMES = 8
"""Rows that a note names one by one; more are counted."""
SEEDS = re.compile(r"--seeds[ =](\S+)")
PLACES = re.compile(r" --(?:output|activations|trained|csv|markdown|picture)[ =](?:'[^']*'|\S+)| --force\b")
"""Options of a command that change no number: where files lie, and whether they are made again."""


def one_line(label: str) -> str:
    """A label as it may stand in a Markdown table."""
    return " ".join(label.replace("|", "\\|").split())


def untrained_notes(board: Board, quote: str = "") -> list[str]:
    """Which rows are untrained, by the first reason of each, with `quote` around their labels."""
    rows_of: dict[str, list[str]] = {}
    for row in board.rows:
        if row.untrained:
            rows_of.setdefault(row.untrained[0], []).append(f"{quote}{one_line(row.label)}{quote}")
    return [f"{', '.join(rows)} {'is' if len(rows) == 1 else 'are'} untrained: {why}." for why, rows in rows_of.items()]


def trust_notes(board: Board) -> list[str]:
    """What to make of the columns shown that are to be read with care, or not at all for ranking."""
    columns_of: dict[tuple[str, str], list[str]] = {}
    for column in board.shown:
        if column.metric.trust in ("with care", "not for ranking"):
            columns_of.setdefault((column.metric.trust, column.metric.why_trust), []).append(column.head)
    return [f"{', '.join(heads)}: {trust}: {why}." for (trust, why), heads in columns_of.items()]


def command_notes(board: Board) -> list[str]:
    """Each command with its commits, and the rows that it made, by evaluation.

    Commands that differ in their seeds alone are one, and options that say where files lie are left out.
    """
    made: dict[str, _Made] = {}
    for row in board.rows:
        for evaluation in board.conditions:
            for provenance in map(provenance_of, row.results.get(evaluation, [])):
                if command := PLACES.sub("", provenance.get("command") or ""):
                    entry = made.setdefault(SEEDS.sub("--seeds", command), _Made(command))
                    entry.seeds += [seed for given in SEEDS.findall(command) for seed in given.split(",")]
                    entry.commits.append(provenance.get("commit") or "unknown")
                    entry.rows.setdefault(evaluation, []).append(one_line(row.label))
    return [str(entry) for entry in made.values()]


@dataclass
class _Made:
    """What one command made, whatever its seeds."""

    command: str
    seeds: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        seeds = ",".join(sorted(set(self.seeds), key=lambda seed: (len(seed), seed)))
        command = SEEDS.sub(f"--seeds {seeds}", self.command)
        commits = list(dict.fromkeys(self.commits))
        return f"`{command}`, commit{'s' * (len(commits) > 1)} {', '.join(commits)}: {_list_rows(self.rows)}"


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
