"""Oracles: upper latents that are sums of their children, of independent latents, and without children."""

from __future__ import annotations

import pytest
import torch
from conftest import evaluate, identity
from test_hierarchy import tree

from eval_runners.measures.composition import explain_upper_latents, held_out_r2
from sae_variants.common.errors import UsageError


def halves(d: int = 32, n: int = 4000):
    torch.manual_seed(0)
    return [torch.randn(n, d).relu() for _ in range(2)]


def explain(sae, halves, n_min: int = 10, most: int = 1024):
    return explain_upper_latents(sae, halves, ks=(1, 3, 5), n_min=n_min, most=most, seed=0)


def test_a_sum_of_its_children_is_explained_by_them(target):
    sae = tree(target)  # upper latent j is half the sum of lower latents 2j and 2j + 1, which are independent and alike
    values = explain(sae, halves())
    assert values["children.r2_1"] == pytest.approx(0.5, abs=0.03)
    assert values["children.r2_3"] == values["children.r2_5"] == pytest.approx(1, abs=1e-6)
    assert values["another.r2_5"] == pytest.approx(0, abs=0.01)
    assert values["any.r2_5"] == pytest.approx(1, abs=1e-6)
    assert values["children.cosine"] == pytest.approx(1)
    assert (values["children.size"], values["children.childless"], values["children.latents"]) == (2, 0, 16)


def test_an_upper_latent_without_children_counts_as_unheld_out_r2(target):
    sae = tree(target)
    digits = sae.parent_digits_3L.data
    digits[0, 2:4] = 0.0  # the children of latent 1 become those of latent 0
    values = explain(sae, halves())
    assert values["children.childless"] == pytest.approx(1 / 16)
    assert values["children.r2_5"] == pytest.approx(15 / 16, abs=1e-3)
    assert values["children.size"] == pytest.approx(32 / 15)
    # latent 0 does not write to its new children
    assert values["children.cosine"] == pytest.approx(15 / 16)


def test_least_squares_by_hand():
    f, g = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 5.0, 7.0])
    z = torch.stack([torch.ones(4), f, g], 1).double()
    products = (z.T @ z)[None]
    torch.testing.assert_close(held_out_r2(products, products, 1), torch.ones(1).double())
    noisy = torch.stack([torch.ones(4), f, torch.tensor([1.0, 3.0, 5.0, 9.0])], 1).double()
    # the line 1 + 2 f misses the last by 2; the mean is 4.5, the variation 3.5² + 1.5² + 0.5² + 4.5² = 35
    torch.testing.assert_close(held_out_r2(products, (noisy.T @ noisy)[None], 1), torch.tensor([1 - 4 / 35]).double())


def test_all_lower_latents_are_used_where_there_are_fewer():
    z = torch.stack([torch.ones(50), torch.rand(50), torch.rand(50)], 1).double()
    products = (z.T @ z)[None]  # one lower latent
    assert torch.equal(held_out_r2(products, products, 5), held_out_r2(products, products, 1))
    assert held_out_r2(products, products, 5) < 0.5


def test_a_child_that_never_fires_does_not_count(target):
    sae = tree(target)
    sae.threshold_lower.data[0] = 1e9
    values = explain(sae, halves())
    assert values["children.size"] == pytest.approx(31 / 16)


def test_latents_are_sampled_where_there_are_many(target):
    sae = tree(target)
    assert explain(sae, halves(), most=5)["children.latents"] == 5


def test_latents_that_fire_too_rarely_are_left_out(target):
    sae = tree(target)
    low, high = halves()
    values = explain(sae, [low, high], n_min=1)
    often = int((sae.encode(high) > 0).sum(0).max())
    assert values["children.latents"] == 16
    assert explain(sae, [low, high], n_min=often + 1)["children.latents"] == 0


def test_the_half_to_score_on_is_not_fitted(target):
    torch.manual_seed(0)
    few, many = torch.randn(12, 32).relu(), torch.randn(4000, 32).relu()
    values = explain(tree(target), [few, many], n_min=1)
    assert values["another.r2_5"] < -0.02  # independent latents only seem to explain 12 tokens


def test_no_document_stands_in_both_halves(target, model, monkeypatch):
    """Ten contexts of four tokens; the document that begins in the fourth ends in the sixth."""
    from eval_runners import composition
    from eval_runners.data import heldout

    x_CTD = torch.arange(40.0).view(10, 4, 1)
    special_CT = torch.zeros(10, 4, dtype=torch.bool)
    special_CT[3, 1] = special_CT[6, 2] = special_CT[8, 0] = True
    batches = [(x_CTD[:4], special_CT[:4]), (x_CTD[4:], special_CT[4:])]
    monkeypatch.setattr(heldout, "heldout_activations", lambda *_: iter(batches))
    first, second = composition._split_contexts(target, model, composition.Settings())
    assert first.flatten().tolist() == [i for i in range(20) if i != 13]
    assert second.flatten().tolist() == [i for i in range(27, 40) if i != 32]
    special_CT[5:] = False  # one document to the end: its rest is all there is to score on
    _, second = composition._split_contexts(target, model, composition.Settings())
    assert second.flatten().tolist() == list(range(20, 40))


def test_an_sae_of_one_level_is_refused(target, model):
    with pytest.raises(UsageError, match="two levels"):
        evaluate("composition", identity(target), target, model)


def test_fitting_and_scoring_need_a_context_each(target, model):
    with pytest.raises(UsageError, match="--n-contexts"):
        evaluate("composition", tree(target), target, model, n_contexts=1, context_size=16)
