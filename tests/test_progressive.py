"""Oracles: orthonormal latents, of which each that is left out costs its square."""

from __future__ import annotations

import pytest
import torch
from conftest import identity, tiny

import sae_variants
from eval_runners import progressive
from eval_runners.harness.find_sae import resolve_requests, train_missing
from eval_runners.progressive import LOOKS, EvalConfig, came_and_went, explained
from sae_variants.language_model.load import load_model


def test_what_is_left_out_of_orthonormal_latents_is_lost(target):
    torch.manual_seed(0)
    x = torch.randn(500, 32)
    found = explained(identity(target), x)  # latents are the positive and the negative part of each channel
    total = (x - x.mean(0)).pow(2).sum()
    for k in (1, 4, 16):
        left_out = x.abs().sort(dim=1, descending=True).values[:, k:].pow(2).sum()
        assert found[f"ev_{k}"] == pytest.approx(1 - (left_out / total).item(), abs=1e-4)
    assert found["ev_32"] == pytest.approx(1, abs=1e-5)
    assert found["ev_128"] == pytest.approx(1, abs=1e-5)


def test_latents_are_ranked_by_what_they_write(target):
    sae, x = identity(target), torch.randn(500, 32)
    before = explained(sae, x)
    scale = torch.linspace(0.1, 10, sae.cfg.d_sae)
    sae.W_dec.data *= scale[:, None]  # and the activations the less
    sae.W_enc.data /= scale
    assert explained(sae, x)["ev_4"] == pytest.approx(before["ev_4"], abs=1e-4)


def test_a_topk_sae_is_asked_for_more_than_it_was_trained_with(tmp_path):
    built = sae_variants.build("topk", d_in=16, d_sae=256, seed=0, k=2)
    built.save_inference_model(tmp_path)
    sae, x = sae_variants.load(tmp_path), torch.randn(200, 16)
    found = explained(sae, x)
    assert found["ev_4"] != pytest.approx(found["ev_2"], abs=1e-3)
    sae.activation_fn.k = 4
    with torch.no_grad():
        error = (sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert found["ev_4"] == pytest.approx(1 - error.item(), abs=1e-4)
    assert sae.activation_fn.k == 4


def test_what_came_and_went_by_hand():
    looks = [torch.tensor(row).bool() for row in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1])]
    found = came_and_went(looks)
    assert [found[f"dead_{at}"] for at in (25, 50, 75, 100)] == [0.5, 0.5, 0.25, 0]
    assert [found[f"recovered_{at}"] for at in (50, 75, 100)] == [0.25, 0.25, 0.25]
    assert [found[f"lost_{at}"] for at in (50, 75, 100)] == [0.25, 0, 0]


def test_an_sae_and_its_looks_are_of_one_training(target, tmp_path, capsys):
    import shutil

    (plan,) = resolve_requests(["topk"], target, tiny("topk"), [{}], [0], tmp_path)
    (found,), _ = train_missing([plan], [], "cpu")
    weights = found.folder / "sae_weights.safetensors"
    bytes_of_first, before = weights.read_bytes(), found.weight_hash
    weights.write_bytes(bytes_of_first[:-4] + b"\0\0\0\0")  # as if another machine had trained it
    (again,), _ = train_missing([plan], [], "cpu", LOOKS)
    assert "was not looked at in its training: training it again" in capsys.readouterr().out
    assert again.weight_hash == before
    assert not plan.lacks(LOOKS)
    shutil.rmtree(plan.snapshot(0.5))
    model = load_model(target.model_name, "cpu", "float32")
    config = EvalConfig(n_contexts=8, context_size=32)
    evaluation = progressive.evaluate(again.load("cpu"), target, config, model=model, device="cpu", found=again)
    assert evaluation.output["eval_result_metrics"]["training"]["dead_100"] is None


def test_an_sae_that_is_trained_here_is_looked_at_on_its_way(target, model, tmp_path):
    wanted = resolve_requests(["topk"], target, tiny("topk"), [{}], [0], tmp_path)
    (found,), _ = train_missing(wanted, [], "cpu", LOOKS)
    config = EvalConfig(n_contexts=8, context_size=32)
    evaluation = progressive.evaluate(found.load("cpu"), target, config, model=model, device="cpu", found=found)
    values = evaluation.output["eval_result_metrics"]
    assert all(value is not None for value in values["training"].values())
    dead = [values["training"][f"dead_{at}"] for at in (25, 50, 75, 100)]
    for at, before, after in zip((50, 75, 100), dead, dead[1:], strict=False):
        moved = values["training"][f"lost_{at}"] - values["training"][f"recovered_{at}"]
        assert after - before == pytest.approx(moved, abs=1e-6)
    assert values["kept"]["ev_4"] > values["kept"]["ev_1"]
