"""What a command prints about its results: a row per metric, a row per task, the distance to a baseline."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Metric, value_at
from eval_runners.leaderboard.boards import Board
from eval_runners.leaderboard.render import (
    ARROWS,
    LEGEND,
    _escaped,
    _untrained,
    board_title,
    format_cell,
    format_count,
    format_head,
)
from eval_runners.leaderboard.rows import column_key, metrics_of
from eval_runners.store.read import Result, mean_and_error, metric_value
from sae_variants.common.files import write_atomically


def _print(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _number(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "-"
    mean, error = found
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {error:.2g}"


def print_metrics(metrics: Iterable[Metric], columns: dict[str, list[Result]]) -> None:
    """Mean and, over several seeds, standard error. A metric that no SAE has is left out."""
    from rich.table import Table

    table = Table("metric", "better")
    for label, results in columns.items():
        trained = all(result["eval_result_unstructured"]["trained"] for result in results)
        seeds = f", {len(results)} seeds" if len(results) > 1 else ""
        table.add_column(f"{label}{seeds}" if trained else f"{label}{seeds} (untrained)", justify="right")
    for metric in metrics:
        if any(value_at(result, metric.path) is not None for results in columns.values() for result in results):
            found = [mean_and_error(metric, results) for results in columns.values()]
            table.add_row(metric.title, ARROWS[metric.better], *map(_number, found))
    _print(table)


def to_frame(results: list[tuple[Any, Result]]) -> Any:
    """One row per target, SAE and seed: what it is, the fields of its grid's cell, every metric that any of them has.

    Metrics are columns named `evaluation.metric`.
    """
    import pandas as pd

    rows: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    for found, result in results:
        target = result["sae_lens_release_id"]
        new = {"sae": found.label.partition("[")[0], "label": found.label, "target": target, "seed": found.seed}
        row = rows.setdefault((target, found.label, found.seed), {**new, **found.grid_point})
        evaluation = result["eval_type_id"]
        for metric in metrics_of(evaluation):
            row[column_key((evaluation, metric))] = metric_value(metric, result)
    return pd.DataFrame(list(rows.values())).dropna(axis="columns", how="all")


def write_csv(path: Path, results: list[tuple[Any, Result]]) -> None:
    write_atomically(path, to_frame(results).to_csv(index=False), "--csv")


def print_details(title: str, rows: Iterable[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title=title)
    for number, row in enumerate(rows):
        if number == 0:
            for name, value in row.items():
                table.add_column(name, justify="left" if isinstance(value, str) else "right")
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    _print(table)


def print_differences(
    metrics: Iterable[Metric], label: str, results: list[Result], name: str, baseline: Result
) -> None:
    """Every metric that both have, the difference, and whether it is for the better."""
    from rich.table import Table

    table = Table("metric", label, name, "difference", "")
    for metric in metrics:
        ours, theirs = mean_and_error(metric, results), metric_value(metric, baseline)
        if ours is None or theirs is None:
            continue
        difference = ours[0] - theirs
        good = {"higher": difference > 0, "lower": difference < 0}.get(metric.better)
        word = "" if good is None or difference == 0 else "better" if good else "worse"
        table.add_row(metric.title, _number(ours), f"{theirs:.4g}", f"{difference:+.4g}", word)
    _print(table)


def print_boards(boards: list[Board]) -> None:
    """One table on the terminal for every board; untrained rows are dim."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 240)
    for board in boards:
        columns = board.shown
        table = Table(title=board_title(board))
        table.add_column("SAE", overflow="fold", min_width=24)
        for text in ("L0", "latents", "tokens", "seeds", *map(format_head, columns)):
            table.add_column(text, justify="right")
        for row in board.rows:
            name = f"{row.label} (untrained)" if row.untrained else row.label
            cells = [format_cell(board, row, column, "*") for column in columns]
            l0 = f"{row.l0:.1f}" if row.l0 is not None else "-"
            style = "dim" if row.untrained or not row.results else None
            sizes = format_count(row.d_sae), format_count(row.training_tokens)
            table.add_row(_escaped(name), l0, *sizes, row.n_seeds, *cells, style=style)
        console.print(table)
        for name, why in _untrained(board):
            console.print(f"{_escaped(name)} is untrained: {_escaped(why)}", style="dim")
    if boards:
        console.print(LEGEND.replace("Bold", "*"), style="dim")
