"""Tables on the terminal: boards, metrics of the SAEs of a command, rows per task, differences to a baseline."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Metric, value_at
from eval_runners.leaderboard.notes import trust_notes, untrained_notes
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.render import (
    ARROWS,
    LEGEND,
    board_title,
    format_cell,
    format_count,
    format_head,
    format_l0,
)
from eval_runners.leaderboard.rows import Column, Number, metrics_of
from eval_runners.store.read import Result, mean_and_interval, metric_value
from sae_variants.common.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


PADDING = 3
"""Characters of a table's column beside its content."""
LONGEST_HEAD = 40
"""Characters of a head that stays on a line; longer ones are folded."""
WIDTH_OF_FILES = 200
"""Characters of a line where the output is no terminal and COLUMNS is not set."""


def _width() -> int:
    from rich.console import Console

    return Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_OF_FILES


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console(width=_width()).print(table)


def _short_number(number: Number | None) -> str:
    if number is None:
        return "-"
    mean, half = number
    return f"{mean:.4g}" if half is None else f"{mean:.4g} ± {half:.2g}"


def print_metrics(metrics: Iterable[Metric], columns: dict[str, list[Result]]) -> None:
    """Print mean and, over several seeds, half of its 95 % interval. A metric that no SAE has is left out.

    SAEs are columns, in as many tables as the terminal's width needs. If these are several, a last one has all SAEs as
    rows, and as many of the main metrics, L0 and those with a short name, as fit.

    Args:
        metrics: a line for each.
        columns: label of each SAE -> its results, one per seed.
    """
    shown = [
        metric
        for metric in metrics
        if any(value_at(result, metric.path) is not None for results in columns.values() for result in results)
    ]
    heads: list[str] = []
    cells: list[list[str]] = []
    for label, results in columns.items():
        trained = all(result["eval_result_unstructured"]["trained"] for result in results)
        seeds = f", {len(results)} seeds" if len(results) > 1 else ""
        heads.append(f"{label}{seeds}" if trained else f"{label}{seeds} (untrained)")
        cells.append([_short_number(mean_and_interval(metric, results)) for metric in shown])
    first = [max(map(len, ["metric", *(metric.title for metric in shown)])), len("better")]
    widths = [max(map(len, [head, *column])) for head, column in zip(heads, cells, strict=True)]
    parts = split_columns(widths, _width() - sum(first) - 2 * PADDING - 1)
    for part in parts:
        _print_table(_metric_table(shown, [heads[i] for i in part], [cells[i] for i in part]))
    if len(parts) > 1:
        _print_table(_main_table(shown, heads, cells))


def split_columns(widths: Sequence[int], room: int) -> list[range]:
    """Split columns into tables that fit; a column that is too wide alone has a table of its own.

    Args:
        widths: characters of each column.
        room: characters for columns in a table.
    """
    tables: list[range] = []
    start = used = 0
    for number, width in enumerate(widths):
        if number > start and used + width + PADDING > room:
            tables.append(range(start, number))
            start, used = number, 0
        used += width + PADDING
    return [*tables, range(start, len(widths))]


def _metric_table(metrics: Sequence[Metric], heads: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("metric", "better")
    for head in heads:
        table.add_column(escape(head), justify="right", overflow="fold", no_wrap=len(head) <= LONGEST_HEAD)
    for number, metric in enumerate(metrics):
        table.add_row(escape(metric.title), ARROWS[metric.better], *(column[number] for column in cells))
    return table


def _main_table(metrics: Sequence[Metric], heads: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """Return the table with SAEs as rows and the main metrics that fit."""
    from rich.markup import escape
    from rich.table import Table

    main = [number for number, metric in enumerate(metrics) if metric.short or metric.key == "l0"]
    widths = [max(map(len, [format_head(metrics[i]), *(column[i] for column in cells)])) for i in main]
    (fit, *_) = split_columns(widths, _width() - max(map(len, ["SAE", *heads])) - 2 * PADDING - 1)
    main = [main[i] for i in fit]
    table = Table("SAE")
    for i in main:
        table.add_column(escape(format_head(metrics[i])), justify="right")
    for head, column in zip(heads, cells, strict=True):
        table.add_row(escape(head), *(column[i] for i in main))
    return table


def to_frame(results: Sequence[tuple[Any, Result]]) -> pd.DataFrame:
    """One row per target, SAE and seed: its name, the fields of its grid point, every metric that any of them has.

    Args:
        results: located SAE and result.

    Returns:
        A pandas frame whose metrics are columns named `evaluation.metric`.
    """
    import pandas as pd

    rows: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    for located, result in results:
        target, label, seed = result["sae_lens_release_id"], located.label, located.seed
        head = {"sae": label.partition("[")[0], "label": label, "target": target, "seed": seed}
        row = rows.setdefault((target, label, seed), {**head, **located.grid_point})
        evaluation = result["eval_type_id"]
        for metric in metrics_of(evaluation):
            row[Column(evaluation, metric).key] = metric_value(metric, result)
    return pd.DataFrame(list(rows.values())).dropna(axis="columns", how="all")


def write_csv(path: Path, results: Sequence[tuple[Any, Result]]) -> None:
    """Write the frame of the results to a file."""
    write_atomically(path, to_frame(results).to_csv(index=False), "--csv")


def print_details(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print rows that all have the same columns."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    for number, row in enumerate(rows):
        if number == 0:
            for name, value in row.items():
                table.add_column(escape(name), justify="left" if isinstance(value, str) else "right")
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    _print_table(table)


def print_differences(
    metrics: Iterable[Metric], label: str, results: list[Result], name: str, baseline: Result
) -> None:
    """Print every metric that both have, the difference, and whether it is better, worse, or within our interval."""
    from rich.table import Table

    table = Table("metric", label, name, "difference", "")
    for metric in metrics:
        ours, theirs = mean_and_interval(metric, results), metric_value(metric, baseline)
        if ours is None or theirs is None:
            continue
        difference = ours[0] - theirs
        is_better = {"higher": difference > 0, "lower": difference < 0}.get(metric.better)
        within = ours[1] is not None and abs(difference) <= ours[1]
        verdict = "" if is_better is None or difference == 0 else "better" if is_better else "worse"
        verdict = "within the interval" if verdict and within else verdict
        table.add_row(metric.title, _short_number(ours), f"{theirs:.4g}", f"{difference:+.4g}", verdict)
    _print_table(table)


def print_boards(boards: Sequence[Board]) -> None:
    """Print one table for every board; untrained rows are dim."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 240)
    for board in boards:
        table = Table(title=board_title(board))
        table.add_column("SAE", overflow="fold", min_width=24)
        for text in ("L0", "latents", "tokens", "seeds", *(format_head(column.metric) for column in board.shown)):
            table.add_column(text, justify="right")
        for row in board.rows:
            name = f"{row.label} (untrained)" if row.untrained else row.label
            cells = [format_cell(board, row, column, "*") for column in board.shown]
            style = "dim" if row.untrained or not row.results else None
            sizes = format_count(row.d_sae), format_count(row.training_tokens)
            table.add_row(escape(name), format_l0(row), *sizes, row.n_seeds(board.conditions), *cells, style=style)
        console.print(table)
        for note in [*untrained_notes(board), *trust_notes(board)]:
            console.print(escape(note), style="dim")
    if boards:
        console.print(LEGEND.replace("Bold", "*"), style="dim")
