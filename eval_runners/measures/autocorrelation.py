"""Autocorrelation of activations along a context, from sums over a stream of contexts.

Nothing here grows with the number of contexts. Two tokens form a pair only if no special token lies between them:
two documents packed into one context are not neighbours.

Shapes: C contexts, T positions in a context, S latents or channels, L lags.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPSILON = 1e-12


def zero_sum() -> Tensor:
    """Scalar in float64 from which a sum of any shape starts."""
    return torch.zeros((), dtype=torch.float64)


def number_documents(special_CT: Tensor) -> Tensor:
    """Number the documents within each context.

    Args:
        special_CT: mask of special tokens, which separate documents.

    Returns:
        [C, T] number of the document that a token belongs to; -1 at special tokens.
    """
    return special_CT.int().cumsum(1).masked_fill(special_CT, -1)


@dataclass
class LaggedCorrelation:
    """Pearson correlation between a latent at a token and the same latent `lag` tokens later, pooled over all pairs."""

    lags: tuple[int, ...]
    sums: dict[int, Tensor] = field(default_factory=dict)
    """lag -> [6, S]: pairs, sum x, sum y, sum x², sum y², sum xy."""

    def add(self, acts_CTS: Tensor, document_CT: Tensor) -> None:
        """Add a batch of contexts; `document_CT` is the result of `number_documents`."""
        for lag in self.lags:
            if lag >= acts_CTS.shape[1]:
                continue
            is_pair_CT = (document_CT[:, lag:] == document_CT[:, :-lag]) & (document_CT[:, lag:] >= 0)
            x, y = acts_CTS[:, :-lag][is_pair_CT], acts_CTS[:, lag:][is_pair_CT]
            if x.dtype in (torch.bfloat16, torch.float16):  # their sums round to a few digits
                x, y = x.float(), y.float()
            pairs_S = torch.full_like(x[:1].sum(0), len(x), dtype=torch.float64)
            sums_S = [products.sum(0, dtype=torch.float64) for products in (x, y, x * x, y * y, x * y)]
            self._add_sums(lag, torch.stack([pairs_S, *sums_S]))

    def __add__(self, other: LaggedCorrelation) -> LaggedCorrelation:
        """Pool the pairs of both."""
        total = LaggedCorrelation(self.lags, dict(self.sums))
        for lag, sums_6S in other.sums.items():
            total._add_sums(lag, sums_6S)
        return total

    def _add_sums(self, lag: int, sums_6S: Tensor) -> None:
        self.sums[lag] = self.sums[lag] + sums_6S if lag in self.sums else sums_6S

    def correlation_LS(self) -> Tensor:
        """Compute the correlations [L, S]; NaN where a latent never varies or no context is longer than the lag."""
        rows = []
        for lag in self.lags:
            if lag not in self.sums:
                rows.append(torch.full_like(next(iter(self.sums.values()))[0], float("nan")))
                continue
            n, x, y, xx, yy, xy = self.sums[lag]
            covariance, var_x, var_y = n * xy - x * y, n * xx - x * x, n * yy - y * y
            floor = 1e-9 * n * torch.maximum(xx, yy) + EPSILON
            varies = (var_x > floor) & (var_y > floor)
            rows.append(torch.where(varies, covariance / (var_x * var_y).clamp(min=EPSILON).sqrt(), torch.nan))
        return torch.stack(rows)


def weighted_mean(values_LS: Tensor, weight_S: Tensor) -> Tensor:
    """Average over latents by weight, without the latents whose value is NaN.

    Returns:
        [L]; NaN where every value is.
    """
    weight_LS = weight_S * ~values_LS.isnan()
    return (values_LS.nan_to_num() * weight_LS).sum(-1) / weight_LS.sum(-1)


def half_life(lags: Sequence[int], curve: Sequence[float]) -> float:
    """Lag at which a curve has fallen to half of its first value, interpolated linearly in log2(lag).

    Args:
        lags: increasing, in tokens.
        curve: one value per lag.

    Returns:
        Lag in tokens; infinity if the curve never falls to half, NaN if its first value is not positive.
    """
    if not curve or math.isnan(curve[0]) or curve[0] <= 0:
        return math.nan
    half = curve[0] / 2
    for (lag, high), (next_lag, low) in itertools.pairwise(zip(lags, curve, strict=True)):
        if low <= half:
            share = (high - half) / (high - low)
            return 2 ** (math.log2(lag) + share * (math.log2(next_lag) - math.log2(lag)))
    return math.inf
