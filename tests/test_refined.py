"""Refined encoders: the step by hand, the saved form, and the sparse path against the dense one."""

from __future__ import annotations

import json

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file

import sae_variants
from sae_variants.common.errors import UsageError
from sae_variants.refinement.saved import RefinedSAE, RefinedSAEConfig
from sae_variants.refinement.steps import refined_input

D, S, K = 6, 20, 4


def build(name="refined", **overrides):
    fields = {"k": K, **({"window": 4} if name == "temporal" else {}), **overrides}
    sae = sae_variants.build(name, d_in=D, d_sae=S, seed=0, **fields)
    sae.is_ours, sae.special_N = True, torch.zeros(32, dtype=torch.bool)
    with torch.no_grad():
        sae.b_dec += 0.1 * torch.randn(D, generator=torch.Generator().manual_seed(1))
    return sae


def step(sae, x, number=1):
    return sae.training_forward_pass(TrainStepInput(x, {}, None, n_training_steps=number, is_logging_step=False))


def test_the_input_of_a_step_by_hand():
    # a dictionary of one direction (3/5, 4/5) encodes x = (5, 0) as 3: (1.8, 2.4) is explained, (3.2, -2.4) is left
    row = torch.tensor([0.6, 0.8])
    encode, decode = (lambda x, _: (x @ row)[..., None]), (lambda code: code * row)
    x = torch.tensor([[5.0, 0.0]])
    torch.testing.assert_close(refined_input(x, [0.5], encode, decode), torch.tensor([[6.6, -1.2]]))
    assert refined_input(x, [], encode, decode) is x


def test_it_is_a_step_on_the_pre_activations():
    sae, x = build(step_size=0.4), torch.randn(32, D)
    with torch.no_grad():
        norm = sae.W_dec.norm(dim=1)
        W_enc, W_dec = sae.W_enc * norm, sae.W_dec / norm[:, None]
        first = (x - sae.b_dec) @ W_enc + sae.b_enc * norm
        left = x - sae.activation_fn(first) @ W_dec - sae.b_dec
        torch.testing.assert_close(sae.encode_with_hidden_pre(x)[1], first + 0.4 * left @ W_enc)


def test_a_second_encoding_finds_what_overlapping_directions_hide():
    # two directions at 60 degrees: x is the first one alone, and a single encoding sees half of it in the second
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]])
    cfg = RefinedSAEConfig(d_in=2, d_sae=2, refine=1, step_size=1.0)
    sae = RefinedSAE(cfg)
    with torch.no_grad():
        sae.W_dec[:], sae.W_enc[:] = rows, rows.T
        sae.b_dec.zero_(), sae.threshold.fill_(0.2)
    torch.testing.assert_close(sae.encode(rows[:1]), torch.tensor([[0.75, 0.0]]))  # the other one has vanished


@pytest.mark.parametrize("name", ["refined", "temporal", "topk"])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_the_saved_sae_encodes_in_the_same_steps(name, normalize, tmp_path):
    sae = build(name, refine=2, normalize_activations=normalize)
    for _ in range(3):
        step(sae, torch.randn(32, D))
    batches = [torch.randn(2048, D) for _ in range(4)]
    if sae.calibrates:
        sae.calibrate(batches)
    if normalize != "none":
        sae.fold_activation_norm_scaling_factor(3.0)
        batches = [x / 3 for x in batches]
    sae.save_inference_model(tmp_path)
    saved = sae_variants.load(tmp_path)
    assert type(saved) is RefinedSAE
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "refined"
    x = torch.cat(batches)
    assert (saved.encode(x) > 0).sum(1).float().mean().item() == pytest.approx(K, abs=0.02)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    assert weights["inner_thresholds"].shape == (2, S)
    thresholds = [*weights["inner_thresholds"], weights["threshold"]]
    shifted = x
    for number in range(3):
        pre = (shifted - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        acts = pre.relu() * (pre > thresholds[number])
        if name == "topk":
            acts = torch.zeros_like(acts).scatter(1, (top := acts.topk(K)).indices, top.values)
        shifted = shifted + 0.3 * (x - acts @ weights["W_dec"] - weights["b_dec"])
    torch.testing.assert_close(saved.encode(x), acts)


@pytest.mark.parametrize("name", ["refined", "temporal", "hierarchical"])
def test_inner_thresholds_follow_training_steps_and_no_others(name):
    """Another trainer, such as SAELens' own, does not calibrate them."""
    sae = build(name, refine=2)
    x = torch.randn(32, D)
    for _ in range(3):
        step(sae, x)
    inner_T = sae.inner_thresholds_T.clone()
    assert (inner_T > 0).all()
    with torch.no_grad():
        sae.encode(10 * x)
    assert torch.equal(sae.inner_thresholds_T, inner_T)
    step(sae, x + torch.nan)
    assert torch.equal(sae.inner_thresholds_T, inner_T)


@pytest.mark.parametrize("name", ["refined", "temporal", "topk"])
def test_without_steps_it_is_saved_as_a_stock_architecture(name, tmp_path):
    build(name, refine=0).save_inference_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == ("topk" if name == "topk" else "jumprelu")
    assert "refine" not in config


def test_without_steps_it_is_batch_topk():
    ours, theirs = build(refine=0), sae_variants.build("stock:batchtopk", d_in=D, d_sae=S, seed=0, k=K)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(32, D)
    found, expected = step(ours, x), step(theirs, x)
    torch.testing.assert_close(found.feature_acts, expected.feature_acts)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("name", ["refined", "topk"])
def test_gradients_equal_those_of_the_dense_lines(name):
    options = {"median_start": False, "normalized_losses": False} if name == "topk" else {}
    sae, x = build(name, refine=2, aux_loss_coefficient=0.0, **options), torch.randn(32, D)
    step(sae, x).loss.backward()
    found = {parameter: value.grad.clone() for parameter, value in sae.named_parameters()}
    sae.zero_grad()
    shifted = x
    for _ in range(3):
        pre = (shifted - sae.b_dec) @ sae.W_enc + sae.b_enc
        if name == "topk":
            acts = torch.zeros_like(pre).scatter(1, (top := pre.topk(K)).indices, top.values.relu())
        else:
            acts = sae.activation_fn(pre * sae.W_dec.norm(dim=1))
        rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
        if name == "topk":  # whose gradient along a row is removed
            rows = sae.W_dec
        out = acts @ rows + sae.b_dec
        shifted = shifted + 0.3 * (x - out)
    (x - out).pow(2).sum(1).mean().backward()
    for parameter, value in sae.named_parameters():
        expected = value.grad
        if name == "topk" and parameter == "W_dec":
            expected = expected - (expected * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
        torch.testing.assert_close(found[parameter], expected, atol=2e-5, rtol=1e-4, msg=parameter)


def test_nested_reconstructions_by_hand():
    sae, x = build(matryoshka_widths=[5, 10, 20]), torch.randn(32, D)
    found = step(sae, x)
    for width in (5, 10):
        out = found.feature_acts[:, :width] @ sae._rows()[:width] + sae.b_dec
        torch.testing.assert_close(found.losses[f"inner_mse_loss_{width}"], (x - out).pow(2).sum(1).mean())
    assert "inner_mse_loss_20" not in found.losses


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("refine", -1, "refine must be at least 0"),
        ("step_size", 0.0, "step_size"),
        ("matryoshka_widths", [10, 5], "must rise"),
        ("matryoshka_widths", [5, 30], "d_sae = 20"),
    ],
)
def test_a_wrong_value_is_refused(field, value, says):
    with pytest.raises(UsageError, match=says):
        build(**{field: value})


def test_topk_with_free_norms_is_not_refined():
    with pytest.raises(UsageError, match="unit_rows"):
        build("topk", refine=1, unit_rows=False)
