"""What SAELens' own clients do with any SAE: the ideas of its public tests, on every variant of ours."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from conftest import tiny
from sae_lens.saes.sae import TrainStepInput
from test_variants import D_IN, D_SAE, NAMES, OURS, build, step_input, trained_form

import sae_variants
from sae_variants.registry.variants import find_variant
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans

LEARNT = [name for name in OURS if find_variant(name).config_class.learns_by_gradient]
TWO_LEVELS = ["hierarchical", "dual_adaptive", "learnable_dual"]
HOOKS = ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons")


@pytest.mark.parametrize("name", NAMES)
def test_a_single_vector_is_encoded_as_a_batch_of_one(name, tmp_path):
    x = torch.randn(5, D_IN)
    saved = trained_form(name, tmp_path)
    latents = saved.encode(x[0])
    assert latents.shape == (D_SAE,)
    torch.testing.assert_close(latents, saved.encode(x)[0])
    assert saved.decode(latents).shape == saved(x[0]).shape == (D_IN,)
    training = build(name)
    torch.testing.assert_close(training.encode(x[:1])[0], training.encode(x[0]))
    torch.testing.assert_close(training.decode(training.encode(x[0])), training.decode(training.encode(x[:1]))[0])
    assert training(x[0]).shape == (D_IN,)


@pytest.mark.parametrize("name", NAMES)
def test_every_hook_fires_in_a_training_step_and_changes_no_loss(name):
    x, losses = torch.randn(32, D_IN), []
    for is_watched in (False, True):
        sae, seen = build(name), {}
        for hook in HOOKS if is_watched else ():
            getattr(sae, hook).add_hook(lambda value, hook, seen=seen: seen.update({hook.name: tuple(value.shape)}))
        output = sae.training_forward_pass(step_input(sae, x))
        losses.append(output.loss)
    assert seen == dict(zip(HOOKS, [(32, D_IN), (32, D_SAE), (32, D_SAE), (32, D_IN)], strict=True))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", NAMES)
def test_a_look_at_an_sae_in_training_changes_nothing(name):
    sae, x = build(name), torch.randn(32, D_IN)
    sae.training_forward_pass(step_input(sae, x))
    before = {key: values.clone() for key, values in sae.state_dict().items()}
    sae(2 * x)
    after = sae.state_dict()
    assert all(torch.equal(values, after[key]) for key, values in before.items())


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("hook", ["hook_sae_acts_post", "hook_sae_recons"])
def test_what_a_hook_returns_is_what_the_step_uses(name, hook):
    sae = build(name)
    x = torch.randn(32, D_IN)
    plain = sae.training_forward_pass(step_input(sae, x))
    getattr(sae, hook).add_hook(lambda value, hook: value * 0)
    changed = sae.training_forward_pass(step_input(sae, x))
    assert changed.losses["mse_loss"] != plain.losses["mse_loss"]
    torch.testing.assert_close(changed.sae_out, changed.sae_out[:1].expand(32, -1))


def test_topk_with_hooks_has_the_gradients_of_topk_without():
    grads = []
    for is_watched in (False, True):
        sae = build("topk")
        sae.tokens_since_fired[:9] = sae.cfg.dead_after_tokens + 1
        if is_watched:
            sae.hook_sae_acts_pre.add_hook(lambda value, hook: None)
        torch.manual_seed(0)
        sae.training_forward_pass(step_input(sae, torch.randn(32, D_IN))).loss.backward()
        grads.append([parameter.grad for parameter in sae.parameters()])
    for plain, watched in zip(*grads, strict=True):
        torch.testing.assert_close(plain, watched, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_folding_norms_in_training_changes_no_output(name):
    sae = build(name)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        x = torch.randn(32, D_IN)
        acts, out, lower = sae.encode(x), sae(x), sae.lower(x).acts
        sae.fold_W_dec_norm()
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
        torch.testing.assert_close(sae.lower(x).acts, lower)
        torch.testing.assert_close(sae.encode(x), acts)
        torch.testing.assert_close(sae(x), out)


def test_topk_folds_and_its_codes_stay(tmp_path):
    saved = trained_form("topk", tmp_path)
    assert saved.cfg.rescale_acts_by_decoder_norm
    x = torch.randn(64, D_IN)
    norm = saved.W_dec.norm(dim=-1)
    plain = ((x - saved.b_dec) @ saved.W_enc + saved.b_enc).topk(4)
    expected = torch.zeros(64, D_SAE).scatter(-1, plain.indices, plain.values.relu())
    torch.testing.assert_close(norm, torch.ones(D_SAE))
    torch.testing.assert_close(saved.encode(x), expected, rtol=2e-6, atol=2e-6)
    saved.fold_W_dec_norm()
    torch.testing.assert_close(saved.encode(x), expected, rtol=2e-6, atol=2e-6)
    free = sae_variants.build("topk", d_in=D_IN, d_sae=D_SAE, k=4, unit_rows=False)
    free.save_inference_model(tmp_path / "free")
    assert not sae_variants.load(tmp_path / "free").cfg.rescale_acts_by_decoder_norm


def test_latents_are_selected_by_columns_of_the_encoder(tmp_path):
    sae = trained_form("hierarchical", tmp_path)
    x, selected = torch.randn(16, D_IN), [7, 3, 30]
    whole, W_enc, W_dec = sae.encode(x), sae.W_enc, sae.W_dec
    sae.W_dec = torch.nn.Parameter(W_dec[selected])
    sae.W_enc = torch.nn.Parameter(W_enc[:, selected])
    assert torch.equal(sae.W_enc, W_enc[:, selected])
    torch.testing.assert_close(sae.encode(x), whole[:, selected])
    assert sae(x).shape == (16, D_IN)
    sae.b_enc, b_enc = torch.nn.Parameter(sae.b_enc[selected]), sae.b_enc
    torch.testing.assert_close(sae.encode(x), whole[:, selected])
    sae.W_enc, sae.W_dec, sae.b_enc = torch.nn.Parameter(W_enc), W_dec, b_enc
    torch.testing.assert_close(sae.encode(x), whole)
    with pytest.raises(ValueError, match="no other values can replace it; it can be set to some of its own columns"):
        sae.W_enc = torch.zeros_like(W_enc)
    assert torch.equal(sae.encode(x), whole)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own tracing
@pytest.mark.parametrize(
    "name", [name if name == "temporal" else pytest.param(name, marks=pytest.mark.slow) for name in LEARNT]
)
def test_a_compiled_step_is_the_same_step(name):
    import torch._dynamo

    losses = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        sae = build(name)
        step = sae.training_forward_pass
        step = torch.compile(step, backend="eager") if is_compiled else step
        torch.manual_seed(0)
        for number in range(2):
            dead = torch.zeros(D_SAE, dtype=torch.bool)
            output = step(TrainStepInput(torch.randn(32, D_IN), {}, dead, number, False))
            output.loss.backward()
        losses.append([output.loss, *(parameter.grad for parameter in sae.parameters())])
    for plain, compiled in zip(*losses, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_sae_lens_multiple_evals_scores_a_folder_of_ours(target, tmp_path, monkeypatch, text_file):
    from datasets import Dataset
    from sae_lens import evals
    from sae_lens.saes.sae import SAE

    plan = make_plan("topk", target, tiny("topk"), tmp_path)
    train_plans([plan])
    metadata = json.loads((plan.folder / "cfg.json").read_text())["metadata"]
    assert metadata["model_from_pretrained_kwargs"] == {}
    monkeypatch.setattr(evals, "get_saes_from_regex", lambda *a: [("ours", "one", None, None)])
    monkeypatch.setattr(SAE, "from_pretrained", lambda release, sae_id, device: SAE.load_from_disk(plan.folder, device))
    text = Dataset.from_dict({"text": text_file.read_text().split("\n\n")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (result,) = evals.multiple_evals(".*", ".*", 1, 1, 4, [text], False, [32], str(tmp_path / "out"))
    assert 0 < result["metrics"]["sparsity"]["l0"] <= 4


@pytest.mark.parametrize(("name", "says"), [("topk", "Adam's ε"), ("hierarchical", "without a curriculum")])
def test_another_trainer_is_warned_once_and_its_mask_is_heeded(name, says):
    sae = sae_variants.build(name, d_in=D_IN, d_sae=D_SAE, k=4, seed=0)
    with pytest.warns(UserWarning, match=says):
        sae.get_coefficients()
    sae.get_coefficients()  # once
    dead, x = torch.zeros(D_SAE, dtype=torch.bool), torch.randn(2, D_IN)
    dead[:] = True
    aux = {"topk": "auxiliary_reconstruction_loss", "hierarchical": "upper_aux_loss"}[name]
    assert sae.training_forward_pass(TrainStepInput(x, {}, dead, 1, False)).losses[aux] > 0
    unmasked = sae.training_forward_pass(TrainStepInput(x, {}, None, 1, False)).losses
    assert not unmasked.get(aux, 0)
