"""The penalty on how much and how often latents fire: by hand, its references, its multipliers, and the trace."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import tiny
from sae_lens.saes.sae import TrainStepInput
from test_train import killed_at

import sae_variants
from sae_variants.common.errors import UsageError
from sae_variants.training.plan import TRACE, make_plan
from sae_variants.training.train import train_plans
from sae_variants.two_level.dual_penalty import COLUMNS
from sae_variants.two_level.levels import Level
from sae_variants.two_level.penalty_terms import LEVELS, Measured, frequency, latent_weights, magnitude, shrinkage


def build(name="learnable_dual", **overrides):
    return sae_variants.build(name, d_in=6, d_sae=5, seed=0, **{"k": 2, **overrides})


def step(sae, acts, number=0):
    return sae.training_forward_pass(TrainStepInput(acts, {}, None, n_training_steps=number, is_logging_step=False))


def measured(**values) -> Measured:
    found = {"M": 2.0, "F": 0.5, "l0": 4.0, "shrinkage": 0.1, **values}
    return Measured("upper", **{name: torch.tensor(value) for name, value in found.items()})


def test_magnitude_and_frequency_by_hand():
    acts, weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]]), torch.tensor([0.5, 1.0, 1.5])
    assert magnitude(acts, weights).item() == pytest.approx((0.5 + 3.0 + 1.5) / 2)
    expected = (0.5 * math.tanh(3) + 1.5 * math.tanh(6) + 1.5 * math.tanh(3)) / 2
    assert frequency(acts, weights, 3.0).item() == pytest.approx(expected)


def test_the_gradient_of_frequency_is_that_of_finite_differences():
    acts = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: frequency(a, weights, 2.0), acts)
    assert torch.autograd.gradcheck(lambda a: magnitude(a, weights), acts)


def test_frequency_has_a_gradient_where_counting_has_none():
    acts = torch.tensor([[0.3, 0.0]], requires_grad=True)
    frequency(acts, torch.ones(2), 2.0).backward()
    assert acts.grad is not None
    assert acts.grad[0, 0].item() == pytest.approx(2 * (1 - math.tanh(0.6) ** 2))


def test_weights_of_latents_by_hand():
    active, fires = torch.tensor([1.0, 3.0]), torch.tensor([0.1, 0.3])
    often = torch.tensor([0.5, 0.75])  # of a saturation of 0.1
    expected = 0.6 + 0.4 * (0.25 * active / 2 + 0.75 * often / 0.625)
    found = latent_weights(active, fires, torch.tensor(0.25), 0.4, 0.1)
    torch.testing.assert_close(found, expected)
    assert found.mean().item() == pytest.approx(1)
    torch.testing.assert_close(latent_weights(active, fires, torch.tensor(0.25), 0.0, 0.1), torch.ones(2))
    torch.testing.assert_close(latent_weights(0 * active, 0 * fires, torch.tensor(0.5), 1.0, 0.1), torch.ones(2))


def test_very_frequent_latents_weigh_little_more_than_frequent_ones():
    found = latent_weights(torch.ones(3), torch.tensor([0.01, 0.3, 0.9]), torch.tensor(0.0), 1.0, 0.1)
    assert found[2] / found[1] < 1.25 < 5 < found[1] / found[0]


def test_the_references_are_the_means_of_the_first_steps_and_then_stay():
    sae = build(
        "dual_adaptive", reference_steps=2, curriculum=False, adaptation=0.0, steepness=1.5, frequency_scale=7.0
    )
    raw, terms = [], []
    for number in range(4):
        x = torch.randn(16, 6)
        with torch.no_grad():
            acts = sae.lower(x).acts
        ones = torch.ones(20)
        raw.append(torch.stack([magnitude(acts, ones), 7 * frequency(acts, ones, 1.5)]).double())
        step(sae, x, number)
        terms.append(sae.references[0].clone())
    torch.testing.assert_close(terms[0], raw[0])
    torch.testing.assert_close(terms[1], (raw[0] + raw[1]) / 2)
    assert torch.equal(terms[1], terms[2])
    assert torch.equal(terms[1], terms[3])


def test_latents_weigh_alike_until_references_are_known():
    sae, x = build("dual_adaptive", reference_steps=1, adaptation=1.0, curriculum=False), torch.randn(16, 6)
    level = sae.lower(x)
    sae.activity_L[:] = torch.arange(20.0)
    first, second = (sae._measure(level, "lower", x) for _ in range(2))
    assert sae.references[0, 0].item() == pytest.approx(magnitude(level.acts, torch.ones(20)).item(), rel=1e-5)
    assert first.M.item() == pytest.approx(1)
    weights = latent_weights(sae.activity_L, sae.frequency_L, sae.alpha("lower"), 1.0, sae.cfg.saturation)
    assert second.M.item() == pytest.approx((magnitude(level.acts, weights) / sae.references[0, 0]).item(), rel=1e-5)
    assert abs(second.M.item() - 1) > 1e-3
    fires = (level.acts > 0).float().mean(0)
    torch.testing.assert_close(sae.frequency_L, fires * (1 - 0.95**2))


def test_the_unit_of_frequency_counts_for_nothing():
    x = torch.randn(16, 6)
    losses = [step(build(frequency_scale=scale), x).losses["lower_penalty_loss"] for scale in (1.0, 10.0)]
    torch.testing.assert_close(*losses)


def test_a_fixed_balance_by_hand():
    sae = build("dual_adaptive", alpha=0.25, penalty_coefficient=4.0, rate=0.0, gain=0.0)
    paid = sae.penalty(measured())
    assert paid.loss.item() == pytest.approx(4 * (0.25 * 2 + 0.75 * 0.5))
    assert paid.total.item() == pytest.approx(4)
    own = build("dual_adaptive", alpha=0.25, lower_alpha=1.0)
    assert (own.alpha("upper").item(), own.alpha("lower").item()) == (0.25, 1.0)


@pytest.mark.parametrize(("l0", "rises"), [(8.0, True), (0.5, False)])
def test_a_multiplier_follows_its_constraint(l0, rises):
    sae = build("dual_adaptive", rate=0.1, gain=0.5, descent_steps=0, penalty_coefficient=4.0, k=2)
    assert sae.penalty(measured(l0=l0)).total.item() == pytest.approx(4)  # rests while references are measured
    sae.level_steps[1] = 99
    error = max(-1.0, min(1.0, math.log(l0 / 2)))
    assert sae.penalty(measured(l0=l0)).total.item() == pytest.approx(4 * math.exp(0.6 * error), rel=1e-5)
    assert sae.log_multipliers[1, 0].exp().item() == pytest.approx(4 * math.exp(0.1 * error))
    assert (error > 0) is rises


def test_the_wanted_l0_comes_down_by_steps():
    sae = build("dual_adaptive", reference_steps=10, descent_steps=20, k=2)
    sae.first_l0[1] = 8.0
    for steps, wanted in ((10, 8.0), (20, 4.0), (30, 2.0), (99, 2.0)):
        sae.level_steps[1] = steps
        assert sae.l0_error(measured(l0=6.0)).item() == pytest.approx(math.log(6 / wanted))


def test_dual_ascent_by_hand():
    sae = build(
        start_alpha=0.2, penalty_coefficient=5.0, rate=0.1, gain=0.0, descent_steps=0, shrinkage=0.04, magnitude_rate=0.5
    )  # fmt: skip
    assert sae.alpha("upper").item() == pytest.approx(0.2)
    sae.level_steps[1] = 99
    paid = sae.penalty(measured(l0=2.0, shrinkage=0.01))  # smaller by 3 % would be allowed: a drive of 1 - 1/4
    lambda_M = math.exp(0.5 * 0.75)
    assert paid.loss.item() == pytest.approx(lambda_M * 2 + 4 * 0.5, rel=1e-5)
    assert sae.alpha("upper").item() == pytest.approx(lambda_M / (lambda_M + 4))
    assert paid.drive.item() == pytest.approx(0.75)
    both = sae.penalty(measured(l0=4.0, shrinkage=0.04))  # only L0 is too high
    assert both.total.item() == pytest.approx((lambda_M + 4) * math.exp(0.1 * math.log(2)), rel=1e-5)
    assert sae.alpha("upper").item() == pytest.approx(lambda_M / (lambda_M + 4))


def test_a_balance_rests_until_l0_has_come_down():
    sae = build(reference_steps=10, descent_steps=20)
    for steps, moves in ((1, False), (30, False), (31, True)):
        sae.level_steps[1] = steps
        sae.penalty(measured(shrinkage=0.0))
        assert (sae.alpha("upper").item() > 0.5) is moves


def test_a_balance_can_come_back_from_an_end():
    sae = build(magnitude_rate=2.0, descent_steps=0)
    sae.level_steps[1] = 99
    for shrunk, end in ((0.5, 0.01), (-0.5, 0.99)):
        for _ in range(200):
            sae.penalty(measured(shrinkage=shrunk))
        assert sae.alpha("upper").item() == pytest.approx(end)


def test_the_saved_levels_fire_as_often_as_they_shall(tmp_path):
    batches = [torch.randn(512, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    x = torch.cat(batches)
    for exact, k, says in ((True, 0.5, (1.0, 0.5)), (False, 0.5, None), (True, 5, None)):
        sae = build("dual_adaptive", k=k, lower_k=20 if k == 5 else 0, expansion=4, exact_l0=exact)
        before = sae.lower(x).acts
        assert sae.calibrates == exact
        sae.calibrate(batches)
        sae.save_inference_model(tmp_path)
        saved = sae_variants.load(tmp_path)
        l0s = [(acts > 0).sum(1).float().mean().item() for acts in (saved.encode_lower(x), saved.encode(x))]
        if says:
            assert l0s == pytest.approx(says, abs=0.01)
            assert not saved.inner_thresholds_lower.any()
        else:  # not wished, or fewer fire than may: no threshold
            assert torch.allclose(saved.encode_lower(x), before, atol=1e-5)


def test_shrinkage_by_hand():
    x, bias = torch.randn(50, 6), torch.tensor([1.0, 2, 3, 4, 5, 6])
    rows = torch.eye(6)
    for factor, expected in ((1.0, 0.0), (0.75, 0.25), (1.25, -0.25)):
        level = Level(factor * (x - bias), x, rows, bias)
        assert shrinkage(x, level).item() == pytest.approx(expected, abs=1e-5)
    assert shrinkage(x, Level(torch.zeros(50, 6), x, rows, torch.zeros(6))).item() == 1  # nothing fires
    halves = Level(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), x, torch.eye(2), torch.zeros(2))
    # x̂ = (1, 1), (1, -1) of x = (2, 2), (0, 0): the best multiple of x̂ is x̂ itself
    assert shrinkage(torch.tensor([[2.0, 2.0], [0.0, 0.0]]), halves).item() == pytest.approx(0)


def test_naive_learning_by_hand():
    sae = build(learning="naive", start_alpha=0.3, penalty_coefficient=4.0)
    paid = sae.penalty(measured())
    paid.loss.backward()
    assert paid.loss.item() == pytest.approx(4 * (0.3 * 2 + 0.7 * 0.5))
    assert sae.alphas.grad[1].item() == pytest.approx(4 * (2 - 0.5))
    assert paid.drive.item() == pytest.approx(-6)
    sae.alphas.data[:] = torch.tensor([-0.4, 1.2])
    step(sae, torch.randn(8, 6))
    assert sae.alphas.tolist() == [0, 1]


def test_uncertainty_by_hand():
    sae = build(learning="uncertainty", start_alpha=0.3, penalty_coefficient=4.0, variance_speed=10.0)
    paid = sae.penalty(measured())
    expected = 0.3 * 2 + 0.7 * 0.5 - math.log(0.3) - math.log(0.7)
    assert paid.loss.item() == pytest.approx(4 * expected)
    assert paid.total.item() == pytest.approx(4)
    assert sae.alpha("upper").item() == pytest.approx(0.3)
    paid.loss.backward()
    assert paid.drive.item() == pytest.approx(0.7 * 0.5 - 0.3 * 2)
    # d/d log v of M / v + log v, and ten times as fast
    assert sae.log_variances.grad[1].tolist() == pytest.approx([40 * (1 - 0.6), 40 * (1 - 0.35)])


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("dual_adaptive", {"alpha": 1.5}, "alpha must be between 0 and 1"),
        ("dual_adaptive", {"lower_alpha": -0.1}, "lower_alpha must be between"),
        ("learnable_dual", {"start_alpha": 0.0}, "start_alpha must be above 0"),
        ("learnable_dual", {"learning": "magic"}, "learning"),
        ("learnable_dual", {"shrinkage": 0.0}, "shrinkage"),
        ("learnable_dual", {"adaptation": 1.5}, "adaptation"),
        ("learnable_dual", {"steepness": 0.0}, "steepness"),
        ("learnable_dual", {"penalty_coefficient": math.inf}, "penalty_coefficient"),
        ("learnable_dual", {"reference_steps": 0}, "reference_steps"),
        ("learnable_dual", {"k": 3, "lower_k": 2}, "must be above k"),
        ("learnable_dual", {"rate": math.inf}, "rate of learnable_dual must be float, not inf"),
    ],
)
def test_what_cannot_be_is_refused(name, fields, says):
    with pytest.raises(UsageError, match=says):
        build(name, **fields)


def test_a_training_in_which_a_balance_would_only_rest_is_refused(target, tmp_path):
    with pytest.raises(UsageError, match=r"α is frozen for .* = 52 steps, and a level trains for 22"):
        make_plan("learnable_dual", target, {**tiny("learnable_dual"), "descent_steps": 50}, tmp_path)


def plan(target, root, name="learnable_dual", **overrides):
    return make_plan(name, target, {**tiny(name), **overrides}, root)


def trace_of(made):
    with np.load(made.folder / TRACE, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("dual_adaptive", {})]
    + [("learnable_dual", {"learning": way}) for way in ("dual_ascent", "naive", "uncertainty")],
)
def test_a_killed_run_leaves_no_gap_in_its_trace(target, tmp_path, monkeypatch, name, fields):
    whole, broken = (plan(target, tmp_path / place, name, **fields) for place in ("whole", "broken"))
    train_plans([whole])
    killed_at(monkeypatch, 19, [broken], checkpoint_steps=2)
    assert (broken.checkpoint / TRACE).is_file()
    train_plans([broken], checkpoint_steps=2)
    one, other = trace_of(whole), trace_of(broken)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
    cfg = whole.settings
    assert {len(values) for name, values in one.items() if "references" not in name} == {cfg.steps}
    assert all(one[f"{level}.references"].min() > 0 for level in LEVELS)
    trains = {"lower": np.isin(one["phase"], (1, 3)), "upper": np.isin(one["phase"], (2, 3))}
    for level in LEVELS:
        for column in COLUMNS:
            assert np.array_equal(np.isfinite(one[f"{level}.{column}"]), trains[level]), (level, column)


def test_the_trace_says_what_happened(target, tmp_path):
    made = plan(target, tmp_path, curriculum=False, descent_steps=5, reference_steps=3)
    train_plans([made])
    trace = trace_of(made)
    assert trace["lower.alpha"][0] == pytest.approx(0.5)
    assert trace["lower.penalty"][0] == pytest.approx(10.0)
    assert trace["lower.magnitude"][0] == pytest.approx(1.0)  # the first step is its own reference
    assert trace["lower.l0"][0] > trace["lower.l0"][-1] > 0
    assert trace["upper.error"][-1] < trace["upper.error"][0]


def test_tracing_can_be_switched_off(target, tmp_path):
    made = plan(target, tmp_path, tracing=False)
    train_plans([made])
    assert set(trace_of(made)) == {"lower.references", "upper.references"}


def test_nothing_is_traced_where_nobody_knows_the_steps():
    sae = build()
    step(sae, torch.randn(8, 6), number=5)
    assert set(sae.trace) == {"lower.references", "upper.references"}


def learned(**fields) -> list[tuple[float, float, float]]:
    """α, M and F of the lower level after each step of a short training on sparse sums of 24 directions."""
    sae = sae_variants.build(
        "learnable_dual", d_in=12, d_sae=12, seed=0,
        **{"k": 2, "lower_k": 4, "curriculum": False, "reference_steps": 5, "descent_steps": 30, **fields},
    )  # fmt: skip
    adam, generator = torch.optim.Adam(sae.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 12, generator=generator), dim=1)
    told = []
    for number in range(400):
        codes = torch.rand(256, 24, generator=generator) * (torch.rand(256, 24, generator=generator) < 0.15)
        step(sae, 3 * codes @ directions, number).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        alpha, _, _, M, F, *_ = sae._row["lower"].tolist()
        told.append((alpha, M, F))
    return told


@pytest.mark.slow
def test_a_learned_balance_is_the_same_from_any_start_and_unit():
    runs = [learned(**fields) for fields in ({"start_alpha": 0.1}, {"start_alpha": 0.9}, {"frequency_scale": 10.0})]
    ends = [sum(alpha for alpha, _, _ in told[-50:]) / 50 for told in runs]
    assert max(ends) - min(ends) < 0.05
    assert 0.2 < min(ends) < max(ends) < 0.5


@pytest.mark.slow
def test_a_naive_balance_runs_to_the_end_that_its_gradient_points_to():
    told = learned(learning="naive")
    assert told[-1][0] == 0
    falling = [later[0] < earlier[0] for earlier, later in pairwise(told[:61])]
    larger = [M > F for _, M, F in told[:60]]
    assert sum(larger) > 50
    assert sum(a == b for a, b in zip(falling, larger, strict=True)) > 40
