"""Picture of a grid: the leaderboard's metrics over its first field, with a line for each value of the other fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.leaderboard.rows import Column, metrics_of
from eval_runners.store.read import mean_and_interval, metric_value
from eval_runners.views.figures import to_image
from eval_runners.views.styles import architecture_of, styles_of
from sae_variants.common.errors import UsageError
from sae_variants.common.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eval_runners.contract.contract import Result
    from eval_runners.contract.located import LocatedSAE

    Scored = tuple[LocatedSAE, Result]

PANELS_PER_ROW = 3
FILLS = ("full", "none", "left", "top", "right", "bottom")
"""Fills of the markers of the lines of one architecture, which share its colour, marker and dashes."""
WIDTHS = (1.5, 2.5, 0.8)
"""Widths of its lines, where there are more of them than fills."""
FORMATS = (".png", ".svg", ".pdf")


def check_picture(path: Path, grid: Sequence[str]) -> None:
    """Check, before any work, that there will be a grid to draw and that the file's ending is that of a picture.

    Raises:
        UsageError: names what to give.
    """
    if not grid:
        raise UsageError("--picture draws a --grid: give one")
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--picture ends with {', '.join(FORMATS)}, not {path.name!r}")


def draw_grid(path: Path, scored: Sequence[Scored], fields: Sequence[str]) -> None:
    """Draw mean and 95 % interval over seeds, in a panel for each metric of the leaderboard, or each if it has none.

    Args:
        path: the picture's file.
        scored: SAEs with their results.
        fields: config fields of the grid; the first is the x axis.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = _columns(scored)
    lines = _lines(scored, fields)
    values = list(dict.fromkeys(value for points in lines.values() for value in points if value is not None))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    drawn = _line_styles(lines)
    places = {value: value if numeric else number for number, value in enumerate(values)}
    with matplotlib.rc_context({"font.size": 9}):
        n_rows = math.ceil(len(columns) / PANELS_PER_ROW)
        figure = Figure(figsize=(4 * PANELS_PER_ROW, 2.8 * n_rows), layout="constrained")
        panels = figure.subplots(n_rows, PANELS_PER_ROW, squeeze=False).flatten()
        for panel, column in zip(panels, columns, strict=False):
            for label, points in lines.items():
                _draw_line(panel, column, label, points, places, drawn[label])
            panel.set_title(f"{column.head} ({column.evaluation})", fontsize=9)
            panel.set_xlabel(fields[0])
            if numeric:
                _scale_axis(panel, list(places.values()))
            texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
            panel.set_xticks(list(places.values()), labels=texts)
            panel.minorticks_off()
        for empty in panels[len(columns) :]:
            empty.set_axis_off()
        if shared := {_other_fields(sae.label, fields) for sae, _ in scored} - {""}:
            figure.suptitle("; ".join(sorted(shared)), fontsize=10)
        # a line without a number in one panel is in the legend all the same
        handles = {
            label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        order = [label for label in lines if label in handles]
        figure.legend(
            [handles[label] for label in order],
            order,
            loc="outside lower center",
            ncols=max(1, min(4, len(order))),
            frameon=False,
        )
        content = to_image(figure, path.suffix.lstrip(".").lower())
    write_atomically(path, content, "--picture")


def _columns(scored: Sequence[Scored]) -> list[Column]:
    """The leaderboard's columns for which a result has a number; all such columns where the leaderboard has none."""
    by_type: dict[str, list[Result]] = {}
    for _, result in scored:
        by_type.setdefault(result["eval_type_id"], []).append(result)
    known = [
        Column(evaluation, metric)
        for evaluation, results in by_type.items()
        for metric in metrics_of(evaluation)
        if any(metric_value(metric, result) is not None for result in results)
    ]
    return [column for column in known if column.metric.short] or known


def _lines(scored: Sequence[Scored], fields: Sequence[str]) -> dict[str, dict[Any, list[Result]]]:
    """Label of a line -> value of the first field, None for an SAE that lacks it -> results over seeds."""
    lines: dict[str, dict[Any, list[Result]]] = {}
    for sae, result in scored:
        others = [f"{field}={sae.grid_point[field]}" for field in fields[1:] if sae.grid_point.get(field) is not None]
        label = " ".join([sae.label.partition("[")[0], *others])
        lines.setdefault(label, {}).setdefault(sae.grid_point.get(fields[0]), []).append(result)
    return lines


def _line_styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Label of a line -> arguments of matplotlib; lines of one architecture differ in fill and width."""
    labels = list(labels)
    names = [architecture_of(label) for label in labels]
    styles = styles_of(names)
    drawn = {}
    for position, (label, name) in enumerate(zip(labels, names, strict=True)):
        style, number = styles[name], names[:position].count(name)
        drawn[label] = {
            "color": style.colour.light,
            "marker": style.matplotlib_marker,
            "fillstyle": FILLS[number % len(FILLS)],
            "linestyle": style.matplotlib_dash,
            "linewidth": WIDTHS[number // len(FILLS) % len(WIDTHS)],
        }
    return drawn


def _draw_line(
    panel: Axes,
    column: Column,
    label: str,
    points: Mapping[Any, list[Result]],
    places: Mapping[Any, float],
    style: Mapping[str, Any],
) -> None:
    """Draw an SAE's points with error bars, or a level line with a band if it lacks the field of the x axis."""
    evaluation, metric = column
    known = {
        value: (number[0], number[1] or 0.0)
        for value, results in points.items()
        if (number := mean_and_interval(metric, [r for r in results if r["eval_type_id"] == evaluation]))
    }
    if None in known:
        mean, half = known.pop(None)
        panel.axhline(mean, linestyle="--", color=style["color"], label=label)
        panel.axhspan(mean - half, mean + half, color=style["color"], alpha=0.2)
    if known:
        means, halves = zip(*known.values(), strict=True)
        panel.errorbar([places[value] for value in known], means, halves, capsize=2, label=label, **style)


def _scale_axis(panel: Axes, places: Sequence[float]) -> None:
    """Make the x axis logarithmic where a linear axis would crowd the points."""
    positive = [place for place in places if place > 0]
    if not positive or min(places) < 0 or not _is_stretched(places):
        return
    if len(positive) < len(places):
        panel.set_xscale("symlog", linthresh=min(positive))
    else:
        panel.set_xscale("log")


def _is_stretched(places: Sequence[float]) -> bool:
    """Whether one step is longer than all others together, so that a linear scale crowds the rest."""
    ordered = sorted(places)
    steps = [after - before for before, after in itertools.pairwise(ordered)]
    return len(steps) > 1 and 2 * max(steps) > ordered[-1] - ordered[0]


def _other_fields(label: str, fields: Sequence[str]) -> str:
    """Fields beside the grid's in which an SAE differs from its recipe: `temporal: pairs=adjacent`."""
    name, _, changed = label.rstrip("]").partition("[")
    texts = [text for text in changed.split() if text.partition("=")[0] not in fields]
    return f"{name}: {' '.join(texts)}" if texts else ""
