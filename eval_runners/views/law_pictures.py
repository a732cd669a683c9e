"""Pictures of the laws that `scaling` fits: name -> points [P, 3] of n, k and t, their losses [P], and the law."""

from __future__ import annotations

import io
from typing import Any


def draw_law(laws: dict[str, Any], differing: list[int]) -> bytes:
    """Loss over those of n, k and t that differ, a panel for each, with the law as lines."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    axes = ("latents n", "active latents k", "training tokens t")
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4.6 * len(differing), 3.6 * len(laws)), layout="constrained")
        panels = figure.subplots(len(laws), len(differing), squeeze=False)
        for row, (name, (points, losses, law)) in zip(panels, laws.items(), strict=True):
            for panel, axis in zip(row, differing, strict=True):
                others = [i for i in range(3) if i != axis]
                groups = sorted({tuple(np.round(p[others], 1)) for p in points})
                for number, group in enumerate(groups):
                    own = (np.round(points[:, others], 1) == group).all(1)
                    if len(set(points[own, axis])) < 2:
                        continue
                    color = matplotlib.colormaps["viridis"](number / max(1, len(groups) - 1))
                    panel.plot(points[own, axis], losses[own], "o", color=color, markersize=3)
                    line = np.repeat(points[own][:1], 40, 0)
                    line[:, axis] = np.geomspace(points[own, axis].min(), points[own, axis].max(), 40)
                    label = ", ".join(f"{'nkt'[i]} = {points[own][0, i]:.3g}" for i in others if i in differing)
                    panel.plot(line[:, axis], law.predict(line), color=color, linewidth=1, label=label or None)
                panel.set(xscale="log", yscale="log", xlabel=axes[axis], ylabel="1 - explained variance", title=name)
                if panel.get_legend_handles_labels()[1]:
                    panel.legend(frameon=False, fontsize=6)
        return _png(figure)


def draw_residuals(laws: dict[str, Any]) -> bytes:
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 3 * len(laws)), layout="constrained")
        for panel, (name, (points, losses, law)) in zip(
            figure.subplots(len(laws), 1, squeeze=False)[:, 0], laws.items(), strict=True
        ):
            shown = panel.scatter(points[:, 0], np.log(losses / law.predict(points)), c=np.log2(points[:, 1]), s=14)
            panel.axhline(0, color="0.5", linewidth=0.7)
            panel.set(xscale="log", xlabel="latents n", ylabel="ln(loss / law)", title=name)
            figure.colorbar(shown, ax=panel, label="log2 k")
        return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
