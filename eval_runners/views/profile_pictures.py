"""Arrays and pictures of `positional_consistency`: autocorrelation, position profiles, neighbouring latents."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from eval_runners.measures.context_statistics import ContextStatistics
from eval_runners.measures.decoder_neighbours import NeighbourCorrelation
from eval_runners.measures.position_profiles import ProfileClusters
from eval_runners.views.figures import to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT_SIZE = 10
CURVES = {
    "all": ("all latents", "-"),
    "slow": ("slow latents", "-"),
    "fast": ("fast latents", "-"),
    "persistent": ("most persistent latents", "-"),
    "residual": ("residual stream", "--"),
    "document_direction": ("document direction", "--"),
}
"""Category -> label and line style of its curve."""
LABEL_DISTANCE = 0.05
"""Least distance between the labels of two clusters, as a share of the picture's height."""


def draw_profiles(
    latents: ContextStatistics,
    keep_S: Tensor,
    profiles: ProfileClusters,
    neighbours: NeighbourCorrelation,
    by_category: Mapping[str, Mapping[str, float]],
) -> dict[str, bytes]:
    """Draw the pictures, and store what they are drawn from.

    Args:
        latents: statistics of all latents.
        keep_S: mask of the latents that count.
        profiles: clusters of their position profiles.
        neighbours: correlation of the latents closest to another one.
        by_category: category -> metric name -> value.

    Returns:
        Arrays as `npz` and pictures as `png`, by the end of their file's name.
    """
    return {
        "npz": _arrays(latents, keep_S, profiles, neighbours),
        "autocorrelation.png": _draw_autocorrelation(latents.lags, by_category),
        "profiles.png": _draw_rates(profiles, keep_S),
        "related.png": _draw_correlation(neighbours.correlation_PP().cpu().numpy(), neighbours.latents.tolist()),
    }


def _arrays(
    latents: ContextStatistics, keep_S: Tensor, profiles: ProfileClusters, neighbours: NeighbourCorrelation
) -> bytes:
    """Store the arrays in NumPy's compressed format."""
    fires_BS, tokens_B = latents.profile.binned()
    arrays: dict[str, Tensor | np.ndarray] = {
        "fires_BS": fires_BS,
        "tokens_B": tokens_B,
        "rate_BS": profiles.rate_BS,
        "counts_S": keep_S,
        "cluster_S": profiles.cluster_S,
        "cluster_centres": profiles.centres,
        "cluster_kinds": np.array(profiles.kinds),
        "autocorrelation_LS": latents.lagged.correlation_LS(),
        "lags": np.array(latents.lags),
        "related_latents": neighbours.latents,
        "related_correlation": neighbours.correlation_PP(),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in arrays.items()})
    return buffer.getvalue()


def _draw_autocorrelation(lags: tuple[int, ...], by_category: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw autocorrelation over lag, a line per category; references are dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": FONT_SIZE}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for category, (label, style) in CURVES.items():
            if metrics := by_category.get(category):
                curve = [metrics[f"autocorrelation_{lag}"] for lag in lags]
                axes.plot(lags, curve, style, marker="o", label=label)
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lags, labels=[str(lag) for lag in lags])
        axes.set_xlabel("lag, tokens")
        axes.set_ylabel("autocorrelation")
        axes.legend(frameon=False)
        return to_png(figure)


def _draw_rates(profiles: ProfileClusters, keep_S: Tensor) -> bytes:
    """Draw the firing rate of each latent over positions, a row per latent, clusters separated by lines."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": FONT_SIZE}):
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.subplots()
        index = keep_S.nonzero().squeeze(1)
        cluster = profiles.cluster_S[index]
        order = cluster.argsort(stable=True)
        rate_SB = profiles.rate_BS.T[index[order]].cpu().numpy()
        image = axes.imshow(rate_SB, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", interpolation="nearest")
        _label_clusters(axes, profiles.kinds, cluster[order].cpu().numpy())
        axes.set_xlabel("position in the context, bins")
        figure.colorbar(image, label="firing rate / mean rate of the latent")
        return to_png(figure)


def _label_clusters(axes: Axes, kinds: list[str], cluster_of_row: np.ndarray) -> None:
    """Separate the clusters by lines, and label each with its kind and its number of latents."""
    for edge in np.flatnonzero(np.diff(cluster_of_row)) + 0.5:
        axes.axhline(edge, color="black", linewidth=0.8)
    heights: list[float] = []
    labels = []
    for cluster, kind in enumerate(kinds):
        rows = np.flatnonzero(cluster_of_row == cluster)
        if len(rows):  # The labels of thin clusters would overlap without the least distance.
            lowest = heights[-1] + LABEL_DISTANCE * len(cluster_of_row) if heights else 0.0
            heights.append(max(float(rows.mean()), lowest))
            labels.append(f"{kind} ({len(rows)})")
    axes.set_yticks(heights, labels=labels)
    axes.tick_params("y", length=0)


def _draw_correlation(correlation_PP: np.ndarray, latents: list[int]) -> bytes:
    """Draw the correlation matrix of neighbouring latents, with the number of every fourth latent."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": FONT_SIZE}):
        figure = Figure(figsize=(5.5, 4.8), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(correlation_PP, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        ticks = range(0, len(latents), 4)
        labels = [str(latents[i]) for i in ticks]
        axes.set_xticks(ticks, labels=labels, rotation=90, fontsize=7)
        axes.set_yticks(ticks, labels=labels, fontsize=7)
        axes.set_xlabel(f"{len(latents)} latents closest to another one by decoder; every fourth is numbered")
        figure.colorbar(image, label="correlation of activations")
        return to_png(figure)
