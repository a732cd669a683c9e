"""Boards as Markdown, CSV and JSON. Pure: imports no torch, writes nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from eval_runners.contract.contract import Direction, Metric
from eval_runners.leaderboard.notes import command_notes, missing_notes, one_line, trust_notes, untrained_notes
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.rows import Column, Number, Row

ARROWS: dict[Direction, str] = {"higher": "↑", "lower": "↓", "neither": ""}
BOLD, FRONT = "**", "◆"
LEGEND = (
    "Mean ± half of its 95 % interval over seeds (Student's t). Bold: better than every other trained SAE of this "
    "table that has the same width, number of training tokens and, within 3 %, L0: by paired t-tests over at least "
    f"three common seeds, corrected for their number (Holm, 5 %). {FRONT}: no SAE of this table is better at the same "
    "or a smaller L0, by one test with the best of them."
)


def format_number(number: Number | None) -> str:
    """Mean and half of its interval, with as many digits as the interval leaves meaning."""
    if number is None:
        return "-"
    mean, half = number
    places = 1 if abs(mean) >= 10 else 3 if abs(mean) >= 0.05 or mean == 0 else 5
    if half:  # an interval that is printed as 0 does not say which number is best
        places = min(max(places, -math.floor(math.log10(half))), places + 2)
    return f"{mean:.{places}f}" + (f" ± {half:.{places}f}" if half is not None else "")


def format_count(value: int | None) -> str:
    """A count in three digits: 1048576 is 1.05M."""
    if value is None:
        return "-"
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            return f"{value / (1000 if unit == 'k' else size):.3g}{unit}"
    return str(value)


def format_head(metric: Metric) -> str:
    """Text above a metric's column, with an arrow for the better direction."""
    return f"{metric.head} {ARROWS[metric.better]}".strip()


def format_cell(board: Board, row: Row, column: Column, bold: str = "") -> str:
    """A number with its marks: `bold` around it where it is the best, and the sign of the Pareto front."""
    text = format_number(row.number(column))
    if bold and board.is_best(row, column):
        text = f"{bold}{text}{bold}"
    return f"{text} {FRONT}" if board.on_front(row, column) else text


def format_l0(row: Row) -> str:
    """L0 with one decimal."""
    return "-" if row.l0 is None else f"{row.l0:.1f}"


def board_title(board: Board) -> str:
    """Language model and hook."""
    others = f" ({board.number})" if board.number > 1 else ""
    return f"{board.model}, {board.hook_name or 'hook not stated'}{others}"


def describe_conditions(conditions: dict[str, Any]) -> str:
    """Text, context and data type of an evaluation."""
    datasets = conditions.get("dataset") or conditions.get("dataset_names") or ""
    text = f"{len(datasets)} datasets" if isinstance(datasets, list) else str(datasets)
    context = conditions.get("context_size") or conditions.get("context_length")
    parts = [text, f"context {context}" if context else "", str(conditions.get("llm_dtype") or "")]
    return ", ".join(filter(None, parts))


def to_markdown(boards: Sequence[Board], legend: bool = True, commands: bool = True) -> str:
    """Render a table for each board.

    Args:
        boards: boards with the columns to show.
        legend: explain bold and marks below the last table.
        commands: list the commands that made the rows, and the reasons for missing numbers, in a folded block.
    """
    text = "\n".join(line for board in boards for line in _board_lines(board, commands))
    return f"{text}\n{LEGEND}\n" if legend and boards else text


def table_heads(board: Board) -> list[str]:
    """Heads of the Markdown table of a board."""
    return [
        "SAE",
        "L0",
        *(head for head, _ in _varying_sizes(board)[0]),
        *(format_head(column.metric) for column in board.shown),
    ]


def _board_lines(board: Board, commands: bool) -> list[str]:
    heads, (sizes, constants) = table_heads(board), _varying_sizes(board)
    about = "; ".join(f"{name}: {describe_conditions(conditions)}" for name, conditions in board.conditions.items())
    title = ", ".join([board_title(board), *constants])
    lines = [f"{title}. {about}.", "", _table_line(heads), _table_line(["---"] * len(heads))]
    for row in board.rows:
        label = one_line(row.label)
        name = label if not row.results else f"*{label}* (untrained)" if row.untrained else f"`{label}`"
        cells = [format_cell(board, row, column, BOLD) for column in board.shown]
        lines.append(_table_line([name, format_l0(row), *(of_row(row) for _, of_row in sizes), *cells]))
    paragraphs = [*untrained_notes(board, quote="`"), *trust_notes(board)]
    paragraphs += [f"Source: {source}." for source in dict.fromkeys(row.source for row in board.rows) if source]
    if commands and (notes := [*command_notes(board), *missing_notes(board)]):
        folded = "\n".join(f"- {note}" for note in notes)
        paragraphs += ["<details><summary>Commands</summary>", folded, "</details>"]
    return [*lines, "", *(line for text in dict.fromkeys(paragraphs) for line in (text, ""))]


SizeColumn = tuple[str, Callable[[Row], str]]


def _varying_sizes(board: Board) -> tuple[list[SizeColumn], list[str]]:
    """Columns of the sizes in which rows differ, and the sizes that all rows share, in words.

    An untrained row has no training tokens, which its name says already.
    """
    saes = [row for row in board.rows if row.results]
    trained = [row for row in saes if not row.untrained] or saes
    sizes: list[tuple[str, str, list[Row], Callable[[Row], str]]] = [
        ("latents", "latents", saes, lambda row: format_count(row.d_sae)),
        ("tokens", "training tokens", trained, lambda row: format_count(row.training_tokens)),
        ("seeds", "seeds", saes, lambda row: row.n_seeds(board.conditions)),
    ]
    varying: list[SizeColumn] = []
    constants = []
    for head, unit, rows, of_row in sizes:
        values = {of_row(row) for row in rows}
        if len(values) == 1 and values != {"-"}:
            constants.append(f"{values.pop()} {unit}")
        else:
            varying.append((head, of_row))
    return varying, constants


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_records(board: Board) -> list[dict[str, Any]]:
    """A dict per row: what it is, where it comes from, and every metric with its interval, rank and reason."""
    records = []
    for row in board.rows:
        record: dict[str, Any] = {
            "model": board.model,
            "hook_name": board.hook_name,
            "sae": row.label,
            "l0": row.l0,
            "d_sae": row.d_sae,
            "training_tokens": row.training_tokens,
            "seeds": row.seeds,
            "trained": bool(row.results) and not row.untrained,
            "untrained_because": row.untrained,
            "commits": row.provenance("commit"),
            "commands": row.provenance("command"),
            "source": row.source,
            "metrics": {},
        }
        for column in board.columns:
            number = row.number(column)
            if number is None:
                record["metrics"][column.key] = {"value": None, "because": row.why_missing(column)}
                continue
            value = {"value": number[0], "half_interval": number[1], "rank": board.rank(row, column)}
            value |= {"best": True} if board.is_best(row, column) else {}
            value |= {"trust": column.metric.trust} if column.metric.trust else {}
            front = {"front": board.on_front(row, column)} if column.metric.against_l0 else {}
            record["metrics"][column.key] = {**value, **front}
        records.append(record)
    return records


def to_json(boards: Sequence[Board]) -> str:
    """Every board with its conditions and the records of its rows."""
    content = [{"conditions": board.conditions, "rows": to_records(board)} for board in boards]
    return json.dumps(content, indent=1) + "\n"


def to_csv(boards: Sequence[Board]) -> str:
    """A line per row; `evaluation.metric` and, beside it, half of its 95 % interval and its rank."""
    lines: list[dict[str, Any]] = []
    for board_number, board in enumerate(boards):
        for record in to_records(board):
            metrics = record.pop("metrics")
            for key in ("seeds", "commits", "commands", "untrained_because"):
                record[key] = "; ".join(map(str, record[key]))
            for key, value in metrics.items():
                record |= {
                    key: value["value"],
                    f"{key} ±": value.get("half_interval"),
                    f"{key} rank": value.get("rank"),
                }
            lines.append({"board": board_number, **record})
    heads = list(dict.fromkeys(key for line in lines for key in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
