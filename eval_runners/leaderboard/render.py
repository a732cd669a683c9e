"""Boards as Markdown, CSV, JSON, and as tables on the terminal. Pure: imports no torch, writes nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from eval_runners.contract.contract import Direction
from eval_runners.leaderboard.boards import Board
from eval_runners.leaderboard.rows import Column, Number, Row, column_key
from eval_runners.store.read import provenance_of

ARROWS: dict[Direction, str] = {"higher": "↑", "lower": "↓", "neither": ""}
BOLD, FRONT = "**", "◆"
LEGEND = (
    "Mean ± standard error over seeds. Bold: best, or not told apart from the best by one standard error, among those "
    "trained SAEs of this table that have several seeds, that width, number of training tokens and (within 10 %) L0. "
    f"{FRONT}: no SAE of this table has more, by more than one standard error, with as little L0."
)


def format_number(found: Number | None) -> str:
    if found is None:
        return "-"
    mean, error = found
    places = 1 if abs(mean) >= 10 else 3 if abs(mean) >= 0.05 else 5
    if error:  # an interval that is printed as nothing tells nobody what is best
        places = min(max(places, -math.floor(math.log10(error))), places + 2)
    return f"{mean:.{places}f}" + (f" ± {error:.{places}f}" if error is not None else "")


def format_count(value: int | None) -> str:
    """1048576 -> 1.05M"""
    if value is None:
        return "-"
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= size:
            return f"{value / (1000 if unit == 'k' else size):.3g}{unit}"
    return str(value)


def format_head(column: Column) -> str:
    return f"{column[1].short} {ARROWS[column[1].better]}".strip()


def format_cell(board: Board, row: Row, column: Column, bold: str = "") -> str:
    shown = format_number(row.number(column))
    if bold and board.rank(row, column) == 1:
        shown = f"{bold}{shown}{bold}"
    return f"{shown} {FRONT}" if board.on_front(row, column) else shown


def board_title(board: Board) -> str:
    others = f" ({board.number})" if board.number > 1 else ""
    return f"{board.model}, {board.hook_name or 'hook not said'}{others}"


def describe_conditions(conditions: dict[str, Any]) -> str:
    """The text and the context that an evaluation read, in a few words."""
    datasets = conditions.get("dataset") or conditions.get("dataset_names") or ""
    text = f"{len(datasets)} datasets" if isinstance(datasets, list) else str(datasets)
    context = conditions.get("context_size") or conditions.get("context_length")
    words = [text, f"context {context}" if context else "", str(conditions.get("llm_dtype") or "")]
    return ", ".join(filter(None, words))


def to_markdown(boards: list[Board], legend: bool = True) -> str:
    return "\n".join(part for board in boards for part in _board(board)) + (
        f"\n{LEGEND}\n" if legend and boards else ""
    )


def _board(board: Board) -> list[str]:
    columns = board.shown
    about = "; ".join(f"{name}: {describe_conditions(conditions)}" for name, conditions in board.conditions.items())
    heads = ["SAE", "L0", "latents", "tokens", "seeds", *map(format_head, columns)]
    lines = [f"{board_title(board)}. {about}.", "", _line(heads), _line(["---"] * len(heads))]
    for row in board.rows:
        name = _one_line(row.label)
        name = name if not row.results else f"*{name}* (untrained)" if row.untrained else f"`{name}`"
        cells = [format_cell(board, row, column, BOLD) for column in columns]
        l0 = f"{row.l0:.1f}" if row.l0 is not None else "-"
        lines.append(_line([name, l0, format_count(row.d_sae), format_count(row.training_tokens), row.n_seeds, *cells]))
    reasons = [f"`{name}` is untrained: {why}." for name, why in _untrained(board)]
    absent = _absent(board)
    folded = [
        *[f"- `{command}`, commit {commit}: {_listed(what)}" for (command, commit), what in _made_by(board).items()],
        *[f"- {line}" for line in absent],
    ]
    details = ["<details><summary>Made by</summary>", "\n".join(folded), "</details>"] if folded else []
    sources = [f"Source: {source}." for source in dict.fromkeys(row.source for row in board.rows) if source]
    return [*lines, "", *_paragraphs([*reasons, *sources, *details])]


def _untrained(board: Board) -> list[tuple[str, str]]:
    return [(_one_line(row.label), row.untrained[0]) for row in board.rows if row.untrained]


def _made_by(board: Board) -> dict[tuple[str, str], dict[str, list[str]]]:
    """(command, commit) -> evaluation -> rows."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in board.rows:
        for name in board.conditions:
            for said in map(provenance_of, row.results.get(name, [])):
                if command := said.get("command"):
                    of = found.setdefault((command, said.get("commit") or "unknown"), {}).setdefault(name, [])
                    of.append(_one_line(row.label))
    return found


def _one_line(label: str) -> str:
    return " ".join(label.replace("|", "\\|").split())


def _listed(what: dict[str, list[str]]) -> str:
    parts = []
    for evaluation, labels in what.items():
        names = dict.fromkeys(labels)
        parts.append(
            f"{evaluation} of " + (", ".join(f"`{n}`" for n in names) if len(names) < 9 else f"{len(names)} rows")
        )
    return "; ".join(parts)


def _absent(board: Board) -> list[str]:
    """Why there is no number, in as few lines as say it."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in board.rows:
        for column in board.shown:
            if row.results and row.number(column) is None:
                found.setdefault(row.why_not(column), {}).setdefault(_one_line(row.label), []).append(column[1].short)
    lines = []
    for why, rows in found.items():
        by_heads: dict[str, list[str]] = {}
        for label, heads in rows.items():
            by_heads.setdefault("" if why.endswith("was not run") else ", ".join(heads), []).append(label)
        for heads, labels in by_heads.items():
            names = ", ".join(f"`{label}`" for label in labels)
            lines.append(f"{why} for {names}" if not heads else f"no {heads} of {names}: {why}")
    return lines


def _paragraphs(lines: list[str]) -> list[str]:
    return [text for line in dict.fromkeys(lines) for text in (line, "")]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_records(board: Board) -> list[dict[str, Any]]:
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
                record["metrics"][column_key(column)] = {"value": None, "because": row.why_not(column)}
                continue
            value = {"value": found[0], "error": found[1], "rank": board.rank(row, column)}
            front = {"front": board.on_front(row, column)} if column[1].against_l0 else {}
            record["metrics"][column_key(column)] = {**value, **front}
        records.append(record)
    return records


def to_json(boards: list[Board]) -> str:
    found = [{"conditions": board.conditions, "rows": to_records(board)} for board in boards]
    return json.dumps(found, indent=1) + "\n"


def to_csv(boards: list[Board]) -> str:
    """A line per row; `evaluation.metric` and, beside it, its error and rank."""
    lines: list[dict[str, Any]] = []
    for number_of_board, board in enumerate(boards):
        for record in to_records(board):
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


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
