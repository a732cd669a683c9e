"""Oracles: an SAE that changes nothing costs nothing; one that writes the mean costs what the mean costs."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import evaluate, identity

from eval_runners.data.heldout import heldout_tokens, special_mask
from eval_runners.downstream_loss import DownstreamLoss, Settings
from eval_runners.measures.compute_curve import compute_share, read_curve
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import hook_activations


def metrics(sae, target, model, curve=""):
    evaluation = evaluate("downstream_loss", sae, target, model, n_contexts=8, context_size=32, curve=curve)
    return evaluation.metrics, evaluation.failures


def test_a_perfect_reconstruction_costs_nothing(target, model):
    found, failures = metrics(identity(target), target, model)
    assert found["sae"]["ce_increase"] == pytest.approx(0, abs=1e-4)
    assert found["sae"]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["mean"]["kl"] > 0.01
    assert failures == []


def test_the_clean_run_is_the_language_models_run(target, model):
    ids = heldout_tokens(target, model, 8, 32)
    special = special_mask(ids, model)
    with torch.no_grad():
        log_probs = model(ids, return_type="logits", prepend_bos=False).log_softmax(-1)[:, :-1]
    losses = -log_probs.gather(-1, ids[:, 1:, None])[..., 0]
    expected = losses[~special[:, 1:] & ~special[:, :-1]].mean().item()
    assert metrics(identity(target), target, model)[0]["model"]["ce"] == pytest.approx(expected, rel=1e-5)


def test_an_sae_that_writes_the_mean_costs_what_the_mean_costs(target, model):
    sae, ids = identity(target), heldout_tokens(target, model, 8, 32)
    x = hook_activations(model, target.hook_name)(ids)[~special_mask(ids, model)]
    sae.W_dec.data.zero_()
    sae.b_dec.data[:] = x.mean(0)
    found, failures = metrics(sae, target, model)
    assert found["sae"]["ce_increase"] == pytest.approx(found["mean"]["ce_increase"], abs=1e-4)
    assert failures == ["predictions are no nearer to the clean ones than with the mean activation"] or failures == []
    assert found["sae"]["kl"] == pytest.approx(found["mean"]["kl"], rel=1e-3)


def curve_file(folder, rows):
    path = folder / "curve.csv"
    path.write_text("compute,loss\n" + "".join(f"{compute},{loss}\n" for compute, loss in rows))
    return str(path)


def test_the_compute_that_a_loss_is_worth_on_a_power_law(tmp_path):
    rows = [(10.0**i, 5.0 * 10.0 ** (-0.05 * i)) for i in range(8)]  # loss falls as compute to the power of -0.05
    curve = read_curve(curve_file(tmp_path, rows))
    assert compute_share(curve, 3.0, 3.0) == pytest.approx(1)
    assert compute_share(curve, 3.0, 3.3) == pytest.approx((3 / 3.3) ** 20, rel=1e-6)
    assert compute_share(curve, 3.0, 6.0) is None  # worse than the smallest training


def test_a_curve_gives_the_compute_share(target, model, tmp_path):
    clean = metrics(identity(target), target, model)[0]["model"]["ce"]
    path = curve_file(tmp_path, [(1, clean + 1), (100, clean - 1)])
    assert DownstreamLoss().prepare(target, Settings(curve=path))[1].keys() == {"curve"}
    found, _ = metrics(identity(target), target, model, path)
    assert found["sae"]["compute_share"] == pytest.approx(1, abs=1e-3)
    assert math.isfinite(found["sae"]["compute_share"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [([(1, 2)], "two points"), ([(1, 2), (2, 3)], "must fall"), ([(1, 2), (0, 3)], "positive numbers")],
)
def test_a_curve_that_does_not_fall_is_refused(tmp_path, rows, message):
    with pytest.raises(UsageError, match=message):
        read_curve(curve_file(tmp_path, rows))


def test_the_divergence_is_from_the_clean_run_and_special_tokens_keep_their_activations(target, model):
    ids = heldout_tokens(target, model, 8, 32)
    special = special_mask(ids, model)
    mean = hook_activations(model, target.hook_name)(ids)[~special].mean(0)
    hooks = [(target.hook_name, lambda acts, hook: torch.where(special[..., None], acts, mean))]
    with torch.no_grad():
        clean = model(ids, prepend_bos=False).log_softmax(-1)[:, :-1]
        other = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False).log_softmax(-1)[:, :-1]
    predicted = ~special[:, :-1] & ~special[:, 1:]
    expected = (clean.exp() * (clean - other)).sum(-1)[predicted].mean().item()
    reverse = (other.exp() * (other - clean)).sum(-1)[predicted].mean().item()
    found = metrics(identity(target), target, model)[0]["mean"]["kl"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(expected - reverse) > 0.01 * expected
