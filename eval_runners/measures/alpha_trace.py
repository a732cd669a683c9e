"""The trace of α that a training leaves beside its weights: reading it, and what it shows. Shapes: T steps."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sae_variants.common.errors import UsageError

LEVELS = ("upper", "lower")
ONLY = "alpha_dynamics is for SAEs with a balance, such as learnable_dual"
AT_END = 0.02
"""α this near to 0 or 1 has collapsed."""
LAST = 5
"""The end is the last one of so many parts of the steps."""
MOVES = 1e-6
READ = ("alpha", "drive", "penalty", "magnitude", "frequency", "l0")
"""Columns of a level in the trace."""
CYCLES = 4
"""Full waves in the second half of the steps from which a movement is an oscillation,"""
POWER = 0.6
"""and the share of its power that lies there; of 1,000 random walks two pass."""


def read_trace(folder: Path | None) -> dict[str, np.ndarray]:
    """Column -> values [T] of the trace beside the weights; that of a part lies beside the whole.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from sae_variants.training.plan import TRACE

    places = [folder] if folder else []
    if folder and (folder.parent / "cfg.json").is_file():  # a part of an SAE
        places.append(folder.parent)
    files = [place / TRACE for place in places if (place / TRACE).is_file()]
    if not files:
        raise UsageError(
            f"there is no {TRACE} beside the weights: {ONLY}, and that were trained with tracing; "
            "`sae_variants train --force` trains one again"
        )
    try:
        with np.load(io.BytesIO(files[0].read_bytes()), allow_pickle=False) as file:
            trace = dict(file)
        needed = {"phase"} | {f"{level}.{name}" for level in LEVELS for name in READ}
        if missing := needed - trace.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        shapes = {trace[name].shape for name in needed}
        if len(shapes) > 1 or trace["phase"].ndim != 1 or any(trace[name].dtype.kind != "f" for name in needed):
            raise ValueError("its columns are not numbers of one length")
        trace |= {name: trace[name].astype(np.float64) for name in needed}
        if len(told := np.flatnonzero(np.isfinite(trace["phase"]))) < len(trace["phase"]):
            raise ValueError(f"it has {len(told)} of {len(trace['phase'])} steps")
        if any((np.abs(trace[f"{level}.alpha"] - 0.5) > 0.5 + MOVES).any() for level in LEVELS):
            raise ValueError("an α is below 0 or above 1")
        return trace
    except (OSError, EOFError, ValueError, TypeError, BadZipFile, zlib.error) as error:
        raise UsageError(f"cannot read {files[0]}: {error}") from error


def level_columns(trace: dict[str, np.ndarray], level: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns of a level at the steps in which it trained, and these steps."""
    trains = trace["phase"] != (2 if level == "lower" else 1)
    return {name: trace[f"{level}.{name}"][trains] for name in READ}, np.flatnonzero(trains)


def _last_part(length: int) -> slice:
    return slice(length - max(2, length // LAST), None)


def alpha_movement(
    alpha: np.ndarray, steps: np.ndarray, range_tolerance: float = 0.05, slope_tolerance: float = 0.05
) -> dict[str, Any]:
    """What α [T] did: numbers of `METRICS`, and whether it moved and oscillates at all."""
    from scipy.signal import detrend

    tail = _last_part(len(alpha))
    end, reach = float(alpha[tail].mean()), float(np.ptp(alpha[tail]))
    slope = float(np.polyfit(steps[tail], alpha[tail], 1)[0]) * 1000
    wave = detrend(alpha[len(alpha) // 2 :])
    moved = bool(np.ptp(alpha) > MOVES)
    at_end = alpha <= AT_END if end < 0.5 else alpha >= 1 - AT_END
    collapsed = moved and bool(at_end[tail].all())
    converged = moved and reach <= range_tolerance and abs(slope) <= slope_tolerance
    return {
        "alpha": end,
        "converged": float(converged),
        "converged_step": _since(np.abs(alpha - end) <= range_tolerance, steps) if converged else None,
        "range": reach,
        "slope": slope,
        "oscillation": float(np.ptp(wave)),
        "collapsed": float(collapsed),
        "collapsed_step": _since(at_end, steps) if collapsed else None,
        "moved": moved,
        "oscillates": bool(np.ptp(wave) > range_tolerance and _is_periodic(wave)),
    }


def _since(holds: np.ndarray, steps: np.ndarray) -> float | None:
    """The first step from which on it holds."""
    broken = np.flatnonzero(~holds)
    first = broken[-1] + 1 if len(broken) else 0
    return float(steps[first]) if first < len(steps) else None


def _is_periodic(wave: np.ndarray) -> bool:
    """Whether one frequency, of several full waves, has most of the power; a random walk has it in the lowest."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    peak = int(power[1:].argmax()) + 1
    return peak >= CYCLES and power[peak - 1 : peak + 2].sum() > POWER * power[1:].sum()


def mean_costs(own: dict[str, np.ndarray]) -> dict[str, Any]:
    tail = _last_part(len(own["alpha"]))
    costs = own["alpha"] * own["magnitude"], (1 - own["alpha"]) * own["frequency"]
    return {
        **{name: float(own[name][tail].mean()) for name in ("magnitude", "frequency", "l0")},
        "drive": float(np.abs(own["drive"][tail]).mean()),
        "magnitude_dominates": float((costs[0] > costs[1]).mean()),
    }


def describe_dynamics(
    moved: dict[str, Any], own: dict[str, np.ndarray], steps: np.ndarray, is_naive: bool = False
) -> str:
    """What happened, in words; of naive learning also whether as theory has it: α falls while M > F."""
    at = f"at {moved['alpha']:.3f}"
    if not moved["moved"]:
        return f"constant {at}"
    if moved["collapsed"]:
        before = steps <= max(moved["collapsed_step"], steps[0] + 1)
        share = float((own["magnitude"][before] > own["frequency"][before]).mean())
        end = round(moved["alpha"])
        said = f"collapsed to {end} at step {moved['collapsed_step']:.0f}; until then M > F on {share:.0%} of the steps"
        expected = 0 if share > 0.5 else 1
        return said if not is_naive else f"{said}, {'as' if end == expected else 'against what'} theory has it"
    if moved["oscillates"]:
        return f"oscillates {at}, by {moved['oscillation']:.3f} from peak to peak"
    if moved["converged"]:
        return f"converged {at} from step {moved['converged_step']:.0f} on"
    return f"drifts: {at}, range {moved['range']:.3f}, slope {moved['slope']:+.3f} per 1,000 steps in the last fifth"


def level_alpha(trace: dict[str, np.ndarray], level: str) -> tuple[np.ndarray, np.ndarray]:
    own, steps = level_columns(trace, level)
    return own["alpha"], steps


def stress_changes(stressed: list[dict[str, Any]], level: str, alpha: float) -> dict[str, float]:
    starts = [row[level] for row in stressed if "start_alpha" in row]
    scaled = [row[level] for row in stressed if "frequency_scale" in row]
    found = {"scale_change": abs(scaled[0] - alpha)} if scaled else {}
    return found | ({"starts_range": max(starts) - min(starts)} if starts else {})
