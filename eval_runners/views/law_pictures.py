"""Pictures of the scaling laws that the evaluator `scaling` fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval_runners.measures.law_report import FittedLaw
from eval_runners.views.figures import to_image

if TYPE_CHECKING:
    pass

AXES = ("latents n", "active latents k", "training tokens t")


def draw_law(laws: Mapping[str, FittedLaw], differing: Sequence[int]) -> bytes:
    """Draw the loss over each variable that differs: SAEs as dots, the law as lines.

    Args:
        laws: name -> law; each has a row of panels.
        differing: axes of the panels, 0 for n, 1 for k, 2 for t.

    Returns:
        A PNG file.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4.6 * len(differing), 3.6 * len(laws)), layout="constrained")
        panels = figure.subplots(len(laws), len(differing), squeeze=False)
        for row, (name, fitted) in zip(panels, laws.items(), strict=True):
            points, losses = fitted.points_P3, fitted.losses_P
            for panel, axis in zip(row, differing, strict=True):
                others = [i for i in range(3) if i != axis]
                groups = sorted({tuple(np.round(p[others], 1)) for p in points})
                for number, group in enumerate(groups):
                    member = (np.round(points[:, others], 1) == group).all(1)
                    if len(set(points[member, axis])) < 2:
                        continue
                    color = matplotlib.colormaps["viridis"](number / max(1, len(groups) - 1))
                    panel.plot(points[member, axis], losses[member], "o", color=color, markersize=3)
                    line = np.repeat(points[member][:1], 40, 0)
                    line[:, axis] = np.geomspace(points[member, axis].min(), points[member, axis].max(), 40)
                    label = ", ".join(f"{'nkt'[i]} = {points[member][0, i]:.3g}" for i in others if i in differing)
                    panel.plot(line[:, axis], fitted.law.predict(line), color=color, linewidth=1, label=label or None)
                panel.set(xscale="log", yscale="log", xlabel=AXES[axis], ylabel="1 - explained variance", title=name)
                if panel.get_legend_handles_labels()[1]:
                    panel.legend(frameon=False, fontsize=6)
        return to_image(figure, "png", crop=False)


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
