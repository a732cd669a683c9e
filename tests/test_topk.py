"""topk: each piece of the recipe, the mistakes that others made with AuxK, and SAELens' own trainer."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file
from test_train import killed_at, same

import sae_variants
from sae_variants.common.errors import UsageError
from sae_variants.ops.geometric_median import geometric_median
from sae_variants.registry.build import make_config
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans
from sae_variants.training.trainer import make_trainer


def build(d_in=6, d_sae=10, **overrides):
    return sae_variants.build("topk", d_in=d_in, d_sae=d_sae, seed=0, **{"k": 2, **overrides})


def step(sae, acts, number=1):
    return sae.training_forward_pass(TrainStepInput(acts, {}, None, n_training_steps=number, is_logging_step=False))


def plan(target, root, **overrides):
    return make_plan("topk", target, {**tiny("topk"), **overrides}, root)


def test_a_loss_in_float64_is_computed_in_float64():
    sae, x = build(dtype="float64", median_start=False), torch.randn(16, 6, dtype=torch.float64)
    found = step(sae, x)
    expected = (x - found.sae_out).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert found.losses["mse_loss"].dtype == torch.float64
    assert found.losses["mse_loss"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_start():
    sae = build(d_in=32, d_sae=64)
    torch.testing.assert_close(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    x = torch.randn(50, 32).abs()
    step(sae, x, number=0)
    torch.testing.assert_close(sae.b_dec.data, geometric_median(x))
    before = sae.b_dec.data.clone()
    step(sae, x + 1, number=1)
    assert torch.equal(sae.b_dec.data, before)
    unmoved = build(median_start=False)
    step(unmoved, torch.randn(50, 6), number=0)
    assert not unmoved.b_dec.any()


def test_the_geometric_median_is_no_mean():
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [1000.0]])
    assert geometric_median(line).item() == pytest.approx(2, abs=1e-3)
    triangle = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(3) / 2], [-0.5, -math.sqrt(3) / 2]]) + 7
    torch.testing.assert_close(geometric_median(triangle), torch.tensor([7.0, 7.0]), rtol=0, atol=1e-4)


def test_the_loss_by_hand():
    sae = build(aux_loss_coefficient=0.0, median_start=False)
    x = torch.randn(20, 6)
    output = step(sae, x)
    mean_error = (x - output.sae_out).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert output.loss.item() == pytest.approx(mean_error.item(), rel=1e-5)
    assert set(output.losses) == {"mse_loss"}
    plain = step(build(aux_loss_coefficient=0.0, median_start=False, normalized_losses=False), x)
    assert plain.loss.item() == pytest.approx((x - output.sae_out).pow(2).sum(-1).mean().item(), rel=1e-5)


def test_rows_keep_unit_norm_and_gradients_leave_it():
    sae = build()
    sae.W_dec.data *= torch.linspace(0.5, 2, 10)[:, None]
    output = step(sae, torch.randn(20, 6))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(10))
    output.loss.backward()
    assert sae.W_dec.grad.any()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6
    free = build(unit_rows=False)
    free.W_dec.data *= 2
    step(free, torch.randn(20, 6)).loss.backward()
    assert (free.W_dec.grad * free.W_dec).sum(1).abs().max() > 1e-4
    torch.testing.assert_close(free.W_dec.norm(dim=1), torch.full((10,), 2.0))


def test_dead_latents_are_counted_in_tokens():
    sae = build(dead_after_tokens=100)
    sae.b_enc.data[3] = -50.0
    for number, (tokens, dead) in enumerate([(60, False), (40, False), (1, True)], start=1):
        output = step(sae, torch.randn(tokens, 6), number)
        assert bool(sae.tokens_since_fired[3] > 100) is dead
    assert sae.tokens_since_fired[3] == 101
    assert output.metrics["dead"]() >= 0.1
    sae.b_enc.data[3] = 50.0
    step(sae, torch.randn(5, 6))
    assert sae.tokens_since_fired[3] == 0


def test_settings_say_when_a_latent_is_dead(target, tmp_path):
    assert (
        make_trainer(plan(target, tmp_path), 32, "cpu").sae.cfg.dead_after_tokens == tiny("topk")["dead_after_tokens"]
    )


def naive_aux(sae, x, e, dead):
    """The auxiliary loss in plain lines: no bias in ê, e without gradient, relative to e's variance."""
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc)[:, dead]
    top = pre.topk(min(len(dead), sae.cfg.dead_latents_used), dim=-1)
    acts = torch.zeros(len(x), len(dead)).scatter(-1, top.indices, top.values.relu())
    return (e - acts @ sae.W_dec[dead]).pow(2).sum() / (e - e.mean(0)).pow(2).sum()


@pytest.mark.parametrize("k_aux", [0, 2])
def test_aux_loss_by_plain_lines(k_aux):
    sae = build(d_in=8, aux_every=1, median_start=False, k_aux=k_aux)
    sae.b_dec.data[:] = torch.linspace(-1, 1, 8)
    dead = torch.tensor([2, 5, 7])
    sae.tokens_since_fired[dead] = sae.cfg.dead_after_tokens + 1
    sae.b_enc.data[[0, 1, 3, 4, 6, 8, 9]] = 20.0  # so that these fire, and the dead ones never do
    x = torch.randn(30, 8)
    output = step(sae, x)
    e = (x - output.sae_out).detach()
    expected = naive_aux(sae, x, e, dead)
    aux = output.losses["auxiliary_reconstruction_loss"]
    assert aux.item() == pytest.approx(expected.item() / 32, rel=1e-4)  # the coefficient, once
    assert output.loss.item() == pytest.approx(output.losses["mse_loss"].item() + aux.item(), rel=1e-5)


def test_aux_loss_moves_dead_latents_only_and_not_what_it_explains():
    sae, x = build(d_in=8, aux_every=1), torch.randn(30, 8)
    sae.tokens_since_fired[:] = sae.cfg.dead_after_tokens + 1  # all are dead before this step, few fire in it
    output = step(sae, x[:2])
    output.losses["auxiliary_reconstruction_loss"].backward()
    fired = output.feature_acts.to_dense().any(0)
    assert 0 < fired.sum() < 10
    for grad in (sae.W_dec.grad, sae.W_enc.grad.T, sae.b_enc.grad[:, None]):
        assert not grad[fired].any()
        assert grad[~fired].any()


def test_dead_latents_used_follow_d_in():
    assert [build(d_in=d, d_sae=2000).cfg.dead_latents_used for d in (192, 512, 768, 4)] == [128, 256, 512, 2]
    assert build(k_aux=3).cfg.dead_latents_used == 3


def test_aux_loss_is_0_where_it_is_no_number():
    sae = build(d_in=4, aux_every=8)
    assert sae.aux_loss(torch.zeros(5, 4), torch.zeros(5, 4)).item() == 0
    sae.tokens_since_fired[:] = sae.cfg.dead_after_tokens + 1
    for tokens in (4, 1):  # fewer than aux_every
        for x in (torch.zeros(tokens, 4), torch.randn(tokens, 4)):
            output = step(sae, x, number=7)
            assert output.losses["auxiliary_reconstruction_loss"].item() == 0
            sae.zero_grad()
            output.loss.backward()
            assert all(p.grad.isfinite().all() for p in sae.parameters())
    sae.zero_grad()
    one = step(build(d_in=4, aux_every=1), torch.randn(1, 4).expand(8, 4))  # nothing to predict but the mean
    assert one.loss.item() == 0


def test_every_token_has_its_turn_in_the_aux_loss(monkeypatch):
    sae, seen = build(aux_every=4), []
    kill = sae.cfg.dead_after_tokens + 1
    monkeypatch.setattr(sae, "aux_loss", lambda e, found: seen.append(e) or e.new_zeros(()))
    x = torch.randn(10, 6)
    for number in range(1, 5):
        sae.tokens_since_fired[:] = kill
        output = step(sae, x, number)
    errors = x - output.sae_out.detach()
    found = torch.cat(seen).detach()
    assert len(found) == 10
    assert all(((found - error).abs().max(1).values < 1e-5).sum() == 1 for error in errors)


def test_multi_topk_by_hand():
    sae, x = build(multi_k=4, aux_loss_coefficient=0.0), torch.randn(20, 6)
    output = step(sae, x)
    twin = build(k=4, aux_loss_coefficient=0.0)
    twin.load_state_dict(sae.state_dict())
    assert output.losses["multi_topk_loss"].item() == pytest.approx(step(twin, x).loss.item() / 8, rel=1e-5)
    alone = build(aux_loss_coefficient=0.0)
    alone.load_state_dict(sae.state_dict())
    assert output.losses["mse_loss"].item() == pytest.approx(step(alone, x).loss.item(), rel=1e-5)
    assert (output.feature_acts.to_dense() > 0).sum(1).max() == 2
    assert torch.equal(sae.tokens_since_fired == 0, output.feature_acts.to_dense().any(0))


def test_the_average_is_saved(tmp_path):
    sae = build(ema=0.5, unit_rows=False, median_start=False)
    seen = []
    for number, value in enumerate((1.0, 2.0, 4.0)):
        step(sae, torch.randn(8, 6), number)
        sae.b_enc.data[:] = value  # what an optimiser leaves
        seen.append(value)
    for place in ("a", "b"):  # saving changes nothing
        sae.save_inference_model(tmp_path / place)
        saved = sae_variants.load(tmp_path / place)
        expected = (0.125 * 1 + 0.25 * 2 + 0.5 * 4) / (0.125 + 0.25 + 0.5)
        torch.testing.assert_close(saved.b_enc.data, torch.full((10,), expected))
    assert sae.b_enc[0].item() == 4


def test_what_is_saved_reconstructs_the_same_in_the_units_of_the_input(tmp_path):
    sae = build(d_in=32, d_sae=64, ema=0.3)
    for number in range(3):
        step(sae, torch.randn(20, 32), number)
    sae.b_enc.data[:] = torch.randn(64)
    sae.save_inference_model(tmp_path / "unscaled")
    x = torch.randn(20, 32)
    before = sae_variants.load(tmp_path / "unscaled")(3.0 * x)
    sae.fold_activation_norm_scaling_factor(3.0)
    sae.save_inference_model(tmp_path / "folded")
    saved = sae_variants.load(tmp_path / "folded")
    torch.testing.assert_close(saved(x), before / 3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(64))
    assert saved.cfg.architecture() == "topk"


def test_without_unit_rows_they_are_saved_as_they_are(tmp_path):
    sae = build(unit_rows=False)
    sae.W_dec.data *= 3
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(sae_variants.load(tmp_path).W_dec.data, sae.W_dec.data)


def test_the_input_bias_can_be_left_out():
    x, found = torch.randn(20, 6), []
    for taken_off in (True, False):
        sae = build(apply_b_dec_to_input=taken_off, median_start=False)
        sae.b_dec.data[:] = 2.0
        found.append(step(sae, x).feature_acts.to_dense())
        torch.testing.assert_close(found[-1], sae.encode(x))
    assert not torch.allclose(*found)


def test_weights_that_are_trained_on_keep_their_bias():
    sae = build()
    sae.b_dec.data[:] = 7.0
    step(sae, torch.randn(20, 6), number=0)
    assert sae.b_dec.unique().item() == 7


def test_latents_of_a_step_are_those_of_the_saved_one(tmp_path):
    sae = build(d_in=32, d_sae=64)
    x = torch.randn(20, 32)
    output = step(sae, x)
    sae.save_inference_model(tmp_path)
    saved = sae_variants.load(tmp_path)
    torch.testing.assert_close(output.feature_acts.to_dense(), saved.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.sae_out, saved(x), rtol=1e-5, atol=1e-5)
    deep = step(sae, x.view(4, 5, 32))
    assert deep.feature_acts.shape == (4, 5, 64)
    torch.testing.assert_close(deep.sae_out.flatten(0, 1), output.sae_out)


def test_adam_and_the_learning_rate(target, tmp_path):
    trainer = make_trainer(plan(target, tmp_path, d_sae=64, learning_rate_width=16, learning_rate_power=0.5), 32, "cpu")
    assert trainer.optimizer.param_groups[0]["eps"] == 6.25e-10
    assert trainer.optimizer.param_groups[0]["fused"]
    assert trainer.sae.learning_rate_scale(0) == pytest.approx(0.5)
    assert build(learning_rate_power=0.0).learning_rate_scale(0) == 1


def test_fused_adam_moves_weights_as_the_plain_one(target, tmp_path):
    found = []
    for fused in (True, False):
        trainer = make_trainer(plan(target, tmp_path), 32, "cpu")
        trainer.optimizer.param_groups[0]["fused"] = fused
        for number in range(5):
            torch.manual_seed(number)
            trainer.step(torch.randn(64, 32))
            trainer.n_training_steps += 1
        found.append(trainer.sae.state_dict())
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def test_an_average_survives_a_kill(target, tmp_path, monkeypatch):
    whole, broken = (plan(target, tmp_path / place, ema=0.9, multi_k=8) for place in ("whole", "broken"))
    train_plans([whole])
    killed_at(monkeypatch, 19, [broken], checkpoint_steps=2)
    train_plans([broken], checkpoint_steps=2)
    assert same(*(load_file(made.folder / "sae_weights.safetensors") for made in (whole, broken)))


def test_sae_lens_trains_it(tmp_path):
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = build(d_in=8, d_sae=16, normalize_activations="expected_average_only_in")
    torch.manual_seed(0)
    basis = torch.randn(3, 8)
    batches = iter(torch.randn(64, 3).relu() @ basis for _ in range(10_000))
    cfg = SAETrainerConfig(
        total_training_samples=64 * 200, train_batch_size_samples=64, lr=1e-2, lr_end=1e-3, lr_warm_up_steps=0,
        lr_decay_steps=0, device="cpu", autocast=False, dead_feature_window=10, feature_sampling_window=50,
        logger=LoggingConfig(log_to_wandb=False), n_checkpoints=1, checkpoint_path=str(tmp_path),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="the learning rate is not scaled by the width"):
        trainer = SAETrainer(cfg, sae, batches)
    trained = trainer.fit()
    trained.save_inference_model(tmp_path / "saved")
    saved, x = sae_variants.load(tmp_path / "saved"), torch.randn(500, 3).relu() @ basis
    with torch.no_grad():
        explained = 1 - (saved(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert explained > 0.9


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm must be false"),
        ({"use_sparse_activations": True}, "use_sparse_activations must be false"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations must be none or"),
        ({"multi_k": 2}, "multi_k must be 0, or above k"),
        ({"multi_k": 11}, "multi_k must be 0, or above k"),
        ({"aux_every": 0}, "aux_every must be at least 1"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1; it is 1.0"),
        ({"learning_rate_power": -1.0}, "learning_rate_power must not be negative"),
        ({"decoder_init_norm": 0.1}, "decoder_init_norm must be 1"),
        ({"k": 11}, "k must be above 0 and at most"),
    ],
)
def test_what_cannot_be_is_refused(fields, says):
    with pytest.raises(UsageError, match=says):
        build(**fields)


@pytest.mark.parametrize("normalized_losses", [True, False])
def test_the_aux_loss_of_many_dead_latents_is_that_of_few(monkeypatch, normalized_losses):
    import sae_variants.topk as topk

    found = []
    for many in (10**6, 0):
        monkeypatch.setattr(topk, "MANY", many)
        sae = build(d_in=8, d_sae=64, k=2, k_aux=4, aux_every=2, normalized_losses=normalized_losses)
        sae.b_enc.data[:40] = -1.0
        sae.tokens_since_fired[:40] = sae.cfg.dead_after_tokens + 1
        output = step(sae, torch.randn(30, 8, generator=torch.Generator().manual_seed(1)))
        output.loss.backward()
        assert 0 < (sae.tokens_since_fired[:40] == 0).sum() < 40, "some fire in this step"
        assert output.losses["auxiliary_reconstruction_loss"] > 0
        found.append([output.loss, *(parameter.grad for parameter in sae.parameters())])
    for few, many in zip(*found, strict=True):
        torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-6)


def test_dead_latents_that_all_fire_leave_the_aux_loss_without_reconstruction(monkeypatch):
    import sae_variants.topk as topk

    monkeypatch.setattr(topk, "MANY", 0)
    sae = build(d_in=8, k_aux=4)
    sae.tokens_since_fired[:1] = sae.cfg.dead_after_tokens + 1
    sae.b_enc.data[0] = 100.0
    output = step(sae, torch.randn(30, 8))
    assert output.losses["auxiliary_reconstruction_loss"].item() > 0
    output.loss.backward()


def test_the_memory_of_a_step_is_counted():
    """By hand: 256 rows of pre-activations or copies of both matrices, 64 bytes a latent, 15 copies of the batch."""
    narrow = make_config("topk", d_in=16, d_sae=1000)
    freed = 3 * 4 * 16 * 1000  # three matrices below 32 MiB stay
    assert narrow.step_bytes(512, "cpu") == 4 * 256 * 1000 + 64 * 1000 + 4 * 15 * 512 * 16 + freed + 30_000_000
    wide = make_config("topk", d_in=1024, d_sae=10_000)
    assert wide.step_bytes(100, "cpu") == 8 * 1024 * 10_000 + 64 * 10_000 + 4 * 15 * 100 * 1024 + 30_000_000


def test_a_training_that_does_not_fit_in_memory_is_refused(target, tmp_path, monkeypatch):
    import sae_variants.training.sharing as sharing

    monkeypatch.setattr(sharing, "free_memory", lambda device: 1e6)
    given = plan(target, tmp_path, d_sae=65536)
    with pytest.raises(UsageError, match=r"d_sae = 65536 and d_in = \d+ needs .* GB, and 0.0 GB of memory are free"):
        train_plans([given])
    assert not given.checkpoint.exists()
