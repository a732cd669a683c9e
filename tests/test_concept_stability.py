"""Oracles: an SAE compared with itself, with its latents in another order, and with an independent SAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import evaluate, identity, linear_sae, tiny

from eval_runners.harness.find_sae import SAERequest, locate_requests, locate_snapshot
from eval_runners.measures.stability import compare_latents, match_random_directions
from eval_runners.measures.statistics import match_rows
from sae_variants.common.errors import UsageError
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans


def random_sae(target, seed: int, n: int = 64):
    torch.manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, 32), dim=1)
    return linear_sae(target, rows.T.clone(), rows)


def compare(sae, other, x_ND, most: int = 4096):
    return compare_latents(sae, other, x_ND, n_min=5, most=most, seed=0)


def test_an_sae_compared_with_itself(target):
    sae = random_sae(target, 0)
    row = compare(sae, sae, torch.randn(4000, 32))
    assert row["survival"] == 1
    assert row["cosine"] == pytest.approx(1)
    assert row["correlation"] == pytest.approx(1)


def test_the_order_of_latents_does_not_matter(target):
    sae, order = random_sae(target, 0), torch.randperm(64)
    shuffled = linear_sae(target, sae.W_enc[:, order].detach(), sae.W_dec[order].detach())
    row = compare(sae, shuffled, torch.randn(4000, 32))
    assert (row["survival"], row["cosine"]) == pytest.approx((1, 1))
    assert row["correlation"] == pytest.approx(1)


def test_an_independent_sae_is_as_near_as_random_directions(target):
    x = torch.randn(4000, 32)
    cosines = [compare(random_sae(target, seed), random_sae(target, seed + 100), x)["cosine"] for seed in range(4)]
    rows = random_sae(target, 9, n=4096).W_dec.detach().double().numpy()  # as good as isotropic
    expected = [match_random_directions(64, 64, rows, seed)["cosine"] for seed in range(4)]
    assert sum(cosines) / 4 == pytest.approx(sum(expected) / 4, abs=0.03)
    assert match_random_directions(64, 64, rows, 0)["survival"] < 0.1


def test_random_directions_fill_the_subspace_of_the_decoder_rows_only():
    rows = np.zeros((64, 32))
    rows[:, :2] = np.random.default_rng(0).standard_normal((64, 2))
    plane = match_random_directions(64, 64, rows, 0)
    assert plane["survival"] == 1  # in a plane everything has a near neighbour: survival there means nothing
    assert plane["cosine"] > 0.95
    rows[:, 1] = 0
    line = match_random_directions(5, 5, rows, 0)  # of five and five directions up and down a line, some pairs agree
    assert line["survival"] in (0.2, 0.4, 0.6, 0.8, 1.0)
    assert line["cosine"] == pytest.approx(2 * line["survival"] - 1)


def test_half_of_the_latents_survive(target):
    sae, other = random_sae(target, 0), random_sae(target, 5)
    rows = torch.cat([sae.W_dec[:32].detach(), other.W_dec[32:].detach()])
    row = compare(sae, linear_sae(target, rows.T.clone(), rows), torch.randn(4000, 32))
    assert row["survival"] == pytest.approx(0.5, abs=0.05)


def test_only_latents_that_fire_are_matched(target):
    sae = random_sae(target, 0)
    encode = sae.W_enc.detach().clone()
    encode[:, :16] = 0
    row = compare(linear_sae(target, encode, sae.W_dec.detach()), sae, torch.randn(4000, 32))
    assert (row["latents"], row["of"]) == (48, 64)
    assert row["survival"] == 1


def test_wide_saes_are_sampled(target):
    sae = random_sae(target, 0)
    row = compare(sae, sae, torch.randn(4000, 32), most=10)
    assert (row["latents"], row["survival"]) == (10, 1)


SMALL = {"n_contexts": 8, "context_size": 32, "n_min": 1, "other_seeds": (0, 1)}


def test_snapshots_are_compared_and_other_seeds_are_trained(target, model, tmp_path):
    frozen = {"aux_loss_coefficient": 0.0, "separate": False, "start": "copies"}
    plan = make_plan("hierarchical:lower", target, {**tiny("hierarchical"), **frozen}, tmp_path)
    (located,), _ = locate_requests([SAERequest(plan.full_name, plan)], "cpu", snapshots=(0.3, 0.5))
    evaluation = evaluate("concept_stability", located.load("cpu"), target, model, located, **SMALL)
    values = evaluation.metrics
    assert [row["what"] for row in evaluation.unstructured["pairs"]] == ["0.3 to 0.5", "0.5 to 1", "seed 1"]
    assert values["early"]["survival"] > 0.95  # the lower level is frozen in between, except for its threshold
    assert values["early"]["cosine"] == pytest.approx(1)
    assert values["late"]["cosine"] < 1
    assert values["seeds"]["cosine"] < values["late"]["cosine"]
    assert values["others"] == dict.fromkeys(values["others"])


def test_an_sae_without_snapshots_is_refused(target, model, tmp_path):
    plan = make_plan("stock:batchtopk", target, tiny("stock:batchtopk"), tmp_path)
    (located,), _ = locate_requests([SAERequest(plan.full_name, plan)], "cpu")
    with pytest.raises(UsageError, match="has no snapshots"):
        evaluate("concept_stability", located.load("cpu"), target, model, located, **SMALL)


def test_an_sae_that_was_not_trained_here_needs_another_to_be_compared_with(target, model, tmp_path):
    with pytest.raises(UsageError, match="--against"):
        evaluate("concept_stability", identity(target), target, model, **SMALL)
    identity(target).save_model(tmp_path / "same")
    against = (str(tmp_path / "same"),)
    evaluation = evaluate("concept_stability", identity(target), target, model, **SMALL, against=against)
    assert evaluation.metrics["others"]["survival"] == 1
    assert evaluation.metrics["seeds"]["survival"] is None


def test_shares_must_be_in_order(target, model):
    with pytest.raises(UsageError, match="--first-share"):
        evaluate("concept_stability", identity(target), target, model, prepare=True, **SMALL, first_share=0.8)


def test_snapshots_of_two_parts_are_of_one_training(target, tmp_path):
    plans = [make_plan(name, target, tiny(name), tmp_path) for name in ("hierarchical", "hierarchical:lower")]
    train_plans(plans, snapshots=(0.5,))
    upper, lower = (locate_snapshot(plan.snapshot(0.5)).load("cpu").cfg.d_sae for plan in plans)
    assert lower == 4 * upper


def test_another_sae_of_another_width_is_refused(target, model, tmp_path):
    import sae_variants

    sae_variants.build("stock:standard", d_in=8, d_sae=16).save_inference_model(tmp_path / "narrow")
    against = (str(tmp_path / "narrow"),)
    with pytest.raises(UsageError, match=r"narrow.* has d_in = 8, but .* is 32 wide"):
        evaluate("concept_stability", identity(target), target, model, **SMALL, against=against)


def test_rows_are_matched_one_to_one_and_zero_rows_match_nothing():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    left, right, cosines = match_rows(rows, np.array([[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]))
    assert dict(zip(left.tolist(), right.tolist(), strict=True)) == {0: 1, 1: 2, 2: 0}
    assert cosines.tolist() == [1, 0, 1]
