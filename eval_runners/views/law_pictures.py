"""Pictures of the scaling laws that the evaluator `scaling` fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval_runners.measures.law_report import FittedLaw
from eval_runners.views.figures import shades, style_for, to_image
from eval_runners.views.styles import Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = ("latents n", "active latents k", "training tokens t")
MOST_TICKS = 7
LABEL_DISTANCE = 1.05
"""Least ratio of the heights of two labels, which would overlap without it; larger n, k and t have smaller losses."""


def draw_law(laws: Mapping[str, FittedLaw], differing: Sequence[int], page: Page) -> bytes:
    """Draw the loss over each variable that differs: SAEs as dots, the law as lines.

    Args:
        laws: name -> law; each has a row of panels.
        differing: axes of the panels, 0 for n, 1 for k, 2 for t.
        page: background that the picture, which is transparent, is for.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    with style_for(page):
        figure = Figure(figsize=(max(4.1 * len(differing), 5), 3.6 * len(laws) + 0.3), layout="constrained")
        panels = figure.subplots(len(laws), len(differing), squeeze=False)
        for row, (name, fitted) in zip(panels, laws.items(), strict=True):
            for panel, axis in zip(row, differing, strict=True):
                _draw_panel(panel, fitted, axis, [i for i in differing if i != axis], page)
            row[0].set_ylabel(f"{name}: 1 - explained variance ↓" if len(laws) > 1 else "1 - explained variance ↓")
        names = f" of {next(iter(laws))}" if len(laws) == 1 else ""
        figure.suptitle(f"Dots: SAEs{names}. Lines: the law fitted to them. Lower is better.", fontsize=10)
        return to_image(figure, "png", crop=False, transparent=True)


def _draw_panel(panel: Axes, fitted: FittedLaw, axis: int, named: Sequence[int], page: Page) -> None:
    """Draw the loss over one variable, a line for each combination of the others, labelled at its start."""
    import numpy as np
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    points, losses = fitted.points_P3, fitted.losses_P
    others = [i for i in range(3) if i != axis]
    keys = np.round(points[:, others], 1)
    groups = [group for group in np.unique(keys, axis=0) if len(set(points[(keys == group).all(1), axis])) > 1]
    heights: list[float] = []
    for color, group in zip(shades(len(groups), page), groups, strict=True):
        member = (keys == group).all(1)
        panel.plot(points[member, axis], losses[member], "o", color=color, markersize=4)
        line = np.repeat(points[member][:1], 40, 0)
        line[:, axis] = np.geomspace(points[member, axis].min(), points[member, axis].max(), 40)
        predicted = fitted.law.predict(line)
        panel.plot(line[:, axis], predicted, color=color, linewidth=1.4)
        label = ", ".join(f"{'nkt'[i]} {_count(points[member][0, i])}" for i in named)
        heights.append(min(predicted[0], heights[-1] / LABEL_DISTANCE) if heights else predicted[0])
        at, place = (line[0, axis], heights[-1]), {"xytext": (-6, 0), "textcoords": "offset points", "va": "center"}
        panel.annotate(label, at, ha="right", fontsize=8, color=color, **place)
    values = np.unique(np.round(points[:, axis], 1))
    panel.set(xscale="log", yscale="log", xlabel=AXES[axis], xlim=(values[0] / (values[-1] / values[0]) ** 0.28, None))
    shown = values if len(values) <= MOST_TICKS else values[:: -(-len(values) // MOST_TICKS)]
    panel.set_xticks(shown, labels=[_count(value) for value in shown])
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.minorticks_off()
    panel.grid()


def _count(value: float) -> str:
    """A number of latents or tokens as people write it: 512, 16,384, 1.05M."""
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value:,.0f}"


def draw_residuals(laws: Mapping[str, FittedLaw]) -> bytes:
    """Draw ln(loss / law) of each SAE over n, coloured by k.

    Returns:
        A PNG file.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 3 * len(laws)), layout="constrained")
        panels = figure.subplots(len(laws), 1, squeeze=False)[:, 0]
        for panel, (name, fitted) in zip(panels, laws.items(), strict=True):
            n_P, k_P = fitted.points_P3[:, 0], fitted.points_P3[:, 1]
            dots = panel.scatter(n_P, -fitted.log_residuals_P, c=np.log2(k_P), s=14)
            panel.axhline(0, color="0.5", linewidth=0.7)
            panel.set(xscale="log", xlabel="latents n", ylabel="ln(loss / law)", title=name)
            figure.colorbar(dots, ax=panel, label="log2 k")
        return to_image(figure, "png", crop=False)
