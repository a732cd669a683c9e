"""The picture of a grid: the leaderboard's metrics over the first field, a line per value of the others."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

from eval_runners.leaderboard.rows import column_key, metrics_of
from eval_runners.leaderboard.terminal import to_frame
from eval_runners.store.read import Result
from sae_variants.common.errors import UsageError
from sae_variants.common.files import write_atomically

COLUMNS = 3


FORMATS = (".png", ".svg", ".pdf")


def check_picture(path: Path, grid: list[str]) -> None:
    """UsageError, before any work, if there will be nothing to draw, or the file's ending is none of a picture's."""
    if not grid:
        raise UsageError("--picture draws a --grid: give one")
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--picture ends with {', '.join(FORMATS)}, not {path.name!r}")


def draw_grid(path: Path, results: list[tuple[Any, Result]], axes: list[str]) -> None:
    """Mean and standard error over seeds, a panel for each metric of the leaderboard, or each where it has none."""
    import matplotlib
    from matplotlib.figure import Figure

    table = to_frame(results)
    evaluations = dict.fromkeys(result["eval_type_id"] for _, result in results)
    every = [(evaluation, metric) for evaluation in evaluations for metric in metrics_of(evaluation)]
    known = [column for column in every if column_key(column) in table]
    panels = [column for column in known if column[1].short] or known
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *axes])))
    first, others = axes[0], axes[1:]
    fixed = {found.label: _fixed(found.label, axes) for found, _ in results}
    table = table.assign(line=table.apply(lambda row: _line(row, others), axis="columns"))
    values = list(dict.fromkeys(table[first].dropna()))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = values if numeric else list(range(len(values)))
    with matplotlib.rc_context({"font.size": 9}):
        rows = math.ceil(len(panels) / COLUMNS)
        figure = Figure(figsize=(4 * COLUMNS, 2.8 * rows), layout="constrained")
        grid_of_axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for panel, (evaluation, metric) in zip(grid_of_axes, panels, strict=False):
            for line, part in table.groupby("line", sort=False):
                found = part.groupby(first, sort=False, dropna=False)[column_key((evaluation, metric))]
                mean, error = found.mean(), found.sem().fillna(0.0)
                if part[first].isna().all():
                    panel.axhline(mean.iloc[0], linestyle="--", color="0.5", label=line)
                    panel.axhspan(mean.iloc[0] - error.iloc[0], mean.iloc[0] + error.iloc[0], color="0.5", alpha=0.2)
                    continue
                at = [places[values.index(value)] for value in mean.index]
                panel.errorbar(at, mean, error, marker="o", capsize=2, label=line)
            panel.set_title(f"{metric.short or metric.title} ({evaluation})", fontsize=9)
            panel.set_xlabel(first)
            positive = [place for place in places if place > 0] if numeric else []
            if positive and min(places) >= 0 and _is_stretched(places):
                has_zero = len(positive) < len(places)
                panel.set_xscale("symlog" if has_zero else "log", **({"linthresh": min(positive)} if has_zero else {}))
            panel.set_xticks(places, labels=[f"{v:g}" if isinstance(v, float) else str(v) for v in values])
            panel.minorticks_off()
        for empty in grid_of_axes[len(panels) :]:
            empty.set_axis_off()
        if same := set(fixed.values()) - {""}:
            figure.suptitle("; ".join(sorted(same)), fontsize=10)
        handles, labels = grid_of_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format=path.suffix.lstrip(".").lower())
    write_atomically(path, buffer.getvalue(), "--picture")


def _is_stretched(places: list[Any]) -> bool:
    """Whether one step is longer than all others together, so that a straight scale crowds the rest."""
    ordered = sorted(places)
    steps = [b - a for a, b in itertools.pairwise(ordered)]
    return len(steps) > 1 and 2 * max(steps) > ordered[-1] - ordered[0]


def _fixed(label: str, axes: list[str]) -> str:
    """What an SAE differs in from its recipe beside the fields of the grid: `temporal: pairs=adjacent`."""
    name, _, fields = label.rstrip("]").partition("[")
    words = [word for word in fields.split() if word.partition("=")[0] not in axes]
    return f"{name}: {' '.join(words)}" if words else ""


def _line(row: Any, fields: list[str]) -> str:
    own = [f"{field}={row[field]}" for field in fields if row[field] == row[field]]
    return row["sae"] + (f" {' '.join(own)}" if own else "")
