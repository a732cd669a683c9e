"""alpha_dynamics: how the balance that an SAE learns moved through its training, from the trace beside its weights.

Of each level: α, mean over the last fifth of its steps; converged, if it moved, keeps within a range there and has no
slope; the step from which it stays near its end; oscillation, peak to peak without the trend; collapsed, if it moved
to 0 or 1; the steps on which magnitude costs more than frequency. In words: constant, collapsed, oscillates, converged,
drifts.

With `--stress` the same SAE is trained with frequency in a ten times larger unit, and from other starts: a balance that
is learned is the same afterwards. Naive learning must collapse, and theory says to which end: see `learnable_dual`.

For SAEs that were trained here and keep a trace (`learnable_dual`, `dual_adaptive`). Shapes: T steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval_runners.contract.contract import Direction, Evaluation, Metric, Untrained
from eval_runners.measures.alpha_trace import (
    LAST,
    LEVELS,
    ONLY,
    READ,
    alpha_movement,
    describe_dynamics,
    level_alpha,
    level_columns,
    mean_costs,
    read_trace,
    stress_changes,
)
from eval_runners.views.alpha_picture import draw_trace
from sae_variants.common.errors import UsageError

NAME = "alpha_dynamics"


@dataclass(frozen=True)
class EvalConfig:
    range_tolerance: float = 0.05
    """Range of α over the last fifth of the steps below which it has converged."""
    slope_tolerance: float = 0.05
    """Slope of α there, per 1,000 steps, below which it has converged."""
    stress: bool = False
    """Whether the SAE is also trained with another unit of frequency, and from other starts."""
    scale: float = 10.0
    """Unit of frequency under stress."""
    starts: tuple[float, ...] = (0.1, 0.5, 0.9)
    """α at the start under stress."""


_NAMES: tuple[tuple[str, str, Direction, str], ...] = (
    ("alpha", "α, mean over the last fifth", "neither", "α"),
    ("converged", "converged (1) or not (0)", "neither", "converged"),
    ("converged_step", "step from which α stays near its end", "neither", ""),
    ("range", "range of α over the last fifth", "lower", ""),
    ("slope", "slope of α there, per 1,000 steps", "neither", ""),
    ("oscillation", "peak to peak of α in the second half, without trend", "lower", ""),
    ("collapsed", "collapsed (1) or not (0)", "lower", "collapsed"),
    ("collapsed_step", "step from which α is at an end", "neither", ""),
    ("drive", "mean size of what moves α, last fifth", "neither", ""),
    ("magnitude_dominates", "share of steps on which magnitude costs more than frequency", "neither", ""),
    ("magnitude", "M at the end", "neither", ""),
    ("frequency", "F at the end", "neither", ""),
    ("l0", "L0 in training at the end", "neither", ""),
    ("scale_change", "change of α with another unit of frequency", "lower", "unit × 10"),
    ("starts_range", "range of α over starts", "lower", "starts"),
)
METRICS = tuple(
    Metric(
        f"{level}.{name}", f"{level}: {title}", better, f"eval_result_metrics.{level}.{name}",
        short=f"{level}: {short}" if short else "",
    )
    for level in LEVELS
    for name, title, better, short in _NAMES
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, LEVELS, tuple(name for name, *_ in _NAMES))


def words(result: dict[str, Any]) -> list[str]:
    """What a result says of each level."""
    return [f"{level}: {said}" for level, said in result["eval_result_unstructured"]["verdict"].items()]


def refuses(plan: Any, config: EvalConfig) -> str:
    if not plan.resolved.get("tracing"):
        return f"{ONLY}, and that were trained with tracing"
    if config.stress and "start_alpha" not in plan.resolved:
        return "--stress is for SAEs whose balance is learned, such as learnable_dual"
    return ""


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str, found: Any = None) -> Evaluation:
    """The movement of each level's α, its verdict, and a picture."""
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.store.envelope import make_output
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    if config.stress and len(set(config.starts)) < 2:
        raise UsageError("--starts needs two different values at least")
    if min(config.range_tolerance, config.slope_tolerance) <= 0 or not config.scale > 0:
        raise UsageError("--range-tolerance, --slope-tolerance and --scale must be positive")
    trace = read_trace(getattr(found, "folder", None))
    details = getattr(sae.cfg.metadata, "training_architecture_details", None) or {}
    is_naive = details.get("learning") == "naive"
    values: dict[str, dict[str, Any]] = {level: dict.fromkeys(name for name, *_ in _NAMES) for level in LEVELS}
    verdicts, failures = {}, []
    for level in LEVELS:
        own, steps = level_columns(trace, level)
        if any(not np.isfinite(own[name]).all() for name in READ):
            raise Untrained(f"the trace of the {level} level has values that are no numbers")
        if len(steps) < 2 * LAST:
            raise UsageError(f"the trace has {len(steps)} steps of the {level} level: train longer")
        moved = alpha_movement(own["alpha"], steps, config.range_tolerance, config.slope_tolerance)
        values[level] |= moved | mean_costs(own)
        verdicts[level] = describe_dynamics(moved, own, steps, is_naive)
        if not values[level]["l0"] > 0:
            failures.append(f"no latent of the {level} level fires at the end of the training")
    if not sae.W_dec.any():
        failures.append("every decoder row is zero")
    stressed: list[dict[str, Any]] = []
    if config.stress:
        stressed = _stress(found, config, device)
        for level in LEVELS:
            values[level] |= stress_changes(stressed, level, values[level]["alpha"])
    output = make_output(NAME, config, finite_or_none(values), sae, target)
    ours = {"verdict": verdicts, "stress": stressed}
    return Evaluation(output, ours, failures, {"trace.png": draw_trace(trace, getattr(found, "label", ""))})


def _stress(found: Any, config: EvalConfig, device: str) -> list[dict[str, Any]]:
    """α at the end of the same SAE with another unit of frequency, and from each start; trains what is missing."""
    from sae_variants.training.train import train_plans

    plan = getattr(found, "plan", None)
    if plan is None or "start_alpha" not in plan.resolved:
        raise UsageError("--stress trains an SAE anew: give the name of a variant whose balance is learned")
    changes: list[dict[str, float]] = [{"frequency_scale": plan.resolved["frequency_scale"] * config.scale}]
    changes += [{"start_alpha": start} for start in config.starts]
    plans = [replace(plan, fields={**plan.fields, **change}) for change in changes]
    train_plans(plans, device)
    rows = []
    for change, made in zip(changes, plans, strict=True):
        trace = read_trace(made.folder)
        ends = {
            level: alpha_movement(*level_alpha(trace, level), config.range_tolerance, config.slope_tolerance)["alpha"]
            for level in LEVELS
        }
        rows.append({**change, **ends})
    return rows


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
