"""Boards as Markdown, CSV, JSON, and as tables on the terminal. Pure: imports no torch, writes nothing."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

from eval_runners import _contract, _read, _rows
from eval_runners._boards import Board
from eval_runners._rows import Column, Number, Row

BOLD, FRONT = "**", "◆"
LEGEND = (
    "Mean ± standard error over seeds. Bold: best, or not told apart from the best by one standard error, among those "
    "trained SAEs of this table that have several seeds, that width, number of training tokens and (within 10 %) L0. "
    f"{FRONT}: no SAE of this table has more with as little L0."
)


def number(found: Number | None) -> str:
    if found is None:
        return "-"
    mean, error = found
    places = 1 if abs(mean) >= 10 else 3 if abs(mean) >= 0.05 else 5
    return f"{mean:.{places}f}" + (f" ± {error:.{places}f}" if error is not None else "")


def count(value: int | None) -> str:
    """1048576 -> 1.05M"""
    if value is None:
        return "-"
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            return f"{value / (1000 if unit == 'k' else size):.3g}{unit}"
    return str(value)


def head(column: Column) -> str:
    return f"{column[1].short} {_contract.ARROWS[column[1].better]}".strip()


def cell(board: Board, row: Row, column: Column, bold: str = "") -> str:
    shown = number(row.number(column))
    if bold and board.rank(row, column) == 1:
        shown = f"{bold}{shown}{bold}"
    return f"{shown} {FRONT}" if board.on_front(row, column) else shown


def title(board: Board) -> str:
    others = f" ({board.number})" if board.number > 1 else ""
    return f"{board.model}, {board.hook_name or 'hook not said'}{others}"


def described(conditions: dict[str, Any]) -> str:
    """The text and the context that an evaluation read, in a few words."""
    datasets = conditions.get("dataset") or conditions.get("dataset_names") or ""
    text = f"{len(datasets)} datasets" if isinstance(datasets, list) else str(datasets)
    context = conditions.get("context_size") or conditions.get("context_length")
    words = [text, f"context {context}" if context else "", str(conditions.get("llm_dtype") or "")]
    return ", ".join(filter(None, words))


def as_markdown(boards: list[Board], legend: bool = True) -> str:
    return "\n".join(part for board in boards for part in _board(board)) + (
        f"\n{LEGEND}\n" if legend and boards else ""
    )


def _board(board: Board) -> list[str]:
    columns = board.shown
    about = "; ".join(f"{name}: {described(conditions)}" for name, conditions in board.conditions.items())
    heads = ["SAE", "L0", "latents", "tokens", "seeds", *map(head, columns)]
    lines = [f"{title(board)}. {about}.", "", _line(heads), _line(["---"] * len(heads))]
    for row in board.rows:
        name = row.label.replace("|", "\\|")
        name = name if not row.results else f"*{name}* (untrained)" if row.untrained else f"`{name}`"
        cells = [cell(board, row, column, BOLD) for column in columns]
        l0 = f"{row.l0:.1f}" if row.l0 is not None else "-"
        lines.append(_line([name, l0, count(row.d_sae), count(row.training_tokens), row.n_seeds, *cells]))
    reasons = [f"`{row.label}` is untrained: {row.untrained[0]}." for row in board.rows if row.untrained]
    missing = [
        f"`{row.label}` has no {column[1].short}: {row.why_not(column)}."
        for row in board.rows
        for column in columns
        if row.results and row.number(column) is None and column[0] in row.results and _is_mishap(row, column)
    ]
    commands: dict[str, list[str]] = {}
    for result in (r for row in board.rows for name in board.conditions for r in row.results.get(name, [])):
        said = _read.provenance(result)
        if said:
            commands.setdefault(said["command"], []).append(said["commit"] or "unknown")
    made_by = [f"`{command}`, commit {', '.join(dict.fromkeys(commits))}" for command, commits in commands.items()]
    folded = ["<details><summary>Made by</summary>", *made_by, "</details>"] if made_by else []
    sources = [f"Source: {source}." for source in dict.fromkeys(row.source for row in board.rows) if source]
    return [*lines, "", *_paragraphs([*reasons, *missing, *sources, *folded])]


def _paragraphs(lines: list[str]) -> list[str]:
    return [text for line in dict.fromkeys(lines) for text in (line, "")]


def _is_mishap(row: Row, column: Column) -> bool:
    return "not a number" in row.why_not(column)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_records(board: Board) -> list[dict[str, Any]]:
    """A dict per row: what it is, where it comes from, and every metric with its error, rank and reason."""
    records = []
    for row in board.rows:
        record: dict[str, Any] = {
            "model": board.model, "hook_name": board.hook_name, "sae": row.label, "l0": row.l0, "d_sae": row.d_sae,
            "training_tokens": row.training_tokens, "seeds": row.seeds,
            "trained": bool(row.results) and not row.untrained, "untrained_because": row.untrained,
            "commits": row.said("commit"), "commands": row.said("command"),
            "source": row.source, "metrics": {},
        }  # fmt: skip
        for column in board.columns:
            found = row.number(column)
            if found is None:
                record["metrics"][_rows.key(column)] = {"value": None, "because": row.why_not(column)}
                continue
            value = {"value": found[0], "error": found[1], "rank": board.rank(row, column)}
            front = {"front": board.on_front(row, column)} if column[1].against_l0 else {}
            record["metrics"][_rows.key(column)] = {**value, **front}
        records.append(record)
    return records


def as_json(boards: list[Board]) -> str:
    found = [{"conditions": board.conditions, "rows": as_records(board)} for board in boards]
    return json.dumps(found, indent=1) + "\n"


def as_csv(boards: list[Board]) -> str:
    """A line per row; `evaluation.metric` and, beside it, its error and rank."""
    lines: list[dict[str, Any]] = []
    for number_of_board, board in enumerate(boards):
        for record in as_records(board):
            metrics = record.pop("metrics")
            for listed in ("seeds", "commits", "commands", "untrained_because"):
                record[listed] = "; ".join(map(str, record[listed]))
            for name, found in metrics.items():
                record |= {name: found["value"], f"{name} error": found.get("error"), f"{name} rank": found.get("rank")}
            lines.append({"board": number_of_board, **record})
    heads = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def show(boards: list[Board]) -> None:
    """One table on the terminal for every board; untrained rows are dim."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 240)
    for board in boards:
        columns = board.shown
        table = Table(title=title(board))
        table.add_column("SAE", overflow="fold", min_width=24)
        for text in ("L0", "latents", "seeds", *map(head, columns)):
            table.add_column(text, justify="right")
        for row in board.rows:
            name = f"{row.label} (untrained)" if row.untrained else row.label
            cells = [cell(board, row, column, "*") for column in columns]
            l0 = f"{row.l0:.1f}" if row.l0 is not None else "-"
            style = "dim" if row.untrained or not row.results else None
            table.add_row(
                _escaped(name), l0, count(row.d_sae), row.n_seeds, *cells, style=style
            )  # fmt: skip
        console.print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
