"""Oracles: an SAE beside itself, beside the same with its latents in another order, and beside one that is independent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import identity, linear_sae, tiny

from eval_runners import concept_stability
from eval_runners.concept_stability import EvalConfig, compare, random_directions
from eval_runners.harness.find_sae import locate_folder, train_missing
from sae_variants.common.errors import UsageError
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans


def made(target, seed: int, n: int = 64):
    torch.manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, 32), dim=1)
    return linear_sae(target, rows.T.clone(), rows)


def test_an_sae_beside_itself(target):
    sae = made(target, 0)
    found = compare(sae, sae, torch.randn(4000, 32), EvalConfig())
    assert found["survival"] == 1
    assert found["cosine"] == pytest.approx(1)
    assert found["correlation"] == pytest.approx(1)


def test_the_order_of_latents_does_not_matter(target):
    sae, order = made(target, 0), torch.randperm(64)
    shuffled = linear_sae(target, sae.W_enc[:, order].detach(), sae.W_dec[order].detach())
    found = compare(sae, shuffled, torch.randn(4000, 32), EvalConfig())
    assert (found["survival"], found["cosine"]) == pytest.approx((1, 1))
    assert found["correlation"] == pytest.approx(1)


def test_an_independent_sae_is_as_near_as_random_directions(target):
    x = torch.randn(4000, 32)
    found = [compare(made(target, seed), made(target, seed + 100), x, EvalConfig())["cosine"] for seed in range(4)]
    expected = [random_directions(64, 64, 32, seed)["cosine"] for seed in range(4)]
    assert sum(found) / 4 == pytest.approx(sum(expected) / 4, abs=0.03)
    assert random_directions(64, 64, 32, 0)["survival"] < 0.1


def test_half_of_the_latents_survive(target):
    sae, other = made(target, 0), made(target, 5)
    rows = torch.cat([sae.W_dec[:32].detach(), other.W_dec[32:].detach()])
    found = compare(sae, linear_sae(target, rows.T.clone(), rows), torch.randn(4000, 32), EvalConfig())
    assert found["survival"] == pytest.approx(0.5, abs=0.05)


def test_only_latents_that_fire_are_matched(target):
    sae = made(target, 0)
    encode = sae.W_enc.detach().clone()
    encode[:, :16] = 0
    found = compare(linear_sae(target, encode, sae.W_dec.detach()), sae, torch.randn(4000, 32), EvalConfig())
    assert (found["latents"], found["of"]) == (48, 64)
    assert found["survival"] == 1


def test_wide_saes_are_sampled(target):
    sae = made(target, 0)
    found = compare(sae, sae, torch.randn(4000, 32), EvalConfig(most=10))
    assert (found["latents"], found["survival"]) == (10, 1)


SMALL = {"n_contexts": 8, "context_size": 32, "n_min": 1, "other_seeds": (0, 1)}


def test_training_is_looked_at_twice_and_other_seeds_are_trained(target, model, tmp_path):
    plan = make_plan("hierarchical:lower", target, {**tiny("hierarchical"), "aux_loss_coefficient": 0.0}, tmp_path)
    (found,), _ = train_missing([plan], [], "cpu", (0.3, 0.5))
    evaluation = concept_stability.evaluate(
        found.load("cpu"), target, EvalConfig(**SMALL), model=model, device="cpu", found=found
    )
    values = evaluation.output["eval_result_metrics"]
    assert [row["what"] for row in evaluation.ours["pairs"]] == ["0.3 to 0.5", "0.5 to 1", "seed 1"]
    assert values["early"]["survival"] == 1  # the lower level is frozen in between
    assert values["early"]["cosine"] == pytest.approx(1)
    assert values["late"]["cosine"] < 1
    assert values["seeds"]["cosine"] < values["late"]["cosine"]
    assert values["others"] == dict.fromkeys(values["others"])


def test_an_sae_of_elsewhere_needs_another_to_be_compared_with(target, model, tmp_path):
    with pytest.raises(UsageError, match="--against"):
        concept_stability.evaluate(identity(target), target, EvalConfig(**SMALL), model=model, device="cpu")
    identity(target).save_model(tmp_path / "same")
    config = EvalConfig(**SMALL, against=(str(tmp_path / "same"),))
    evaluation = concept_stability.evaluate(
        identity(target), target, config, model=model, device="cpu", found=SimpleNamespace(plan=None)
    )
    values = evaluation.output["eval_result_metrics"]
    assert values["others"]["survival"] == 1
    assert values["seeds"]["survival"] is None


def test_shares_must_be_in_order(target, model):
    config = EvalConfig(**SMALL, first_share=0.8)
    with pytest.raises(UsageError, match="--first-share"):
        concept_stability.evaluate(identity(target), target, config, model=model, device="cpu")


def test_snapshots_of_two_parts_are_of_one_training(target, tmp_path):
    plans = [make_plan(name, target, tiny(name), tmp_path) for name in ("hierarchical", "hierarchical:lower")]
    train_plans(plans, snapshots=(0.5,))
    upper, lower = (locate_folder(plan.snapshot(0.5)).load("cpu").cfg.d_sae for plan in plans)
    assert lower == 4 * upper


def test_another_sae_of_another_width_is_refused(target, model, tmp_path):
    import sae_variants

    sae_variants.build("stock:standard", d_in=8, d_sae=16).save_inference_model(tmp_path / "narrow")
    config = EvalConfig(n_contexts=4, context_size=16, against=(str(tmp_path / "narrow"),))
    with pytest.raises(UsageError, match="has d_in = 8, not 32"):
        concept_stability.evaluate(identity(target), target, config, model=model, device="cpu")
