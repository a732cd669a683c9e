"""Tables on the terminal: boards, metrics of the SAEs of a command, rows per task, differences to a baseline."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Metric, value_at
from eval_runners.leaderboard.notes import untrained_reasons
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
from eval_runners.store.read import Result, mean_and_error, metric_value
from sae_variants.common.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _short_number(number: Number | None) -> str:
    if number is None:
        return "-"
    mean, error = number
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {error:.2g}"


def print_metrics(metrics: Iterable[Metric], columns: dict[str, list[Result]]) -> None:
    """Print mean and, over several seeds, standard error. A metric that no SAE has is left out.

    Args:
        metrics: a line for each.
        columns: label of each SAE -> its results, one per seed.
    """
    from rich.table import Table

    table = Table("metric", "better")
    for label, results in columns.items():
        trained = all(result["eval_result_unstructured"]["trained"] for result in results)
        seeds = f", {len(results)} seeds" if len(results) > 1 else ""
        table.add_column(f"{label}{seeds}" if trained else f"{label}{seeds} (untrained)", justify="right")
    for metric in metrics:
        if any(value_at(result, metric.path) is not None for results in columns.values() for result in results):
            numbers = [mean_and_error(metric, results) for results in columns.values()]
            table.add_row(metric.title, ARROWS[metric.better], *map(_short_number, numbers))
    _print_table(table)


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
    from rich.table import Table

    table = Table(title=title)
    for number, row in enumerate(rows):
        if number == 0:
            for name, value in row.items():
                table.add_column(name, justify="left" if isinstance(value, str) else "right")
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    _print_table(table)


def print_differences(
    metrics: Iterable[Metric], label: str, results: list[Result], name: str, baseline: Result
) -> None:
    """Print every metric that both have, the difference, and whether it is better or worse."""
    from rich.table import Table

    table = Table("metric", label, name, "difference", "")
    for metric in metrics:
        ours, theirs = mean_and_error(metric, results), metric_value(metric, baseline)
        if ours is None or theirs is None:
            continue
        difference = ours[0] - theirs
        is_better = {"higher": difference > 0, "lower": difference < 0}.get(metric.better)
        verdict = "" if is_better is None or difference == 0 else "better" if is_better else "worse"
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
        for text in ("L0", "latents", "tokens", "seeds", *map(format_head, board.shown)):
            table.add_column(text, justify="right")
        for row in board.rows:
            name = f"{row.label} (untrained)" if row.untrained else row.label
            cells = [format_cell(board, row, column, "*") for column in board.shown]
            style = "dim" if row.untrained or not row.results else None
            sizes = format_count(row.d_sae), format_count(row.training_tokens)
            table.add_row(escape(name), format_l0(row), *sizes, row.n_seeds, *cells, style=style)
        console.print(table)
        for label, reason in untrained_reasons(board):
            console.print(f"{escape(label)} is untrained: {escape(reason)}", style="dim")
    if boards:
        console.print(LEGEND.replace("Bold", "*"), style="dim")
