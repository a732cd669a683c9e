"""Oracles: leaving out an orthonormal latent costs the square of its activation."""

from __future__ import annotations

import pytest
import torch
from conftest import evaluate, identity, tiny

import sae_variants
from eval_runners.harness.find_sae import locate_requests, resolve_requests
from eval_runners.measures.truncation import truncated_explained_variances
from eval_runners.measures.turnover import latent_turnover
from eval_runners.progressive import KEPT, PERCENTS, SNAPSHOTS


def test_leaving_out_orthonormal_latents_costs_their_squares(target):
    torch.manual_seed(0)
    x = torch.randn(500, 32)
    explained = truncated_explained_variances(
        identity(target), x, KEPT
    )  # latents are the positive and the negative part of each channel
    total = (x - x.mean(0)).pow(2).sum()
    for k in (1, 4, 16):
        left_out = x.abs().sort(dim=1, descending=True).values[:, k:].pow(2).sum()
        assert explained[k] == pytest.approx(1 - (left_out / total).item(), abs=1e-4)
    assert explained[32] == pytest.approx(1, abs=1e-5)
    assert explained[128] == pytest.approx(1, abs=1e-5)


def test_latents_are_ranked_by_what_they_write(target):
    sae, x = identity(target), torch.randn(500, 32)
    before = truncated_explained_variances(sae, x, KEPT)
    scale = torch.linspace(0.1, 10, sae.cfg.d_sae)
    sae.W_dec.data *= scale[:, None]  # and the activations the less
    sae.W_enc.data /= scale
    assert truncated_explained_variances(sae, x, KEPT)[4] == pytest.approx(before[4], abs=1e-4)


def test_a_topk_sae_is_evaluated_above_its_k(tmp_path):
    built = sae_variants.build("topk", d_in=16, d_sae=256, seed=0, k=2)
    built.save_inference_model(tmp_path)
    sae, x = sae_variants.load(tmp_path), torch.randn(200, 16)
    explained = truncated_explained_variances(sae, x, KEPT)
    assert explained[4] != pytest.approx(explained[2], abs=1e-3)
    sae.activation_fn.k = 4
    with torch.no_grad():
        error = (sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert explained[4] == pytest.approx(1 - error.item(), abs=1e-4)
    assert sae.activation_fn.k == 4


def test_turnover_of_hand_written_snapshots():
    fires = [torch.tensor(row).bool() for row in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1])]
    shares = latent_turnover(PERCENTS, fires)
    assert [shares[f"dead_{at}"] for at in (25, 50, 75, 100)] == [0.5, 0.5, 0.25, 0]
    assert [shares[f"recovered_{at}"] for at in (50, 75, 100)] == [0.25, 0.25, 0.25]
    assert [shares[f"lost_{at}"] for at in (50, 75, 100)] == [0.25, 0, 0]


def test_an_sae_and_its_snapshots_are_of_one_training(target, model, tmp_path, capsys):
    import shutil

    (request,) = resolve_requests(["topk"], target, tiny("topk"), [{}], [0], tmp_path)
    (before,), _ = locate_requests([request], "cpu")
    weights, hash_before = before.folder / "sae_weights.safetensors", before.weight_hash
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")  # as if another machine had trained it
    (after,), _ = locate_requests([request], "cpu", snapshots=SNAPSHOTS)
    assert "has no snapshots: training it again to record them" in capsys.readouterr().out
    assert after.weight_hash == hash_before
    assert not request.plan.lacks(SNAPSHOTS)
    shutil.rmtree(request.plan.snapshot(0.5))
    evaluation = evaluate("progressive", after.load("cpu"), target, model, after, n_contexts=8, context_size=32)
    assert evaluation.metrics["training"]["dead_100"] is None


def test_an_sae_that_is_trained_here_has_snapshots(target, model, tmp_path):
    requests = resolve_requests(["topk"], target, tiny("topk"), [{}], [0], tmp_path)
    (located,), _ = locate_requests(requests, "cpu", snapshots=SNAPSHOTS)
    values = evaluate("progressive", located.load("cpu"), target, model, located, n_contexts=8, context_size=32).metrics
    assert all(value is not None for value in values["training"].values())
    dead = [values["training"][f"dead_{at}"] for at in PERCENTS]
    for at, before, after in zip(PERCENTS[1:], dead, dead[1:], strict=False):
        moved = values["training"][f"lost_{at}"] - values["training"][f"recovered_{at}"]
        assert after - before == pytest.approx(moved, abs=1e-6)
    assert values["kept"]["ev_4"] > values["kept"]["ev_1"]
