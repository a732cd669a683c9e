"""Did the balance α of magnitude and frequency that an SAE learns converge, drift, oscillate or collapse?

α is read from the trace that the training writes beside the SAE's weights. The end of the training is the last fifth of
the steps in which a level trains. α has converged if it moved, and its range and slope at the end are within the
tolerances; it has collapsed if it moved to 0 or 1 and stays there.

With `--stress` the same SAE is trained with frequency in another unit and from other starts. A balance that is learned
is the same afterwards. Naive learning of α collapses, and theory predicts to which bound: see `learnable_dual`.

Only SAEs that were trained here and keep a trace can be evaluated, such as `learnable_dual` and `dual_adaptive`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from eval_runners.contract.contract import (
    UNSTRUCTURED,
    Context,
    Direction,
    Evaluation,
    Evaluator,
    Metric,
    Result,
    Untrained,
)
from eval_runners.measures.alpha_trace import (
    COLUMNS,
    LEVELS,
    SUPPORTED_SAES,
    alpha_movement,
    describe_movement,
    level_columns,
    mean_costs,
    read_trace,
    stress_changes,
)
from eval_runners.views.alpha_picture import draw_trace
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from eval_runners.contract.located import LocatedSAE
    from sae_variants.language_model.target import Target
    from sae_variants.training.plan import Plan

MIN_STEPS = 10
"""Steps of a level from which its movement can be measured."""


@dataclass(frozen=True)
class Settings:
    """Settings of the movement of α."""

    range_tolerance: float = 0.05
    """Largest range of α over the last fifth of the steps at which α has converged."""
    slope_tolerance: float = 0.05
    """Largest slope of α over the last fifth of the steps, per 1,000 steps, at which α has converged."""
    stress: bool = False
    """Also train the SAE with another unit of frequency and from other starts."""
    scale: float = 10.0
    """Factor on the unit of frequency under stress."""
    starts: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Values of α at the start of the training under stress, two different values or more."""


_METRICS: tuple[tuple[str, str, Direction, str], ...] = (
    ("alpha", "α, mean over the last fifth", "neither", "α"),
    ("converged", "converged (1) or not (0)", "neither", "converged"),
    ("converged_step", "step from which α stays near its end", "neither", ""),
    ("range", "range of α over the last fifth", "lower", ""),
    ("slope", "slope of α over the last fifth, per 1,000 steps", "neither", ""),
    ("oscillation", "peak to peak of α in the second half, without trend", "lower", ""),
    ("collapsed", "collapsed (1) or not (0)", "lower", "collapsed"),
    ("collapsed_step", "step from which α stays at 0 or 1", "neither", ""),
    ("drive", "mean size of the drive on α, last fifth", "neither", ""),
    ("magnitude_dominates", "share of steps on which magnitude costs more than frequency", "neither", ""),
    ("magnitude", "magnitude M, mean over the last fifth", "neither", ""),
    ("frequency", "frequency F, mean over the last fifth", "neither", ""),
    ("l0", "L0 in training, mean over the last fifth", "neither", ""),
    ("scale_change", "change of α with another unit of frequency", "lower", "unit × 10"),
    ("starts_range", "range of α over starts", "lower", "starts"),
)
METRICS = tuple(
    Metric(
        level,
        name,
        f"{level}: {title}",
        better,
        short=f"{level}: {short}" if short else "",
        column=f"{level}.{name}",
    )
    for level in LEVELS
    for name, title, better, short in _METRICS
)


class AlphaDynamics(Evaluator[Settings]):
    """The movement of α in training, by level."""

    settings_class = Settings
    metrics = METRICS
    needs_truth = None

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse tolerances and factors that are not positive, and a single start."""
        if settings.stress and len(set(settings.starts)) < 2:
            raise UsageError("--starts needs two different values or more")
        if min(settings.range_tolerance, settings.slope_tolerance) <= 0 or not settings.scale > 0:
            raise UsageError("--range-tolerance, --slope-tolerance and --scale must be positive")
        return settings, {}

    def why_unsupported(self, plan: Plan, settings: Settings) -> str:
        """The variant keeps no trace, or has no α that stress could start elsewhere."""
        if not plan.resolved.get("tracing"):
            return SUPPORTED_SAES
        if settings.stress and "start_alpha" not in plan.resolved:
            return "--stress is for SAEs whose balance is learned, such as learnable_dual"
        return ""

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Measure and describe the movement of α in each level, and draw the trace."""
        from eval_runners.measures.checks import require_finite_weights

        require_finite_weights(sae)
        located = context.located
        trace = read_trace(located.folder if located else None)
        details = getattr(sae.cfg.metadata, "training_architecture_details", None) or {}
        is_naive = details.get("learning") == "naive"
        values: dict[str, float | None] = {}
        verdicts: dict[str, str] = {}
        alphas: dict[str, float] = {}
        failures: list[str] = []
        for level in LEVELS:
            columns, steps = level_columns(trace, level)
            if any(not np.isfinite(columns[name]).all() for name in COLUMNS):
                raise Untrained(f"the trace of the {level} level has values that are not finite")
            if len(steps) < MIN_STEPS:
                raise UsageError(f"the trace has {len(steps)} steps of the {level} level: train longer")
            movement = alpha_movement(columns["alpha"], steps, settings.range_tolerance, settings.slope_tolerance)
            costs = mean_costs(columns)
            values |= _with_level(level, {**movement.values(), **costs})
            verdicts[level], alphas[level] = describe_movement(movement, columns, steps, is_naive), movement.alpha
            if not costs["l0"] > 0:
                failures.append(f"no latent of the {level} level fires at the end of the training")
        if not sae.W_dec.any():
            failures.append("every decoder row is zero")
        stressed = _train_under_stress(located, settings, context.device) if settings.stress else []
        for level in LEVELS:
            values |= _with_level(level, stress_changes(stressed, level, alphas[level]))
        picture = draw_trace(trace, located.label if located else "")
        return Evaluation(values, {"verdict": verdicts, "stress": stressed}, failures, {"trace.png": picture})

    def summary_lines(self, result: Result) -> list[str]:
        """The description of each level's movement."""
        return [f"{level}: {verdict}" for level, verdict in result[UNSTRUCTURED]["verdict"].items()]


def _with_level(level: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metric id -> value of the metrics of one level."""
    return {f"{level}.{name}": value for name, value in values.items()}


def _train_under_stress(located: LocatedSAE | None, settings: Settings, device: str) -> list[dict[str, float]]:
    """Train the same SAE with another unit of frequency, and from each start, where that is missing.

    Returns:
        For each training the field that was changed, and α at the end of each level.
    """
    from eval_runners.harness.find_sae import SAERequest, locate_all

    plan = located.plan if located else None
    if plan is None or "start_alpha" not in plan.resolved:
        raise UsageError("--stress trains an SAE again: give the name of a variant whose balance is learned")
    changes: list[dict[str, float]] = [{"frequency_scale": plan.resolved["frequency_scale"] * settings.scale}]
    changes += [{"start_alpha": start} for start in settings.starts]
    plans = [replace(plan, fields={**plan.fields, **change}) for change in changes]
    stressed = locate_all([SAERequest(changed.full_name, changed) for changed in plans], device)
    rows = []
    for change, each in zip(changes, stressed, strict=True):
        trace = read_trace(each.folder)
        row = dict(change)
        for level in LEVELS:
            columns, steps = level_columns(trace, level)
            row[level] = alpha_movement(columns["alpha"], steps).alpha
        rows.append(row)
    return rows


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
