"""Oracles: latents that separate a task, in part or fully, have the loss that information theory gives."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from eval_runners.measures.single_latent_probe import best_probe, cross_entropy, fit_probes


def fires(share_of_class: float, share_of_others: float, n: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """A latent that fires on these shares of n documents of the class and of n others, and their labels."""
    members, others = torch.zeros(n), torch.zeros(n)
    members[: round(share_of_class * n)] = others[: round(share_of_others * n)] = 1.7
    return torch.cat([members, others])[:, None], torch.cat([torch.ones(n), torch.zeros(n)])


def entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


@pytest.mark.parametrize(("p", "q"), [(0.8, 0.3), (0.5, 0.1), (0.95, 0.6), (0.4, 0.4)])
def test_the_loss_is_the_conditional_entropy_of_the_class(p, q):
    x, y = fires(p, q)
    probe = best_probe(x, y, x, y, ridge=1e-9)
    fired, silent = (p + q) / 2, 1 - (p + q) / 2
    left = fired * entropy(p / (p + q)) + silent * entropy((1 - p) / (2 - p - q))
    assert probe.loss == probe.train_loss == pytest.approx(left, abs=1e-4)


def test_a_perfect_latent_has_the_loss_that_the_ridge_leaves():
    x, y = fires(1.0, 0.0)  # of unit variance it is 1 and -1
    least = minimize_scalar(lambda w: math.log1p(math.exp(-w)) + 1e-3 / 2 * w**2)
    assert best_probe(x, y, x, y, ridge=1e-3).loss == pytest.approx(math.log1p(math.exp(-least.x)), rel=1e-3)
    assert best_probe(x, y, x, y, ridge=1e-6).loss < 1e-4


def test_the_probe_is_chosen_on_training_documents_and_tested_on_others():
    torch.manual_seed(0)
    good, y = fires(0.8, 0.3)
    x = torch.cat([torch.rand(2000, 5), good, torch.zeros(2000, 1)], 1)
    probe = best_probe(x, y, torch.rand(40, 7), torch.arange(40).remainder(2).float(), ridge=1e-3)
    assert probe.latent == 5
    assert probe.loss > 0.6 > probe.train_loss
    silent = best_probe(torch.zeros(10, 3), y[:10], torch.zeros(10, 3), y[:10], ridge=1e-3)
    assert silent.latent is None


def test_probes_equal_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    x = torch.randn(300, 4).double()
    y = (x[:, 1] + torch.randn(300) > 0.3).double()
    weights, biases = fit_probes(x, y, ridge=1e-2)
    for column in range(4):
        theirs = LogisticRegression(C=1 / (300 * 1e-2), tol=1e-8).fit(x[:, column : column + 1].numpy(), y.numpy())
        assert weights[column].item() == pytest.approx(theirs.coef_[0, 0], abs=1e-4)
        assert biases[column].item() == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_cross_entropy_by_hand():
    logits, y = torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 0.0])
    assert cross_entropy(logits, y).item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2)
