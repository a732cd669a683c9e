"""The trace of α that training writes beside an SAE's weights: reading it, and describing how α moved.

α is the weight of magnitude M against frequency F in the penalty λ (α M + (1 - α) F) on the latents of a level.

Shapes: T steps.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sae_variants.common.errors import UsageError

LEVELS = ("upper", "lower")
SUPPORTED_SAES = "alpha_dynamics is for SAEs with a balance, such as learnable_dual, that were trained with tracing"
COLUMNS = ("alpha", "drive", "penalty", "magnitude", "frequency", "l0")
"""Columns of each level in the trace."""
FROZEN_PHASE = {"lower": 2, "upper": 1}
"""Phase of the training in which a level does not train."""
COLLAPSE_DISTANCE = 0.02
"""Distance of α from 0 or 1 at which it has collapsed."""
PARTS = 5
"""The end of the training is the last of this many equal parts of its steps."""
MOVEMENT = 1e-6
"""Range of α above which it has moved."""
MIN_CYCLES = 4
"""Full waves in the second half of the steps from which a movement can be an oscillation."""
MIN_POWER_SHARE = 0.6
"""Share of the movement's power at one frequency that makes it an oscillation. 2 of 1,000 random walks reach it."""


def read_trace(folder: Path | None) -> dict[str, np.ndarray]:
    """Read the trace of an SAE, or of the SAE that it is a part of.

    Args:
        folder: folder of the weights; None for an SAE that exists in memory only.

    Returns:
        Column, such as `phase` or `upper.alpha` -> values [T]. NaN where a level did not train.

    Raises:
        UsageError: there is no trace, or it cannot be read.
    """
    from sae_variants.training.plan import TRACE

    folders = [folder] if folder else []
    if folder and (folder.parent / "cfg.json").is_file():  # the folder of a part lies in the folder of the whole SAE
        folders.append(folder.parent)
    files = [candidate / TRACE for candidate in folders if (candidate / TRACE).is_file()]
    if not files:
        raise UsageError(
            f"there is no {TRACE} beside the weights: {SUPPORTED_SAES}; `sae_variants train --force` trains it again"
        )
    try:
        with np.load(io.BytesIO(files[0].read_bytes()), allow_pickle=False) as archive:
            return _check_trace(dict(archive))
    except (OSError, EOFError, ValueError, TypeError, BadZipFile, zlib.error) as error:
        raise UsageError(f"cannot read {files[0]}: {error}") from error


def _check_trace(trace: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The trace in float64. ValueError if it lacks columns or steps, or has impossible values."""
    needed = {"phase"} | {f"{level}.{name}" for level in LEVELS for name in COLUMNS}
    if missing := needed - trace.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    shapes = {trace[name].shape for name in needed}
    if len(shapes) > 1 or trace["phase"].ndim != 1 or any(trace[name].dtype.kind != "f" for name in needed):
        raise ValueError("its columns are not numbers of the same length")
    trace |= {name: trace[name].astype(np.float64) for name in needed}
    if (recorded := int(np.isfinite(trace["phase"]).sum())) < len(trace["phase"]):
        raise ValueError(f"it has {recorded} of {len(trace['phase'])} steps")
    if any((np.abs(trace[f"{level}.alpha"] - 0.5) > 0.5 + MOVEMENT).any() for level in LEVELS):
        raise ValueError("an α is below 0 or above 1")
    return trace


def level_columns(trace: Mapping[str, np.ndarray], level: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Select the steps in which a level trains.

    Returns:
        The level's columns at these steps, by name; the steps.
    """
    trains = trace["phase"] != FROZEN_PHASE[level]
    return {name: trace[f"{level}.{name}"][trains] for name in COLUMNS}, np.flatnonzero(trains)


def _end_of(length: int) -> slice:
    return slice(length - max(2, length // PARTS), None)


@dataclass(frozen=True)
class Movement:
    """How α moved in the steps in which its level trains. The end is the last fifth of these steps."""

    alpha: float
    """Mean of α at the end."""
    range: float
    """Range of α at the end."""
    slope: float
    """Slope of α at the end, per 1,000 steps."""
    oscillation: float
    """Range of α in the second half of the steps, after the linear trend is removed."""
    moved: bool
    """Whether α changed at all."""
    converged_step: float | None
    """Step from which α stays near its mean at the end, if it moved and range and slope at the end are tolerable."""
    collapsed_step: float | None
    """Step from which α stays at 0 or 1, if it moved there and stays there throughout the end."""
    oscillates: bool
    """Whether α moves by more than the tolerance, mostly at one frequency."""

    def values(self) -> dict[str, float | None]:
        """The metrics of the movement by name."""
        return {
            "alpha": self.alpha,
            "converged": float(self.converged_step is not None),
            "converged_step": self.converged_step,
            "range": self.range,
            "slope": self.slope,
            "oscillation": self.oscillation,
            "collapsed": float(self.collapsed_step is not None),
            "collapsed_step": self.collapsed_step,
        }


def alpha_movement(
    alpha: np.ndarray, steps: np.ndarray, range_tolerance: float = 0.05, slope_tolerance: float = 0.05
) -> Movement:
    """Measure how α moved.

    Args:
        alpha: α [T].
        steps: training steps [T] of these values.
        range_tolerance: range of α at the end below which it can have converged.
        slope_tolerance: slope of α at the end, per 1,000 steps, below which it can have converged.
    """
    from scipy.signal import detrend

    end = _end_of(len(alpha))
    mean, reach = float(alpha[end].mean()), float(np.ptp(alpha[end]))
    slope = float(np.polyfit(steps[end], alpha[end], 1)[0]) * 1000
    wave = detrend(alpha[len(alpha) // 2 :])
    moved = bool(np.ptp(alpha) > MOVEMENT)
    at_bound = alpha <= COLLAPSE_DISTANCE if mean < 0.5 else alpha >= 1 - COLLAPSE_DISTANCE
    collapsed = moved and bool(at_bound[end].all())
    converged = moved and reach <= range_tolerance and abs(slope) <= slope_tolerance
    return Movement(
        alpha=mean,
        range=reach,
        slope=slope,
        oscillation=float(np.ptp(wave)),
        moved=moved,
        converged_step=_first_lasting_step(np.abs(alpha - mean) <= range_tolerance, steps) if converged else None,
        collapsed_step=_first_lasting_step(at_bound, steps) if collapsed else None,
        oscillates=bool(np.ptp(wave) > range_tolerance and _is_periodic(wave)),
    )


def _first_lasting_step(holds: np.ndarray, steps: np.ndarray) -> float | None:
    """The first step from which a condition holds until the end; None if it does not hold at the end."""
    broken = np.flatnonzero(~holds)
    first = broken[-1] + 1 if len(broken) else 0
    return float(steps[first]) if first < len(steps) else None


def _is_periodic(wave: np.ndarray) -> bool:
    """Whether a frequency of several full waves has most of the power. A random walk's lies in the lowest."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    peak = int(power[1:].argmax()) + 1
    return peak >= MIN_CYCLES and power[peak - 1 : peak + 2].sum() > MIN_POWER_SHARE * power[1:].sum()


def mean_costs(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Average what the penalty weighs.

    Args:
        columns: of `level_columns`.

    Returns:
        At the end: magnitude M, frequency F, l0 and drive, the mean size of the drive on α. Over all steps:
        magnitude_dominates, the share of steps on which α M > (1 - α) F.
    """
    end = _end_of(len(columns["alpha"]))
    magnitude, frequency = columns["alpha"] * columns["magnitude"], (1 - columns["alpha"]) * columns["frequency"]
    return {
        **{name: float(columns[name][end].mean()) for name in ("magnitude", "frequency", "l0")},
        "drive": float(np.abs(columns["drive"][end]).mean()),
        "magnitude_dominates": float((magnitude > frequency).mean()),
    }


def describe_movement(
    movement: Movement, columns: Mapping[str, np.ndarray], steps: np.ndarray, is_naive: bool = False
) -> str:
    """Describe a movement in a sentence: constant, collapsed, oscillates, converged or drifts.

    Args:
        movement: of `alpha_movement`.
        columns: of `level_columns`.
        steps: of `level_columns`.
        is_naive: whether α follows the gradient of the loss. Then theory predicts that it falls to 0 while M > F, and
            rises to 1 otherwise, and the sentence says whether it did.
    """
    at = f"at {movement.alpha:.3f}"
    if not movement.moved:
        return f"constant {at}"
    if movement.collapsed_step is not None:
        before = steps <= max(movement.collapsed_step, steps[0] + 1)
        share = float((columns["magnitude"][before] > columns["frequency"][before]).mean())
        bound = round(movement.alpha)
        sentence = (
            f"collapsed to {bound} at step {movement.collapsed_step:.0f}; until then M > F on {share:.0%} of the steps"
        )
        predicted = 0 if share > 0.5 else 1
        return f"{sentence}, {'as' if bound == predicted else 'unlike'} theory predicts" if is_naive else sentence
    if movement.oscillates:
        return f"oscillates {at}, peak to peak {movement.oscillation:.3f}"
    if movement.converged_step is not None:
        return f"converged {at} from step {movement.converged_step:.0f} on"
    return f"drifts: {at}, range {movement.range:.3f}, slope {movement.slope:+.3f} per 1,000 steps in the last fifth"


def stress_changes(rows: Iterable[Mapping[str, Any]], level: str, alpha: float) -> dict[str, float]:
    """Compare α at the end of trainings under stress.

    Args:
        rows: one per training: `frequency_scale` or `start_alpha`, and α at the end of each level.
        level: the level to compare.
        alpha: α at the end of the training without stress.

    Returns:
        scale_change: change of α with another unit of frequency. starts_range: range of α over the starts.
    """
    rows = list(rows)
    scaled = [row[level] for row in rows if "frequency_scale" in row]
    started = [row[level] for row in rows if "start_alpha" in row]
    values = {"scale_change": abs(scaled[0] - alpha)} if scaled else {}
    return values | ({"starts_range": max(started) - min(started)} if started else {})
