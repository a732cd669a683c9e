"""Picture of a metric over L0: a line for each SAE, mean and 95 % interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.render import ARROWS
from eval_runners.leaderboard.rows import Column, Row
from eval_runners.views.figures import style_for, to_image
from eval_runners.views.styles import Page, architecture_of, styles_of
from sae_variants.common.errors import UsageError

FORMATS = (".png", ".svg", ".pdf")
ONE_TICK = 1.1
"""L0 up to this factor above the smallest share a tick."""


def draw_over_l0(path: Path, board: Board, column: Column, page: Page) -> bytes:
    """Draw a metric of the trained SAEs of a board over L0; rows of one name are one line.

    Args:
        path: file that the picture is for; its ending, one of `FORMATS`, chooses the format.
        board: rows to draw.
        column: metric of the vertical axis.
        page: background that the picture, which is transparent, is for.

    Returns:
        Content of the file.

    Raises:
        UsageError: no row has an L0 and the metric.
    """
    from matplotlib.figure import Figure

    lines = _lines(board, column)
    if not lines:
        raise UsageError(f"--picture has nothing to draw: no trained SAE with an L0 has {column.key}")
    styles = styles_of(map(architecture_of, lines))
    with style_for(page):
        figure = Figure(figsize=(8.2, 3.8), layout="constrained")
        axes = figure.subplots()
        for name, points in lines.items():
            style = styles[architecture_of(name)]
            levels, means, halves = zip(*points, strict=True)
            look = {"color": style.colour.on(page), "marker": style.matplotlib_marker, "markersize": 6}
            look |= {"linestyle": style.matplotlib_dash, "linewidth": 1.8}
            axes.errorbar(levels, means, halves, label=name, capsize=3, **look)
        axes.set_xscale("log")
        ticks = _ticks([l0 for points in lines.values() for l0, _, _ in points])
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("L0: latents per token")
        axes.set_ylabel(f"{column.head} {ARROWS[column.metric.better]}")
        axes.grid()
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return to_image(figure, path.suffix.lower().lstrip("."), crop=False, transparent=True)


def _ticks(levels: Sequence[float]) -> list[int]:
    """The median of every group of levels that are close to each other, rounded."""
    groups: list[list[float]] = []
    for level in sorted(levels):
        if groups and level <= ONE_TICK * groups[-1][0]:
            groups[-1].append(level)
        else:
            groups.append([level])
    return [round(median(group)) for group in groups]


def _lines(board: Board, column: Column) -> dict[str, list[tuple[float, float, float]]]:
    """Name -> L0, mean and half interval of its trained rows, by L0; the name with the largest mean first."""
    points_of: dict[str, list[tuple[float, float, float]]] = {}
    rows: list[Row] = [row for row in board.rows if row.results and not row.untrained and row.l0]
    for row in sorted(rows, key=lambda row: row.l0 or 0.0):
        if (number := row.number(column)) and row.l0:
            points_of.setdefault(row.name, []).append((row.l0, number[0], number[1] or 0.0))
    return dict(sorted(points_of.items(), key=lambda item: -max(mean for _, mean, _ in item[1])))
