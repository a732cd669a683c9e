"""The picture of a trace of α."""

from __future__ import annotations

import io

import numpy as np

from eval_runners.measures.alpha_trace import LEVELS, READ


def draw_trace(trace: dict[str, np.ndarray], title: str) -> bytes:
    """PNG: α, what moves it, and what M and F cost, over the steps of both levels, phases shaded."""
    import matplotlib
    from matplotlib.figure import Figure

    phase = trace["phase"]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 7), layout="constrained")
        axes = figure.subplots(3, 2, sharex=True, squeeze=False)
        for column, level in enumerate(LEVELS):
            own, steps = {name: trace[f"{level}.{name}"] for name in READ}, np.arange(len(phase))  # gaps are gaps
            top, middle, bottom = axes[:, column]
            top.plot(steps, own["alpha"], color="C0")
            top.set_ylim(-0.02, 1.02)
            top.set_title(f"{level} level: α")
            middle.plot(steps, own["drive"], color="C1", linewidth=0.7)
            middle.axhline(0, color="0.5", linewidth=0.7)
            middle.set_title("what moves α")
            bottom.plot(steps, own["penalty"] * own["alpha"] * own["magnitude"], label="magnitude, λ α M")
            bottom.plot(steps, own["penalty"] * (1 - own["alpha"]) * own["frequency"], label="frequency, λ (1-α) F")
            bottom.set_title("penalties")
            bottom.set_xlabel("step")
            bottom.legend(frameon=False)
            for panel in (top, middle, bottom):
                for number in (1, 2, 3):
                    own_steps = np.flatnonzero(phase == number)
                    if len(own_steps) and number % 2 == 0:
                        panel.axvspan(own_steps[0], own_steps[-1] + 1, color="0.5", alpha=0.12, linewidth=0)
                    if len(own_steps) and panel is top:
                        middle_step = (own_steps[0] + own_steps[-1]) / 2
                        panel.text(middle_step, 1.0, f"phase {number}", ha="center", va="top", fontsize=7, color="0.4")
                panel.set_xlim(0, len(phase))
        if title:
            figure.suptitle(title)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
