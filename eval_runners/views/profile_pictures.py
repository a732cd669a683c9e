"""Arrays and pictures of `positional_consistency`: autocorrelation, position profiles, related latents."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from torch import Tensor

from eval_runners.measures.autocorrelation import Statistics
from eval_runners.measures.position_profiles import ProfileClusters, Related
from eval_runners.views.figures import to_png


def draw_profiles(
    latents: Statistics,
    keep_S: Tensor,
    profiles: ProfileClusters,
    related: Related,
    curves: dict[str, dict[str, float]],
) -> dict[str, bytes]:
    """Arrays as `npz` and pictures as `png`, by the end of their file's name. `curves`: name -> its metrics."""
    fires_BS, tokens_B = latents.profile.binned()
    arrays = {
        "fires_BS": fires_BS, "tokens_B": tokens_B, "rate_BS": profiles.rate_BS, "counts_S": keep_S,
        "cluster_S": profiles.cluster_S, "cluster_centres": profiles.centres, "cluster_kinds": np.array(profiles.kinds),
        "autocorrelation_LS": latents.lagged.correlation_LS(), "lags": np.array(latents.lags),
        "related_latents": related.latents, "related_correlation": related.correlation_PP(),
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in arrays.items()})
    return {
        "npz": buffer.getvalue(),
        "autocorrelation.png": _curves(latents.lags, curves),
        "profiles.png": _heat(profiles, keep_S),
        "related.png": _matrix(related.correlation_PP().cpu().numpy(), related.latents.tolist()),
    }


def _axes(width: float = 6, height: float = 4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


STYLE: dict[Any, Any] = {"font.size": 10}


def _curves(lags: tuple[int, ...], curves: dict[str, dict[str, float]]) -> bytes:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        for name, found in curves.items():
            dashed = name.startswith(("residual", "document"))
            axes.plot(
                lags, [found[f"autocorrelation_{lag}"] for lag in lags], "--" if dashed else "-", marker="o", label=name
            )
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lags, labels=[str(lag) for lag in lags])
        axes.set_xlabel("lag, tokens")
        axes.set_ylabel("autocorrelation")
        axes.legend(frameon=False)
        return to_png(figure)


def _heat(profiles: ProfileClusters, keep_S: Tensor) -> bytes:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(6, 5)
        index = keep_S.nonzero().squeeze(1)
        cluster = profiles.cluster_S[index]
        order = cluster.argsort(stable=True)
        rate_SB = profiles.rate_BS.T[index[order]].cpu().numpy()
        image = axes.imshow(rate_SB, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", interpolation="nearest")
        edges = np.flatnonzero(np.diff(cluster[order].cpu().numpy())) + 0.5
        for edge in edges:
            axes.axhline(edge, color="black", linewidth=0.8)
        places: list[float] = []
        names = []
        for i, kind in enumerate(profiles.kinds):
            rows = np.flatnonzero(cluster[order].cpu().numpy() == i)
            if len(rows):  # labels keep their distance where clusters are thin
                least = places[-1] + 0.05 * len(rate_SB) if places else 0.0
                places.append(max(float(rows.mean()), least))
                names.append(f"{kind} ({len(rows)})")
        axes.set_yticks(places, labels=names)
        axes.tick_params("y", length=0)
        axes.set_xlabel("position in the context, bins")
        figure.colorbar(image, label="rate of firing / its mean")
        return to_png(figure)


def _matrix(correlation: np.ndarray, latents: list[int]) -> bytes:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(5.5, 4.8)
        image = axes.imshow(correlation, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        every = range(0, len(latents), 4)
        axes.set_xticks(every, labels=[str(latents[i]) for i in every], rotation=90, fontsize=7)
        axes.set_yticks(every, labels=[str(latents[i]) for i in every], fontsize=7)
        axes.set_xlabel(f"the {len(correlation)} latents closest to another, by decoder; every fourth number")
        figure.colorbar(image, label="correlation of activations")
        return to_png(figure)
