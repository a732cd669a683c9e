"""What a command prints about its results: a row per metric, a row per task, the distance to a baseline."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval_runners.contract import contract as _contract
from eval_runners.leaderboard import rows as _rows
from eval_runners.store import read as _read
from eval_runners.store.read import Result
from sae_variants.common.files import write_whole


def _print(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _number(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "-"
    mean, error = found
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {error:.2g}"


def print_metrics(metrics: Iterable[_contract.Metric], columns: dict[str, list[Result]]) -> None:
    """Mean and, over several seeds, standard error. A metric that no SAE has is left out."""
    from rich.table import Table

    table = Table("metric", "better")
    for label, results in columns.items():
        trained = all(result["eval_result_unstructured"]["trained"] for result in results)
        seeds = f", {len(results)} seeds" if len(results) > 1 else ""
        table.add_column(f"{label}{seeds}" if trained else f"{label}{seeds} (untrained)", justify="right")
    for metric in metrics:
        if any(_contract.at(result, metric.path) is not None for results in columns.values() for result in results):
            found = [_read.mean_and_error(metric, results) for results in columns.values()]
            table.add_row(metric.title, _contract.ARROWS[metric.better], *map(_number, found))
    _print(table)


def as_frame(results: list[tuple[Any, Result]]) -> Any:
    """One row per target, SAE and seed: what it is, the fields of its grid's cell, every metric that any of them has.

    Metrics are columns named `evaluation.metric`.
    """
    import pandas as pd

    rows: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    for found, result in results:
        target = result["sae_lens_release_id"]
        new = {"sae": found.label.partition("[")[0], "label": found.label, "target": target, "seed": found.seed}
        row = rows.setdefault((target, found.label, found.seed), {**new, **found.cell})
        evaluation = result["eval_type_id"]
        for metric in _rows.module(evaluation).METRICS:
            row[_rows.key((evaluation, metric))] = _read.value(metric, result)
    return pd.DataFrame(list(rows.values())).dropna(axis="columns", how="all")


def write_csv(path: Path, results: list[tuple[Any, Result]]) -> None:
    write_whole(path, as_frame(results).to_csv(index=False), "--csv")


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
    metrics: Iterable[_contract.Metric], label: str, results: list[Result], name: str, baseline: Result
) -> None:
    """Every metric that both have, the difference, and whether it is for the better."""
    from rich.table import Table

    table = Table("metric", label, name, "difference", "")
    for metric in metrics:
        ours, theirs = _read.mean_and_error(metric, results), _read.value(metric, baseline)
        if ours is None or theirs is None:
            continue
        difference = ours[0] - theirs
        good = {"higher": difference > 0, "lower": difference < 0}.get(metric.better)
        word = "" if good is None or difference == 0 else "better" if good else "worse"
        table.add_row(metric.title, _number(ours), f"{theirs:.4g}", f"{difference:+.4g}", word)
    _print(table)
