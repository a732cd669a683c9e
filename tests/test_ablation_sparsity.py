"""Oracles: a latent that writes one logit, and one that writes all of them."""

from __future__ import annotations

import pytest
import torch
from conftest import identity

from eval_runners import ablation_sparsity
from eval_runners.ablation_sparsity import EvalConfig, sparsity, traced
from eval_runners.measures.ablation import in_float32
from eval_runners.measures.sampled_latents import SampledLatents
from sae_variants.language_model.load import load_model


def test_by_hand():
    change = torch.zeros(1, 2, 50)
    change[0, 0, 7] = -3.0
    assert sparsity(change) == pytest.approx(1 / 100)  # one logit of one of two tokens
    assert sparsity(change + 2.5) == pytest.approx(1 / 100)  # what all have is no change
    change[0, 1, 9] = 3.0
    assert sparsity(change) == pytest.approx(2 / 100)
    change[0, 1, 9] = 1.0
    assert sparsity(change) == pytest.approx((3 + 1) ** 2 / (9 + 1) / 100)
    assert sparsity(torch.tensor([[[-1.0, 0.0, 1.0]]])) == pytest.approx(2 / 3)
    two = torch.zeros(2, 2, 50)
    two[0, 0, 0] = two[1, 0, :4] = 1.0
    assert sparsity(two) == pytest.approx((1 + 4) / 2 / 100)
    assert sparsity(torch.zeros(1, 2, 50)) != sparsity(torch.zeros(1, 2, 50))  # NaN: nothing changes


def test_a_latent_that_writes_one_logit_and_one_that_writes_half_of_them(target, model):
    """The hook of the last layer, whose output is unembedded: rows that only certain words read."""
    V, D = model.cfg.d_vocab, model.cfg.d_model
    sae = identity(target)
    unembed, ln_final = model.unembed.W_U.data.clone(), model.ln_final
    model.ln_final = torch.nn.Identity()
    try:
        model.unembed.W_U.data.zero_()
        model.unembed.W_U.data[0, 5] = 1.0  # direction 0 is read by word 5
        model.unembed.W_U.data[1, : V // 4] = 1.0  # direction 1 by a quarter of the words
        sae.W_dec.data[:2] = torch.eye(D)[:2]
        ids = torch.randint(5, V, (6, 20))
        found = SampledLatents(ids, [0, 1], torch.rand(6, 20, 2) + 0.1, torch.zeros(6, 20).bool())
        rows = traced(sae, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", model, found, EvalConfig(tokens_after=4))
    finally:
        model.unembed.W_U.data[:] = unembed
        model.ln_final = ln_final
    assert rows[0]["latents"] == pytest.approx(1 / (4 * V), rel=1e-4)
    assert rows[1]["latents"] == pytest.approx((V // 4) / (4 * V), rel=1e-3)
    assert rows[0]["activation"] >= 0.1


def test_random_directions_change_more_logits_than_one(target, model):
    config = EvalConfig(n_contexts=16, context_size=32, tokens_after=4, n_latents=4, places=2)
    evaluation = ablation_sparsity.evaluate(identity(target), target, config, model=model, device="cpu")
    values = evaluation.output["eval_result_metrics"]
    assert 0.01 < values["random"]["sparsity"] < 1
    assert values["latents"]["sparsity_low"] <= values["latents"]["sparsity"] <= values["latents"]["sparsity_high"]
    assert len(evaluation.ours["by_latent"]) == values["latents"]["count"] == 4


def test_documents_that_end_within_the_tokens_compared_are_left_out(target, model):
    ids, special = torch.randint(5, model.cfg.d_vocab, (4, 12)), torch.zeros(4, 12).bool()
    special[:, 5] = True  # of four tokens each, those that begin at 0, 1, 6, 7 and 8 have none
    acts = torch.zeros(4, 12, 1)
    acts[:, 2:6] = 1.0
    config = EvalConfig(tokens_after=4)
    assert traced(identity(target), target.hook_name, model, SampledLatents(ids, [0], acts, special), config) == []
    acts[:, 7] = 1.0
    assert len(traced(identity(target), target.hook_name, model, SampledLatents(ids, [0], acts, special), config)) == 1


def test_small_effects_are_not_rounded_away_in_bfloat16(target):
    model = load_model(target.model_name, "cpu", "bfloat16")
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    with in_float32(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model(torch.tensor([[1, 2]])).dtype == torch.float32
    assert model.cfg.dtype == torch.bfloat16
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    small = EvalConfig(n_contexts=16, context_size=32, tokens_after=4, n_latents=4, places=2)
    found = ablation_sparsity.evaluate(identity(target), target, small, model=model, device="cpu")
    assert found.output["eval_result_metrics"]["latents"]["sparsity"] > 0.01
