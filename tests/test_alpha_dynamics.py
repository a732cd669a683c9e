"""Oracles: traces whose movement is known are described as that movement."""

from __future__ import annotations

import conftest
import numpy as np
import pytest
from conftest import identity, tiny
from test_hierarchy import tree

from eval_runners.contract.contract import Untrained
from eval_runners.contract.located import LocatedSAE
from eval_runners.contract.registry import load_evaluator
from eval_runners.harness.find_sae import locate_all, resolve_requests
from eval_runners.measures.alpha_trace import COLUMNS, Movement, alpha_movement, describe_movement
from sae_variants.common.errors import UsageError
from sae_variants.training.plan import TRACE

T = 600
STEPS = np.arange(T)
COSTS = {"magnitude": np.full(T, 2.0), "frequency": np.full(T, 0.5)}


def describe(alpha: np.ndarray, **tolerances) -> tuple[str, Movement]:
    movement = alpha_movement(alpha, STEPS, **tolerances)
    return describe_movement(movement, COSTS, STEPS), movement


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_constant(alpha):
    sentence, movement = describe(np.full(T, alpha))
    assert sentence == f"constant at {alpha:.3f}"
    values = movement.values()
    assert values["converged"] == values["collapsed"] == values["oscillation"] == 0  # nothing moved


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_an_exponential_approach(noise):
    alpha = 0.3 + 0.5 * np.exp(-STEPS / 50) + noise * np.random.default_rng(0).standard_normal(T)
    sentence, movement = describe(alpha)
    assert sentence.startswith("converged at 0.300 from step 1")
    # within 0.05 of its end from 50 ln 10 = 115 steps on
    assert movement.converged_step == pytest.approx(115, abs=1 if not noise else 15)


def test_a_sine():
    sentence, movement = describe(0.5 + 0.2 * np.sin(2 * np.pi * STEPS / 40))
    assert sentence.startswith("oscillates at 0.5")
    assert movement.oscillation == pytest.approx(0.4, abs=0.02)
    assert movement.values()["converged"] == 0


@pytest.mark.parametrize("end", [0, 1])
def test_a_run_to_the_bound(end):
    alpha = np.clip(0.5 - STEPS / 200, 0, 1)
    sentence, movement = describe(alpha if end == 0 else 1 - alpha)
    assert movement.collapsed_step == pytest.approx(96, abs=1)  # 0.5 - 96 / 200 = 0.02
    assert sentence.startswith(
        f"collapsed to {end} at step {movement.collapsed_step:.0f}; until then M > F on 100% of the"
    )
    theory = describe_movement(movement, COSTS, STEPS, is_naive=True)
    assert theory == f"{sentence}, {'as' if end == 0 else 'unlike'} theory predicts"  # M > F


def test_a_bounce_between_the_bounds_is_no_collapse():
    sentence, movement = describe((STEPS % 20 < 10).astype(float))
    assert movement.values()["collapsed"] == 0
    assert sentence.startswith("oscillates")


def test_an_outlier_in_the_last_step_does_not_prevent_convergence():
    alpha = np.full(T, 0.28)
    alpha[0], alpha[-1] = 0.5, 0.322
    sentence, movement = describe(alpha)
    assert movement.converged_step == 1
    assert sentence == f"converged at {movement.alpha:.3f} from step 1 on"


@pytest.mark.parametrize("seed", range(8))
def test_a_random_walk(seed):
    walk = np.cumsum(np.random.default_rng(seed).standard_normal(T)) * 0.03
    sentence, movement = describe(0.1 + 0.8 * np.abs((walk + 0.5) % 2 - 1))  # reflected at the ends
    assert sentence.startswith("drifts")
    assert movement.values()["converged"] == 0


def test_a_slope_is_no_convergence():
    sentence, movement = describe(0.3 + STEPS * 0.0002)
    assert sentence.startswith("drifts")
    assert movement.slope == pytest.approx(0.2)
    assert describe(0.3 + STEPS * 0.0002, slope_tolerance=0.3)[1].values()["converged"] == 1


def test_a_trace_with_values_that_are_not_finite_is_of_an_untrained_sae(target, tmp_path):
    alpha = np.full(T, 0.5)
    alpha[-100:] = np.nan
    with pytest.raises(Untrained, match="upper level has values that are not finite"):
        evaluate(tree(target), target, write_trace(tmp_path, **{"upper.alpha": alpha}))


def test_columns_of_different_length_are_named(target, tmp_path):
    with pytest.raises(UsageError, match="not numbers of the same length"):
        evaluate(tree(target), target, write_trace(tmp_path, **{"upper.alpha": np.zeros(3)}))


def write_trace(folder, **changed):
    columns = {"phase": np.repeat([1.0, 2.0, 3.0], T // 3)}
    for level, trains in (("lower", columns["phase"] != 2), ("upper", columns["phase"] > 1)):
        for name in COLUMNS:
            columns[f"{level}.{name}"] = np.where(trains, 0.5 if name == "alpha" else 2.0, np.nan)
    np.savez(folder / TRACE, **{**columns, **changed})
    return LocatedSAE("planted", folder)


def evaluate(sae, target, located, **settings):
    return conftest.evaluate("alpha_dynamics", sae, target, None, located, prepare=True, **settings)


def test_levels_are_read_where_they_train(target, tmp_path):
    alpha = np.concatenate([np.full(T // 3, np.nan), np.linspace(0.9, 0.5, T // 3), np.full(T // 3, 0.5)])
    located = write_trace(tmp_path, **{"upper.alpha": alpha})
    evaluation = evaluate(tree(target), target, located)
    values = evaluation.metrics
    assert values["upper"]["alpha"] == pytest.approx(0.5)
    assert 300 < values["upper"]["converged_step"] < 400
    assert values["lower"]["magnitude_dominates"] == 0  # both cost the same
    assert evaluation.unstructured["verdict"]["lower"] == "constant at 0.500"
    assert evaluation.files["trace.png"].startswith(b"\x89PNG")
    lines = load_evaluator("alpha_dynamics").summary_lines(evaluation.output)
    assert lines[0].startswith("upper: converged at 0.500")


def test_a_level_that_is_silent_at_the_end_is_a_failure(target, tmp_path):
    located = write_trace(tmp_path, **{"upper.l0": np.concatenate([np.full(T // 3, np.nan), np.zeros(2 * T // 3)])})
    assert evaluate(tree(target), target, located).failures == [
        "no latent of the upper level fires at the end of the training"
    ]


def test_an_sae_without_a_trace_is_refused(target, tmp_path):
    for located in (None, LocatedSAE("", tmp_path)):
        with pytest.raises(UsageError, match=r"no trace\.npz beside the weights"):
            evaluate(identity(target), target, located)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"plain text"])
def test_a_broken_trace_is_named(target, tmp_path, content):
    (tmp_path / TRACE).write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read .*trace.npz"):
        evaluate(identity(target), target, LocatedSAE("", tmp_path))


def test_a_trace_of_other_columns_is_named(target, tmp_path):
    np.savez(tmp_path / TRACE, phase=np.zeros(3))
    with pytest.raises(UsageError, match=r"it has no lower\.alpha"):
        evaluate(identity(target), target, LocatedSAE("", tmp_path))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"phase": np.r_[np.full(T - 10, 3.0), np.full(10, np.nan)]}, f"it has {T - 10} of {T} steps"),
        ({"upper.alpha": np.full(T, 1.5)}, "an α is below 0 or above 1"),
        ({"upper.alpha": np.zeros((T, 2))}, "not numbers of the same length"),
    ],
)
def test_an_impossible_trace_is_named(target, tmp_path, changed, says):
    with pytest.raises(UsageError, match=says):
        evaluate(tree(target), target, write_trace(tmp_path, **changed))


def test_a_trace_beside_the_folder_belongs_to_another_sae(target, tmp_path):
    write_trace(tmp_path)
    (tmp_path / "sae").mkdir()
    located = LocatedSAE("", tmp_path / "sae")
    with pytest.raises(UsageError, match="no trace"):
        evaluate(tree(target), target, located)
    (tmp_path / "cfg.json").write_text("{}")  # the SAE whose part it is
    assert evaluate(tree(target), target, located).failures == []


@pytest.mark.parametrize("settings", [{"stress": True, "starts": (0.2,)}, {"scale": 0.0}, {"range_tolerance": -1.0}])
def test_settings_that_cannot_work_are_refused(target, tmp_path, settings):
    with pytest.raises(UsageError, match=r"--starts|--scale"):
        evaluate(tree(target), target, write_trace(tmp_path), **settings)


def test_stress_needs_an_sae_that_can_be_trained(target, tmp_path):
    with pytest.raises(UsageError, match="name of a variant"):
        evaluate(tree(target), target, write_trace(tmp_path), stress=True)


@pytest.mark.slow
def test_stress_trains_what_it_needs(target, tmp_path):
    overrides = {**tiny("learnable_dual"), "training_tokens": 16384}
    names = ["learnable_dual", "learnable_dual:lower"]
    located, lower = locate_all(resolve_requests(names, target, overrides, trained=tmp_path), "cpu")
    evaluation = evaluate(located.load("cpu"), target, located, stress=True, starts=(0.1, 0.9))
    rows = evaluation.unstructured["stress"]
    assert [row.get("frequency_scale", row.get("start_alpha")) for row in rows] == [10.0, 0.1, 0.9]
    values = evaluation.metrics["upper"]
    assert values["scale_change"] == pytest.approx(abs(rows[0]["upper"] - values["alpha"]))
    assert values["starts_range"] == pytest.approx(abs(rows[1]["upper"] - rows[2]["upper"]))
    assert values["scale_change"] < 1e-3  # F₀ takes the unit away
    assert values["starts_range"] > 0
    assert evaluate(lower.load("cpu"), target, lower).unstructured["verdict"] == evaluation.unstructured["verdict"]
