"""Refined gated SAEs: the equations by hand, the loss against SAELens' gated SAE, and the control of L0."""

from __future__ import annotations

import math

import pytest
import torch
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

import sae_variants
from sae_variants.common.errors import UsageError
from sae_variants.ops.l0_control import follow_l0, l0_error
from sae_variants.refinement.saved import RefinedSAE

D, S, N = 6, 20, 64


def build(**fields):
    sae = sae_variants.build("refined_gated", d_in=D, d_sae=S, seed=0, **fields)
    sae.is_ours = True
    shake(sae)
    return sae


def shake(sae):
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in (sae.b_dec, sae.b_gate, sae.b_mag, sae.r_mag):
            weights += 0.2 * torch.randn(weights.shape, generator=random)


def step(sae, x, number=0, coefficients=None):
    return sae.training_forward_pass(TrainStepInput(x, coefficients or {}, None, number, is_logging_step=False))


@pytest.mark.parametrize("refine", [0, 1, 2])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_the_trained_and_the_saved_sae_encode_by_the_equations(refine, normalize, tmp_path):
    sae, x = build(k=5, refine=refine, step_size=0.4, normalize_activations=normalize), torch.randn(N, D)

    def code(shifted):
        gates = (shifted - sae.b_dec) @ sae.W_enc + sae.b_gate
        return (gates > 0) * (sae.r_mag.exp() * (gates - sae.b_gate) + sae.b_mag).relu()

    with torch.no_grad():
        shifted = x
        for _ in range(refine):
            shifted = shifted + 0.4 * (x - code(shifted) @ sae.W_dec - sae.b_dec)
        acts = code(shifted)
        torch.testing.assert_close(sae.encode(x), acts)
        out = acts @ sae.W_dec + sae.b_dec
        scale = 1.0
        if normalize != "none":
            scale = 3.0
            sae.fold_activation_norm_scaling_factor(scale)
        sae.save_inference_model(tmp_path)
        saved = sae_variants.load(tmp_path)
        assert isinstance(saved, RefinedSAE) == (refine > 0)
        assert saved.cfg.architecture() == ("refined" if refine else "jumprelu")
        torch.testing.assert_close(saved.encode(x / scale), acts)
        torch.testing.assert_close(saved.decode(saved.encode(x / scale)), out / scale)
        saved.fold_W_dec_norm()
        torch.testing.assert_close(saved.decode(saved.encode(x / scale)), out / scale)


def test_without_a_step_loss_and_gradients_are_those_of_saelens():
    ours = build(k=5, refine=0, l1_coefficient=0.7)
    theirs = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D, d_sae=S))
    names = [name for name, _ in theirs.named_parameters()]
    theirs.load_state_dict({name: ours.state_dict()[name] for name in names})
    x = torch.randn(N, D)
    scale = (x - x.mean(0)).norm(dim=1).mean().item()
    losses = [step(ours, x).loss, step(theirs, x, coefficients={"l1": 0.7 * scale}).loss]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    grads = dict(ours.named_parameters())
    for name, weights in theirs.named_parameters():
        torch.testing.assert_close(grads[name].grad, weights.grad, msg=name)


def test_the_error_of_l0_by_hand():
    l0, first = torch.tensor(40.0), torch.tensor(160.0)
    assert l0_error(l0, 10, first, ahead=0.0).item() == pytest.approx(math.log(4))
    assert l0_error(l0, 10, first, ahead=0.5).item() == pytest.approx(0, abs=1e-6)  # the target is √(10 · 160)
    assert l0_error(l0, 10, torch.tensor(2.0), ahead=0.5).item() == pytest.approx(math.log(4))  # it never rises
    assert l0_error(torch.tensor(0.0), 10, first, ahead=0.0).item() == pytest.approx(math.log(0.05))  # not -inf


def test_the_multiplier_follows_the_error_by_hand():
    log_lambda = torch.tensor(0.0, dtype=torch.double)
    assert follow_l0(log_lambda, torch.tensor(0.5), rate=0.2, gain=2.0).item() == pytest.approx(math.exp(0.1 + 1.0))
    assert log_lambda.item() == pytest.approx(0.1)
    follow_l0(log_lambda, torch.tensor(-7.0), rate=0.2, gain=2.0)
    assert log_lambda.item() == pytest.approx(-0.1)  # an error counts as at most 1


def test_training_reaches_its_l0_whatever_the_units_of_the_inputs():
    basis = torch.nn.functional.normalize(torch.randn(S, D), dim=1)
    for unit in (0.5, 1.0, 4.0):
        sae = sae_variants.build("refined_gated", d_in=D, d_sae=S, seed=0, k=3, total_steps=400)
        sae.is_ours = True
        adam, l0 = torch.optim.Adam(sae.parameters(), lr=3e-3 * unit**0.5), []
        for number in range(400):
            x = unit * (torch.rand(512, S) * (torch.rand(512, S) < 0.1)) @ basis
            output = step(sae, x, number)
            adam.zero_grad()
            output.loss.backward()
            adam.step()
            l0.append((output.feature_acts > 0).sum(-1).float().mean().item())
        assert sum(l0[-50:]) / 50 == pytest.approx(3, rel=0.05)


def test_dead_latents_learn_what_the_others_left():
    sae, x = build(k=5, refine=0), torch.randn(N, D)
    with torch.no_grad():
        sae.b_gate[:4] = -100.0  # these never fire
    dead = torch.arange(S) < 2
    for mask in (None, torch.zeros(S).bool(), dead):
        sae.zero_grad()
        output = sae.training_forward_pass(TrainStepInput(x, {}, mask, 0, is_logging_step=False))
        output.loss.backward()
        moved = sae.W_dec.grad[:4].norm(dim=1) > 0
        assert moved.tolist() == ([False] * 4 if mask is None or not mask.any() else [True, True, False, False])
    left = (x - output.sae_out).detach()
    gates = (x - sae.b_dec) @ sae.W_enc + sae.b_gate
    loss = 0.1 * 2 / (D // 2) * (left - gates[:, dead] @ sae.W_dec[dead]).pow(2).sum(1).mean()
    torch.testing.assert_close(output.losses["dead_latents_loss"], loss)


def test_another_trainer_is_told_that_the_target_does_not_fall():
    sae = sae_variants.build("refined_gated", d_in=D, d_sae=S, k=4)
    with pytest.warns(UserWarning, match="total_steps is 0"):
        assert sae.get_coefficients() == {}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"k": 0}, "k must be above 0 and at most d_sae = 20, not 0"),
        ({"k": 21}, "k must be above 0 and at most d_sae = 20, not 21"),
        ({"l1_coefficient": 0.0}, "l1_coefficient must be positive, not 0"),
        ({"l1_warm_up_steps": 5}, "l1_warm_up_steps must be 0, not 5"),
        ({"descent_share": 1.5}, "descent_share must be between 0 and 1, not 1.5"),
    ],
)
def test_what_cannot_work_is_refused(fields, says):
    with pytest.raises(UsageError, match=says):
        sae_variants.build("refined_gated", d_in=D, d_sae=S, **{"k": 4, **fields})
