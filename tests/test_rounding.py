"""Steps of Adam on weights of 16 bits: unbiased rounding, small steps that add up, and trainings that go on to the bit."""

from __future__ import annotations

import pytest
import torch
from test_train import killed_at, plan, same, weights

from sae_variants.training.rounding import round_randomly, round_steps
from sae_variants.training.train import train_plans


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-30, 1e30, 0.0, 2.0])
def test_a_number_goes_to_one_of_its_neighbours_and_the_mean_is_kept(value):
    values = torch.full((40_000,), value)
    rounded = round_randomly(values, generator())
    neighbours = rounded.unique()
    assert len(neighbours) == 1 + (float(values[0].bfloat16()) != float(values[0]))
    spacing = float(neighbours.float().max() - neighbours.float().min())
    assert neighbours.float().min() <= values[0] <= neighbours.float().max()
    assert rounded.float().double().mean() == pytest.approx(
        float(values[0].double()), rel=1e-6, abs=0.02 * spacing + 1e-45
    )


def test_what_is_not_finite_stays_so():
    values = torch.tensor([float("inf"), -float("inf"), float("nan")])
    assert torch.equal(round_randomly(values, generator()).float().nan_to_num(7, 8, 9), torch.tensor([8.0, 9.0, 7.0]))


def adam(dtype, rounds, steps=400, lr=1e-4, d=2000):
    """Weights after steps towards 1 from 1.5, too small for bfloat16 to notice."""
    weights = torch.nn.Parameter(torch.full((d,), 1.5, dtype=dtype))
    optimizer = torch.optim.Adam([weights], lr=lr)
    if rounds:
        round_steps(optimizer, 0)
    for _ in range(steps):
        weights.grad = (weights.data - 1).to(dtype)
        optimizer.step()
    return weights.data.float()


def test_small_steps_add_up_where_rounding_to_the_nearest_loses_them():
    exact = adam(torch.float32, False)
    assert exact.mean() == pytest.approx(1.46, abs=2e-3)
    assert adam(torch.bfloat16, False).mean() == 1.5  # not one of 400 steps arrives
    assert adam(torch.bfloat16, True).mean() == pytest.approx(float(exact.mean()), abs=2e-3)


def test_other_data_types_are_left_to_adam():
    assert torch.equal(adam(torch.float32, True), adam(torch.float32, False))


def test_blocks_of_rows_change_nothing(monkeypatch):
    from sae_variants.training import rounding

    torch.manual_seed(0)
    gradient = torch.randn(64, 8).bfloat16()
    found = []
    for rows in (1 << 22, 64):
        monkeypatch.setattr(rounding, "ROWS", rows)
        monkeypatch.setattr(rounding, "round_randomly", lambda values, generator: values.bfloat16())
        weights = torch.nn.Parameter(torch.ones(64, 8, dtype=torch.bfloat16))
        optimizer = torch.optim.Adam([weights], lr=0.1)
        round_steps(optimizer, 0)
        weights.grad = gradient
        optimizer.step()
        found.append(weights.data)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["topk", "stock:batchtopk"])
def test_a_training_that_is_killed_goes_on_to_the_same_weights(name, target, tmp_path, monkeypatch):
    whole, stopped = (plan(name, target, tmp_path / where, dtype="bfloat16") for where in ("whole", "stopped"))
    train_plans([whole], checkpoint_steps=2)
    killed_at(monkeypatch, 6, [stopped], checkpoint_steps=2)
    train_plans([stopped], checkpoint_steps=2)
    assert same(weights(whole), weights(stopped))
    assert weights(whole)["W_dec"].dtype == torch.bfloat16
