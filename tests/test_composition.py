"""Oracles: upper latents that are sums of their children, of independent ones, and of nobody's."""

from __future__ import annotations

import pytest
import torch
from conftest import identity
from test_hierarchy import tree

from eval_runners import composition
from eval_runners.composition import EvalConfig, composed, explained
from sae_variants.common.errors import UsageError
from sae_variants.two_level.saved import lower_level_of


def halves(d: int = 32, n: int = 4000):
    torch.manual_seed(0)
    return [torch.randn(n, d).relu() for _ in range(2)]


def test_a_sum_of_its_children_is_explained_by_them(target):
    sae = tree(target)  # upper latent j is half the sum of lower latents 2j and 2j + 1, which are independent and alike
    found = composed(sae, lower_level_of(sae), halves(), EvalConfig())
    assert found["children"]["r2_1"] == pytest.approx(0.5, abs=0.03)
    assert found["children"]["r2_3"] == found["children"]["r2_5"] == pytest.approx(1, abs=1e-6)
    assert found["another"]["r2_5"] == pytest.approx(0, abs=0.01)
    assert found["any"]["r2_5"] == pytest.approx(1, abs=1e-6)
    assert found["children"]["cosine"] == pytest.approx(1)
    assert (found["children"]["size"], found["children"]["childless"], found["children"]["latents"]) == (2, 0, 16)


def test_an_upper_latent_without_children_counts_as_unexplained(target):
    sae = tree(target)
    digits = sae.parent_digits_3L.data
    digits[0, 2:4] = 0.0  # the children of latent 1 become those of latent 0
    found = composed(sae, lower_level_of(sae), halves(), EvalConfig())
    assert found["children"]["childless"] == pytest.approx(1 / 16)
    assert found["children"]["r2_5"] == pytest.approx(15 / 16, abs=1e-3)
    assert found["children"]["size"] == pytest.approx(32 / 15)
    # latent 0 does not write to its new children
    assert found["children"]["cosine"] == pytest.approx(15 / 16)


def test_least_squares_by_hand():
    f, g = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 5.0, 7.0])
    z = torch.stack([torch.ones(4), f, g], 1).double()
    products = (z.T @ z)[None]
    torch.testing.assert_close(explained(products, products, 1), torch.ones(1).double())
    noisy = torch.stack([torch.ones(4), f, torch.tensor([1.0, 3.0, 5.0, 9.0])], 1).double()
    # the line 1 + 2 f misses the last by 2; the mean is 4.5, the variation 3.5² + 1.5² + 0.5² + 4.5² = 35
    torch.testing.assert_close(explained(products, (noisy.T @ noisy)[None], 1), torch.tensor([1 - 4 / 35]).double())


def test_fewer_lower_latents_than_asked_for_are_all_there_are():
    z = torch.stack([torch.ones(50), torch.rand(50), torch.rand(50)], 1).double()
    products = (z.T @ z)[None]  # one lower latent
    assert torch.equal(explained(products, products, 5), explained(products, products, 1))
    assert explained(products, products, 5) < 0.5


def test_a_child_that_never_fires_is_none(target):
    sae = tree(target)
    sae.threshold_lower.data[0] = 1e9
    found = composed(sae, lower_level_of(sae), halves(), EvalConfig())
    assert found["children"]["size"] == pytest.approx(31 / 16)


def test_at_most_so_many_latents_are_looked_at(target):
    sae = tree(target)
    assert composed(sae, lower_level_of(sae), halves(), EvalConfig(most=5))["children"]["latents"] == 5


def test_latents_that_fire_too_rarely_are_left_out(target):
    sae = tree(target)
    low, high = halves()
    found = composed(sae, lower_level_of(sae), [low, high], EvalConfig(n_min=1))
    often = int((sae.encode(high) > 0).sum(0).max())
    assert found["children"]["latents"] == 16
    assert composed(sae, lower_level_of(sae), [low, high], EvalConfig(n_min=often + 1))["children"]["latents"] == 0


def test_what_is_scored_is_not_what_was_fitted(target):
    torch.manual_seed(0)
    few, many = torch.randn(12, 32).relu(), torch.randn(4000, 32).relu()
    found = composed(tree(target), lower_level_of(tree(target)), [few, many], EvalConfig(n_min=1))
    assert found["another"]["r2_5"] < -0.02  # what two independent latents seem to explain of 12 tokens is not there


def test_an_sae_of_one_level_is_refused(target, model):
    with pytest.raises(UsageError, match="two levels"):
        composition.evaluate(identity(target), target, EvalConfig(), model=model, device="cpu")
