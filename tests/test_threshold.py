"""The threshold of a saved BatchTopK fits its k after a training of any length."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from conftest import make_text, tiny
from safetensors.torch import load_file
from test_train import killed_at, same

import sae_variants
from eval_runners.saebench.remarks import core_remarks, requested_l0
from sae_variants.language_model.contexts import read_contexts
from sae_variants.language_model.hooks import hook_activations
from sae_variants.language_model.target import choose_target
from sae_variants.ops.threshold import calibrated_threshold, running_rate
from sae_variants.training.plan import hash_kind, make_plan
from sae_variants.training.train import train_plans


def test_a_calibrated_threshold_by_hand():
    batches = [torch.tensor([[5.0, 1.0, 4.0], [-1.0, 2.0, 3.0]]), torch.tensor([[0.5, 6.0, -3.0], [0.0, 0.2, 1.5]])]
    assert calibrated_threshold(batches, 1) == 2.5  # 6, 5, 4, 3 lie above
    assert calibrated_threshold(batches, 0.5) == 4.5
    assert calibrated_threshold(batches, 9) == 0.0
    assert calibrated_threshold(batches, 0.1) == 6.0  # less than one latent in all: none lies above
    assert calibrated_threshold(batches, 1e-9) == 6.0


def test_a_running_mean_has_no_bias_of_its_start():
    mean, values = 0.0, [3.0, 5.0, 7.0]
    for step, value in enumerate(values):
        mean += running_rate(0.1, step) * (value - mean)
    weights = [0.1 * 0.9**2, 0.1 * 0.9, 0.1]
    assert mean == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    assert running_rate(0.1, 0) == pytest.approx(1)


@pytest.fixture(scope="module")
def longer_target(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(make_text(3000)))
    return choose_target("sandbox", str(model_folder), "blocks.1.hook_resid_post", str(path))


@pytest.fixture(scope="module")
def heldout(longer_target, model):
    contexts = itertools.islice(read_contexts(longer_target, model, 33, "heldout"), 256)
    tokens = torch.stack(list(contexts))
    return hook_activations(model, longer_target.hook_name)(tokens)[tokens != 0]


def l0(folder, x):
    return (sae_variants.load(folder).encode(x) != 0).sum(-1).float().mean().item()


@pytest.mark.parametrize("steps", [32, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (128, 512))])
def test_held_out_l0_is_k_whatever_the_length(longer_target, heldout, tmp_path, steps):
    names = ["temporal", "hierarchical", "random", "stock:batchtopk", "stock:matryoshka_batchtopk"]
    plans = [make_plan(name, longer_target, tiny(name) | {"training_tokens": 256 * steps}, tmp_path) for name in names]
    train_plans(plans)
    for plan in plans:
        tolerance = 0.1 if plan.name.startswith("stock:") else 0.03
        assert l0(plan.folder, heldout) == pytest.approx(4, rel=tolerance), plan.name
        rule = json.loads((plan.folder / "training.json").read_text())["threshold"]
        if plan.name.startswith("stock:"):
            assert rule == {"rule": "running mean", "topk_threshold_lr": max(0.05, 10 / steps)}
        else:
            assert rule == {"rule": "calibrated on the last tokens", "tokens": min(256 * steps, 32768)}
    lower = plans[1].folder / "lower"
    assert l0(lower, heldout) == pytest.approx(8, rel=0.03)


def test_the_user_keeps_the_last_word_on_the_rate(target, tmp_path):
    plan = make_plan("stock:batchtopk", target, tiny("stock:batchtopk") | {"topk_threshold_lr": 0.02}, tmp_path)
    train_plans([plan])
    assert json.loads((plan.folder / "training.json").read_text())["threshold"]["topk_threshold_lr"] == 0.02
    assert json.loads((plan.folder / "cfg.json").read_text())["metadata"]["training_architecture_details"][
        "topk_threshold_lr"
    ] == pytest.approx(0.02)


def test_the_rate_of_the_recipe_is_another_sae_only_where_a_short_training_would_raise_it(target, tmp_path):
    def made(**more):
        return make_plan("stock:batchtopk", target, tiny("stock:batchtopk") | more, tmp_path)

    raised, kept = made(), made(topk_threshold_lr=0.05)
    assert raised.folder != kept.folder
    assert raised.kind != kept.kind
    assert kept.label == raised.label.replace(" training", " topk_threshold_lr=0.05 training")
    train_plans([raised, kept])
    records = [json.loads((plan.folder / "training.json").read_text()) for plan in (raised, kept)]
    assert [record["threshold"]["topk_threshold_lr"] for record in records] == [10 / 32, 0.05]
    assert [hash_kind(record) for record in records] == [raised.kind, kept.kind]
    long, same_long = (made(training_tokens=256 * 200, **more) for more in ({}, {"topk_threshold_lr": 0.05}))
    assert (long.folder, long.label) == (same_long.folder, same_long.label)
    ours = [make_plan("temporal", target, tiny("temporal") | more) for more in ({}, {"topk_threshold_lr": 0.05})]
    assert ours[0].folder == ours[1].folder


@pytest.mark.parametrize("name", ["temporal", "hierarchical"])
def test_a_kill_near_the_end_costs_no_digit_of_the_threshold(target, heldout, tmp_path, monkeypatch, name):
    whole, broken = (make_plan(name, target, tiny(name), tmp_path / root) for root in ("whole", "broken"))
    train_plans([whole], snapshots=(0.5,))
    killed_at(monkeypatch, 31, [broken], checkpoint_steps=10)
    train_plans([broken], checkpoint_steps=10)
    assert same(*(load_file(plan.folder / "sae_weights.safetensors") for plan in (whole, broken)))
    assert l0(whole.snapshot(0.5), heldout) == pytest.approx(4, rel=0.1)


def result(l0=4.0, clean=3.0, zeroed=5.0, kl=1.0, cfg=None, **details):
    metadata = {"training_architecture": "batchtopk", "training_architecture_details": details}
    return {
        "eval_result_metrics": {
            "a": {"ce_loss_without_sae": clean, "ce_loss_with_ablation": zeroed, "kl_div_with_ablation": kl},
            "sparsity": {"l0": l0},
        },
        "sae_cfg_dict": {"d_sae": 64, "architecture": "jumprelu", "metadata": metadata, **(cfg or {})},
    }


def test_remarks_name_what_is_wrong_and_the_option():
    assert core_remarks(result(k=4, topk_threshold_lr=0.01)) == []
    assert core_remarks(result(l0=4.39, k=4, topk_threshold_lr=0.01)) == []
    (remark,) = core_remarks(result(l0=9, k=4, topk_threshold_lr=0.01))
    assert "L0 is 9 on this text instead of k = 4" in remark
    assert "--topk-threshold-lr" in remark
    (remark,) = core_remarks(result(clean=6.0, zeroed=5.9))
    assert "CE score is meaningless" in remark
    assert "zeroed (5.900)" in remark
    assert len(core_remarks(result(kl=0.0))) == 1
    assert core_remarks({"eval_result_metrics": None}) == []


def test_the_requested_l0_is_that_of_the_level():
    levels = {"k": 4.0, "lower_k": 0, "sparsity": "batchtopk"}
    assert requested_l0(result(**levels)["sae_cfg_dict"]) == 8
    assert requested_l0(result(cfg={"architecture": "hierarchical"}, **levels)["sae_cfg_dict"]) == 4
    assert requested_l0(result(**{**levels, "sparsity": "l1"})["sae_cfg_dict"]) is None
    assert requested_l0(result(k=4, base="relu")["sae_cfg_dict"]) is None
    assert requested_l0({"k": 7, "architecture": "topk"}) == 7
