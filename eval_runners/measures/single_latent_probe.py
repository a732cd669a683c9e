"""Logistic probes on one latent each, all fitted at once by Newton's method.

Source: Gao et al., arXiv 2406.04093, section 4.2.
Shapes: N training documents, M test documents, S latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

MAX_STEPS = 30
"""Largest number of Newton steps."""
MAX_CHANGE = 2.0
"""Largest change of a weight or bias in a step: far from the optimum the curvature is too small."""
CONVERGED = 1e-6
"""Steps end when no weight or bias changes by more."""


@dataclass(frozen=True)
class BestProbe:
    """The probe with the smallest training loss."""

    latent: int | None
    """The latent it reads. None if that latent has the same activation on all training documents."""
    train_loss: float
    """Mean cross-entropy on the training documents, nats."""
    loss: float
    """Mean cross-entropy on the test documents, nats."""


def best_probe(x_NS: Tensor, y_N: Tensor, test_x_MS: Tensor, test_y_M: Tensor, ridge: float) -> BestProbe:
    """Fit a probe on each latent, standardized, and test the one with the smallest training loss.

    Args:
        x_NS: latents of the training documents.
        y_N: 1 for training documents of the class, 0 for others.
        test_x_MS: latents of the test documents.
        test_y_M: 1 for test documents of the class, 0 for others.
        ridge: weight of the penalty, which is ridge / 2 · weight².
    """
    mean_S, spread_S = x_NS.mean(0), x_NS.std(0, correction=0)
    scale_S = spread_S.clamp(min=1e-12)
    weight_S, bias_S = fit_probes((x_NS - mean_S) / scale_S, y_N, ridge)
    losses_S = cross_entropy((x_NS - mean_S) / scale_S * weight_S + bias_S, y_N)
    latent = int(losses_S.argmin())
    test_logit_M = (test_x_MS[:, latent] - mean_S[latent]) / scale_S[latent] * weight_S[latent] + bias_S[latent]
    return BestProbe(
        latent=latent if spread_S[latent] > 0 else None,
        train_loss=losses_S[latent].item(),
        loss=cross_entropy(test_logit_M[:, None], test_y_M).item(),
    )


def fit_probes(x_NS: Tensor, y_N: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Fit a logistic probe on each column alone, minimizing cross-entropy + ridge / 2 · weight².

    Returns:
        Weights [S] and biases [S].
    """
    weight_S, bias_S = torch.zeros(2, x_NS.shape[1], dtype=x_NS.dtype, device=x_NS.device)
    for _ in range(MAX_STEPS):
        p_NS = (x_NS * weight_S + bias_S).sigmoid()
        error_NS = p_NS - y_N[:, None]
        weight_grad_S, bias_grad_S = (error_NS * x_NS).mean(0) + ridge * weight_S, error_NS.mean(0)
        curvature_NS = p_NS * (1 - p_NS)
        ww_S = (curvature_NS * x_NS.square()).mean(0) + ridge
        wb_S, bb_S = (curvature_NS * x_NS).mean(0), curvature_NS.mean(0) + 1e-9
        determinant_S = (ww_S * bb_S - wb_S.square()).clamp(min=1e-12)
        step_2S = torch.stack([bb_S * weight_grad_S - wb_S * bias_grad_S, ww_S * bias_grad_S - wb_S * weight_grad_S])
        step_2S = (step_2S / determinant_S).clamp(-MAX_CHANGE, MAX_CHANGE)
        weight_S, bias_S = weight_S - step_2S[0], bias_S - step_2S[1]
        if step_2S.abs().max() < CONVERGED:
            break
    return weight_S, bias_S


def cross_entropy(logits_NS: Tensor, y_N: Tensor) -> Tensor:
    """Binary cross-entropy of each latent's logits, mean over documents.

    Returns:
        Nats [S].
    """
    return (softplus(logits_NS) - y_N[:, None] * logits_NS).mean(0)
