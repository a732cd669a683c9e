"""Oracles: traces whose movement is known are named for what they are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import identity, tiny
from test_hierarchy import tree

from eval_runners import alpha_dynamics
from eval_runners.alpha_dynamics import EvalConfig
from eval_runners.contract.contract import Untrained
from eval_runners.harness.find_sae import resolve_requests, train_missing
from eval_runners.measures.alpha_trace import READ, alpha_movement, describe_dynamics
from sae_variants.common.errors import UsageError
from sae_variants.training.plan import TRACE

T = 600
STEPS = np.arange(T)
SIGNS = {"magnitude": np.full(T, 2.0), "frequency": np.full(T, 0.5)}


def named(alpha: np.ndarray, **config) -> tuple[str, dict]:
    moved = alpha_movement(alpha, STEPS, **config)
    return describe_dynamics(moved, SIGNS, STEPS), moved


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_constant(alpha):
    said, moved = named(np.full(T, alpha))
    assert said == f"constant at {alpha:.3f}"
    assert moved["converged"] == moved["collapsed"] == moved["oscillation"] == 0  # nothing moved


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_an_exponential_approach(noise):
    alpha = 0.3 + 0.5 * np.exp(-STEPS / 50) + noise * np.random.default_rng(0).standard_normal(T)
    said, moved = named(alpha)
    assert said.startswith("converged at 0.300 from step 1")
    # within 0.05 of its end from 50 ln 10 = 115 steps on
    assert moved["converged_step"] == pytest.approx(115, abs=1 if not noise else 15)


def test_a_sine():
    said, moved = named(0.5 + 0.2 * np.sin(2 * np.pi * STEPS / 40))
    assert said.startswith("oscillates at 0.5")
    assert moved["oscillation"] == pytest.approx(0.4, abs=0.02)
    assert moved["converged"] == 0


@pytest.mark.parametrize("end", [0, 1])
def test_a_run_to_the_bound(end):
    alpha = np.clip(0.5 - STEPS / 200, 0, 1)
    said, moved = named(alpha if end == 0 else 1 - alpha)
    assert moved["collapsed_step"] == pytest.approx(96, abs=1)  # 0.5 - 96 / 200 = 0.02
    assert said.startswith(f"collapsed to {end} at step {moved['collapsed_step']:.0f}; until then M > F on 100% of the")
    theory = describe_dynamics(moved, SIGNS, STEPS, is_naive=True)
    assert theory == f"{said}, {'as' if end == 0 else 'against what'} theory has it"  # M > F


def test_a_bounce_between_the_bounds_is_no_collapse():
    said, moved = named((STEPS % 20 < 10).astype(float))
    assert moved["collapsed"] == 0
    assert said.startswith("oscillates")


def test_a_last_step_off_the_others_is_no_trouble():
    alpha = np.full(T, 0.28)
    alpha[0], alpha[-1] = 0.5, 0.322
    said, moved = named(alpha)
    assert moved["converged_step"] == 1
    assert said == f"converged at {moved['alpha']:.3f} from step 1 on"


@pytest.mark.parametrize("seed", range(8))
def test_a_random_walk(seed):
    walk = np.cumsum(np.random.default_rng(seed).standard_normal(T)) * 0.03
    said, moved = named(0.1 + 0.8 * np.abs((walk + 0.5) % 2 - 1))  # reflected at the ends
    assert said.startswith("drifts")
    assert moved["converged"] == 0


def test_a_slope_is_no_convergence():
    said, moved = named(0.3 + STEPS * 0.0002)
    assert said.startswith("drifts")
    assert moved["slope"] == pytest.approx(0.2)
    assert named(0.3 + STEPS * 0.0002, slope_tolerance=0.3)[1]["converged"] == 1


def test_a_trace_with_values_that_are_no_numbers_is_of_no_trained_sae(target, tmp_path):
    alpha = np.full(T, 0.5)
    alpha[-100:] = np.nan
    with pytest.raises(Untrained, match="upper level has values that are no numbers"):
        evaluate(tree(target), target, write_trace(tmp_path, **{"upper.alpha": alpha}))


def test_columns_of_different_length_are_named(target, tmp_path):
    with pytest.raises(UsageError, match="not numbers of one length"):
        evaluate(tree(target), target, write_trace(tmp_path, **{"upper.alpha": np.zeros(3)}))


def write_trace(folder, **changed):
    columns = {"phase": np.repeat([1.0, 2.0, 3.0], T // 3)}
    for level, trains in (("lower", columns["phase"] != 2), ("upper", columns["phase"] > 1)):
        for name in READ:
            columns[f"{level}.{name}"] = np.where(trains, 0.5 if name == "alpha" else 2.0, np.nan)
    np.savez(folder / TRACE, **{**columns, **changed})
    return SimpleNamespace(folder=folder, label="planted", plan=None)


def evaluate(sae, target, found, **settings):
    return alpha_dynamics.evaluate(sae, target, EvalConfig(**settings), model=None, device="cpu", found=found)


def test_levels_are_read_where_they_train(target, tmp_path):
    alpha = np.concatenate([np.full(T // 3, np.nan), np.linspace(0.9, 0.5, T // 3), np.full(T // 3, 0.5)])
    found = write_trace(tmp_path, **{"upper.alpha": alpha})
    evaluation = evaluate(tree(target), target, found)
    values = evaluation.output["eval_result_metrics"]
    assert values["upper"]["alpha"] == pytest.approx(0.5)
    assert 300 < values["upper"]["converged_step"] < 400
    assert values["lower"]["magnitude_dominates"] == 0  # both cost the same
    assert evaluation.ours["verdict"]["lower"] == "constant at 0.500"
    assert evaluation.files["trace.png"].startswith(b"\x89PNG")
    words = alpha_dynamics.words({"eval_result_unstructured": evaluation.ours})
    assert words[0].startswith("upper: converged at 0.500")


def test_a_level_that_is_silent_at_the_end_is_a_failure(target, tmp_path):
    found = write_trace(tmp_path, **{"upper.l0": np.concatenate([np.full(T // 3, np.nan), np.zeros(2 * T // 3)])})
    assert evaluate(tree(target), target, found).failures == [
        "no latent of the upper level fires at the end of the training"
    ]


def test_an_sae_without_a_trace_is_refused(target, tmp_path):
    for found in (None, SimpleNamespace(folder=tmp_path, label="", plan=None)):
        with pytest.raises(UsageError, match=r"no trace\.npz beside the weights"):
            evaluate(identity(target), target, found)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"plain text"])
def test_a_broken_trace_is_named(target, tmp_path, content):
    (tmp_path / TRACE).write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read .*trace.npz"):
        evaluate(identity(target), target, SimpleNamespace(folder=tmp_path, label="", plan=None))


def test_a_trace_of_other_columns_is_named(target, tmp_path):
    np.savez(tmp_path / TRACE, phase=np.zeros(3))
    with pytest.raises(UsageError, match=r"it has no lower\.alpha"):
        evaluate(identity(target), target, SimpleNamespace(folder=tmp_path, label="", plan=None))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"phase": np.r_[np.full(T - 10, 3.0), np.full(10, np.nan)]}, f"it has {T - 10} of {T} steps"),
        ({"upper.alpha": np.full(T, 1.5)}, "an α is below 0 or above 1"),
        ({"upper.alpha": np.zeros((T, 2))}, "not numbers of one length"),
    ],
)
def test_a_trace_that_cannot_be_is_named(target, tmp_path, changed, says):
    with pytest.raises(UsageError, match=says):
        evaluate(tree(target), target, write_trace(tmp_path, **changed))


def test_a_trace_beside_the_folder_is_another_ones(target, tmp_path):
    write_trace(tmp_path)
    (tmp_path / "sae").mkdir()
    found = SimpleNamespace(folder=tmp_path / "sae", label="", plan=None)
    with pytest.raises(UsageError, match="no trace"):
        evaluate(tree(target), target, found)
    (tmp_path / "cfg.json").write_text("{}")  # the SAE whose part it is
    assert evaluate(tree(target), target, found).failures == []


@pytest.mark.parametrize("settings", [{"stress": True, "starts": (0.2,)}, {"scale": 0.0}, {"range_tolerance": -1.0}])
def test_settings_that_cannot_be_are_refused(target, tmp_path, settings):
    with pytest.raises(UsageError, match=r"--starts|--scale"):
        evaluate(tree(target), target, write_trace(tmp_path), **settings)


def test_stress_needs_an_sae_that_can_be_trained(target, tmp_path):
    with pytest.raises(UsageError, match="name of a variant"):
        evaluate(tree(target), target, write_trace(tmp_path), stress=True)


def test_stress_trains_what_it_needs(target, tmp_path):
    overrides = {**tiny("learnable_dual"), "training_tokens": 16384}
    wanted = resolve_requests(["learnable_dual", "learnable_dual:lower"], target, overrides, [{}], [0], tmp_path)
    (found, lower), _ = train_missing(wanted, [], "cpu")
    evaluation = evaluate(found.load("cpu"), target, found, stress=True, starts=(0.1, 0.9))
    rows = evaluation.ours["stress"]
    assert [row.get("frequency_scale", row.get("start_alpha")) for row in rows] == [10.0, 0.1, 0.9]
    values = evaluation.output["eval_result_metrics"]["upper"]
    assert values["scale_change"] == pytest.approx(abs(rows[0]["upper"] - values["alpha"]))
    assert values["starts_range"] == pytest.approx(abs(rows[1]["upper"] - rows[2]["upper"]))
    assert values["scale_change"] < 1e-3  # F₀ takes the unit away
    assert values["starts_range"] > 0
    assert evaluate(lower.load("cpu"), target, lower).ours["verdict"] == evaluation.ours["verdict"]
