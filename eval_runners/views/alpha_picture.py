"""The picture of a trace of α: what α, the drive on it and the penalties were in every step of the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from eval_runners.measures.alpha_trace import COLUMNS, LEVELS
from eval_runners.views.figures import to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = (1, 2, 3)


def draw_trace(trace: Mapping[str, np.ndarray], title: str) -> bytes:
    """Draw α, the drive on it and both penalties of each level over the steps of the training.

    Args:
        trace: of `alpha_trace.read_trace`. Gaps in its columns, where a level did not train, stay gaps.
        title: title of the picture; "" for none.

    Returns:
        A PNG. Every second phase of the training is shaded.
    """
    import matplotlib
    from matplotlib.figure import Figure

    phase = trace["phase"]
    steps = np.arange(len(phase))
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 7), layout="constrained")
        axes = figure.subplots(3, 2, sharex=True, squeeze=False)
        for number, level in enumerate(LEVELS):
            columns = {name: trace[f"{level}.{name}"] for name in COLUMNS}
            top, middle, bottom = axes[:, number]
            top.plot(steps, columns["alpha"], color="C0")
            top.set_ylim(-0.02, 1.02)
            top.set_title(f"{level} level: α")
            middle.plot(steps, columns["drive"], color="C1", linewidth=0.7)
            middle.axhline(0, color="0.5", linewidth=0.7)
            middle.set_title("drive on α")
            magnitude = columns["penalty"] * columns["alpha"] * columns["magnitude"]
            frequency = columns["penalty"] * (1 - columns["alpha"]) * columns["frequency"]
            bottom.plot(steps, magnitude, label="magnitude, λ α M")
            bottom.plot(steps, frequency, label="frequency, λ (1-α) F")
            bottom.set_title("penalties")
            bottom.set_xlabel("step")
            bottom.legend(frameon=False)
            for panel in (top, middle, bottom):
                _mark_phases(panel, phase, with_names=panel is top)
        if title:
            figure.suptitle(title)
        return to_image(figure, "png", crop=False)


def _mark_phases(panel: Axes, phase: np.ndarray, with_names: bool) -> None:
    for number in PHASES:
        steps = np.flatnonzero(phase == number)
        if not len(steps):
            continue
        if number % 2 == 0:
            panel.axvspan(steps[0], steps[-1] + 1, color="0.5", alpha=0.12, linewidth=0)
        if with_names:
            middle = (steps[0] + steps[-1]) / 2
            panel.text(middle, 1.0, f"phase {number}", ha="center", va="top", fontsize=7, color="0.4")
    panel.set_xlim(0, len(phase))
