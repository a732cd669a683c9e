"""Oracles: a latent that writes one logit, and one that writes all of them."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import evaluate, identity

from eval_runners.measures.ablation import in_float32
from eval_runners.measures.logit_sparsity import change_sparsity, change_sparsity_per_token, logit_sparsities
from eval_runners.measures.sampled_latents import SampledLatents
from sae_variants.common.errors import UsageError
from sae_variants.language_model.load import load_model

SMALL = {"n_contexts": 16, "context_size": 32, "tokens_after": 4, "n_latents": 4, "places": 2}


def test_sparsity_of_hand_written_changes():
    change = torch.zeros(1, 2, 50)
    change[0, 0, 7] = -3.0
    assert change_sparsity(change) == pytest.approx(1 / 100)  # one logit of one of two tokens
    assert change_sparsity(change + 2.5) == pytest.approx(1 / 100)  # a change of all logits is no change
    change[0, 1, 9] = 3.0
    assert change_sparsity(change) == pytest.approx(2 / 100)
    change[0, 1, 9] = 1.0
    assert change_sparsity(change) == pytest.approx((3 + 1) ** 2 / (9 + 1) / 100)
    assert change_sparsity(torch.tensor([[[-1.0, 0.0, 1.0]]])) == pytest.approx(2 / 3)
    two = torch.zeros(2, 2, 50)
    two[0, 0, 0] = two[1, 0, :4] = 1.0
    assert change_sparsity(two) == pytest.approx((1 + 4) / 2 / 100)
    assert change_sparsity(torch.zeros(1, 2, 50)) != change_sparsity(torch.zeros(1, 2, 50))  # NaN: nothing changes


def test_sparsity_per_token_does_not_depend_on_how_many_tokens_change():
    dense = torch.zeros(1, 16, 51)
    dense[0, 3, :25], dense[0, 3, 25:50] = -1.0, 1.0  # all logits of one token change by as much, up and down
    assert change_sparsity(dense) == pytest.approx(50 / 51 / 16)  # the published measure takes it for sparse
    assert change_sparsity_per_token(dense) == pytest.approx(50 / 51)
    dense[0, 5, 7] = 10.0  # weighted by the squared size of the change: (50² + 10²) / (50 + 10²) / 51
    assert change_sparsity_per_token(dense) == pytest.approx((50**2 + 10**2) / (50 + 100) / 51)
    assert math.isnan(change_sparsity_per_token(torch.zeros(1, 2, 50)))


def test_a_latent_that_writes_one_logit_and_one_that_writes_half_of_them(target, model):
    """The hook of the last layer, whose output is unembedded: directions that only certain tokens read."""
    V, D = model.cfg.d_vocab, model.cfg.d_model
    sae = identity(target)
    unembed, ln_final = model.unembed.W_U.data.clone(), model.ln_final
    model.ln_final = torch.nn.Identity()
    try:
        model.unembed.W_U.data.zero_()
        model.unembed.W_U.data[0, 5] = 1.0  # direction 0 is read by token 5
        model.unembed.W_U.data[1, : V // 4] = 1.0  # direction 1 by a quarter of the tokens
        sae.W_dec.data[:2] = torch.eye(D)[:2]
        ids = torch.randint(5, V, (6, 20))
        sampled = SampledLatents(ids, [0, 1], torch.rand(6, 20, 2) + 0.1, torch.zeros(6, 20).bool())
        hook_name = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        rows = logit_sparsities(sae, hook_name, model, sampled, tokens_after=4, per_latent=4, seed=0)
    finally:
        model.unembed.W_U.data[:] = unembed
        model.ln_final = ln_final
    assert rows[0]["latents"] == pytest.approx(1 / (4 * V), rel=1e-4)
    assert rows[1]["latents"] == pytest.approx((V // 4) / (4 * V), rel=1e-3)
    assert rows[0]["activation"] >= 0.1


def test_random_directions_change_more_logits_than_one(target, model):
    evaluation = evaluate("ablation_sparsity", identity(target), target, model, **SMALL)
    values = evaluation.metrics
    assert 0.01 < values["random"]["sparsity"] < 1
    assert values["latents"]["sparsity_low"] <= values["latents"]["sparsity"] <= values["latents"]["sparsity_high"]
    assert len(evaluation.unstructured["by_latent"]) == values["latents"]["count"] == 4


def test_tokens_whose_document_ends_within_the_compared_tokens_are_not_used(target, model):
    ids, special = torch.randint(5, model.cfg.d_vocab, (4, 12)), torch.zeros(4, 12).bool()
    special[:, 5] = True  # of four tokens each, those that begin at 0, 1, 6, 7 and 8 have none
    acts = torch.zeros(4, 12, 1)
    acts[:, 2:6] = 1.0
    sae, sampled = identity(target), SampledLatents(ids, [0], acts, special)
    assert logit_sparsities(sae, target.hook_name, model, sampled, tokens_after=4, per_latent=4, seed=0) == []
    acts[:, 7] = 1.0
    assert len(logit_sparsities(sae, target.hook_name, model, sampled, tokens_after=4, per_latent=4, seed=0)) == 1


def test_small_effects_are_not_rounded_away_in_bfloat16(target):
    model = load_model(target.model_name, "cpu", "bfloat16")
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    with in_float32(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model(torch.tensor([[1, 2]])).dtype == torch.float32
    assert model.cfg.dtype == torch.bfloat16
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    evaluation = evaluate("ablation_sparsity", identity(target), target, model, **SMALL)
    assert evaluation.metrics["latents"]["sparsity"] > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_after": 32, "context_size": 32}, "--tokens-after 32 must be below --context-size 32"),
        ({"n_contexts": 3, "places": 2}, "--n-contexts 3 must be at least twice --places 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(target, model, settings, message):
    with pytest.raises(UsageError, match=message):
        evaluate("ablation_sparsity", identity(target), target, model, prepare=True, **settings)
