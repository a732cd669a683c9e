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

import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from eval_runners.contract.contract import Direction, Evaluation, Metric, Untrained
from sae_variants.common.errors import UsageError

NAME = "alpha_dynamics"
ONLY = f"{NAME} is for SAEs with a balance, such as learnable_dual"
CATEGORIES = ("upper", "lower")
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
    for level in CATEGORIES
    for name, title, better, short in _NAMES
)  # fmt: skip


def output_class() -> type:
    from eval_runners.store import envelope as _envelope

    return _envelope.envelope_class(NAME, EvalConfig, CATEGORIES, tuple(name for name, *_ in _NAMES))


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
    from eval_runners.saebench import shared as _saebench
    from eval_runners.store import envelope as _envelope
    from eval_runners.store import result as _result

    _saebench.require_numbers(sae)
    if config.stress and len(set(config.starts)) < 2:
        raise UsageError("--starts needs two different values at least")
    if min(config.range_tolerance, config.slope_tolerance) <= 0 or not config.scale > 0:
        raise UsageError("--range-tolerance, --slope-tolerance and --scale must be positive")
    trace = read_trace(getattr(found, "folder", None))
    details = getattr(sae.cfg.metadata, "training_architecture_details", None) or {}
    is_naive = details.get("learning") == "naive"
    values: dict[str, dict[str, Any]] = {level: dict.fromkeys(name for name, *_ in _NAMES) for level in CATEGORIES}
    verdicts, failures = {}, []
    for level in CATEGORIES:
        own, steps = of_level(trace, level)
        if any(not np.isfinite(own[name]).all() for name in READ):
            raise Untrained(f"the trace of the {level} level has values that are no numbers")
        if len(steps) < 2 * LAST:
            raise UsageError(f"the trace has {len(steps)} steps of the {level} level: train longer")
        moved = dynamics(own["alpha"], steps, config)
        values[level] |= moved | _costs(own)
        verdicts[level] = verdict(moved, own, steps, is_naive)
        if not values[level]["l0"] > 0:
            failures.append(f"no latent of the {level} level fires at the end of the training")
    if not sae.W_dec.any():
        failures.append("every decoder row is zero")
    stressed: list[dict[str, Any]] = []
    if config.stress:
        stressed = _stress(found, config, device)
        for level in CATEGORIES:
            values[level] |= _changes(stressed, level, values[level]["alpha"])
    output = _envelope.envelope(NAME, config, _result.finite(values), sae, target)
    ours = {"verdict": verdicts, "stress": stressed}
    return Evaluation(output, ours, failures, {"trace.png": picture(trace, getattr(found, "label", ""))})


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
        needed = {"phase"} | {f"{level}.{name}" for level in CATEGORIES for name in READ}
        if missing := needed - trace.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        shapes = {trace[name].shape for name in needed}
        if len(shapes) > 1 or trace["phase"].ndim != 1 or any(trace[name].dtype.kind != "f" for name in needed):
            raise ValueError("its columns are not numbers of one length")
        trace |= {name: trace[name].astype(np.float64) for name in needed}
        if len(told := np.flatnonzero(np.isfinite(trace["phase"]))) < len(trace["phase"]):
            raise ValueError(f"it has {len(told)} of {len(trace['phase'])} steps")
        if any((np.abs(trace[f"{level}.alpha"] - 0.5) > 0.5 + MOVES).any() for level in CATEGORIES):
            raise ValueError("an α is below 0 or above 1")
        return trace
    except (OSError, EOFError, ValueError, TypeError, BadZipFile, zlib.error) as error:
        raise UsageError(f"cannot read {files[0]}: {error}") from error


def of_level(trace: dict[str, np.ndarray], level: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns of a level at the steps in which it trained, and these steps."""
    trains = trace["phase"] != (2 if level == "lower" else 1)
    return {name: trace[f"{level}.{name}"][trains] for name in READ}, np.flatnonzero(trains)


def _last_part(length: int) -> slice:
    return slice(length - max(2, length // LAST), None)


def dynamics(alpha: np.ndarray, steps: np.ndarray, config: EvalConfig) -> dict[str, Any]:
    """What α [T] did: numbers of `METRICS`, and whether it moved and oscillates at all."""
    from scipy.signal import detrend

    tail = _last_part(len(alpha))
    end, reach = float(alpha[tail].mean()), float(np.ptp(alpha[tail]))
    slope = float(np.polyfit(steps[tail], alpha[tail], 1)[0]) * 1000
    wave = detrend(alpha[len(alpha) // 2 :])
    moved = bool(np.ptp(alpha) > MOVES)
    at_end = alpha <= AT_END if end < 0.5 else alpha >= 1 - AT_END
    collapsed = moved and bool(at_end[tail].all())
    converged = moved and reach <= config.range_tolerance and abs(slope) <= config.slope_tolerance
    return {
        "alpha": end,
        "converged": float(converged),
        "converged_step": _since(np.abs(alpha - end) <= config.range_tolerance, steps) if converged else None,
        "range": reach,
        "slope": slope,
        "oscillation": float(np.ptp(wave)),
        "collapsed": float(collapsed),
        "collapsed_step": _since(at_end, steps) if collapsed else None,
        "moved": moved,
        "oscillates": bool(np.ptp(wave) > config.range_tolerance and _is_periodic(wave)),
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


def _costs(own: dict[str, np.ndarray]) -> dict[str, Any]:
    tail = _last_part(len(own["alpha"]))
    costs = own["alpha"] * own["magnitude"], (1 - own["alpha"]) * own["frequency"]
    return {
        **{name: float(own[name][tail].mean()) for name in ("magnitude", "frequency", "l0")},
        "drive": float(np.abs(own["drive"][tail]).mean()),
        "magnitude_dominates": float((costs[0] > costs[1]).mean()),
    }


def verdict(moved: dict[str, Any], own: dict[str, np.ndarray], steps: np.ndarray, is_naive: bool = False) -> str:
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


def _stress(found: Any, config: EvalConfig, device: str) -> list[dict[str, Any]]:
    """α at the end of the same SAE with another unit of frequency, and from each start; trains what is missing."""
    from sae_variants.training import train as _train

    plan = getattr(found, "plan", None)
    if plan is None or "start_alpha" not in plan.resolved:
        raise UsageError("--stress trains an SAE anew: give the name of a variant whose balance is learned")
    changes: list[dict[str, float]] = [{"frequency_scale": plan.resolved["frequency_scale"] * config.scale}]
    changes += [{"start_alpha": start} for start in config.starts]
    plans = [replace(plan, fields={**plan.fields, **change}) for change in changes]
    _train.train(plans, device)
    rows = []
    for change, made in zip(changes, plans, strict=True):
        trace = read_trace(made.folder)
        ends = {level: dynamics(*_alpha(trace, level), config)["alpha"] for level in CATEGORIES}
        rows.append({**change, **ends})
    return rows


def _alpha(trace: dict[str, np.ndarray], level: str) -> tuple[np.ndarray, np.ndarray]:
    own, steps = of_level(trace, level)
    return own["alpha"], steps


def _changes(stressed: list[dict[str, Any]], level: str, alpha: float) -> dict[str, float]:
    starts = [row[level] for row in stressed if "start_alpha" in row]
    scaled = [row[level] for row in stressed if "frequency_scale" in row]
    found = {"scale_change": abs(scaled[0] - alpha)} if scaled else {}
    return found | ({"starts_range": max(starts) - min(starts)} if starts else {})


def picture(trace: dict[str, np.ndarray], title: str) -> bytes:
    """PNG: α, what moves it, and what M and F cost, over the steps of both levels, phases shaded."""
    import matplotlib
    from matplotlib.figure import Figure

    phase = trace["phase"]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 7), layout="constrained")
        axes = figure.subplots(3, 2, sharex=True, squeeze=False)
        for column, level in enumerate(CATEGORIES):
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


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run

    run(Path(__file__).stem)
