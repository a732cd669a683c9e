"""All statistics of `positional_consistency` for one set of activations, and their sums over held-out contexts.

Shapes: C contexts, T positions in a context, D = d_in, S latents or channels, L lags.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from eval_runners.measures.autocorrelation import (
    EPSILON,
    LaggedCorrelation,
    half_life,
    number_documents,
    weighted_mean,
    zero_sum,
)
from eval_runners.measures.firing_profile import FiringProfile
from eval_runners.measures.smoothness import Smoothness

MEDIAN_LAG = 8
"""Lag, in tokens, whose autocorrelation is also reported for the median latent, and by which latents are ranked."""


@dataclass
class ContextStatistics:
    """Sums over contexts, filled batch by batch, and the metrics that follow from them."""

    lags: tuple[int, ...]
    bins: int
    seed: int = 0
    """Seed of the shuffled positions."""
    tokens: int = 0
    """Tokens that are not special."""
    contexts: int = 0
    fires_S: Tensor = field(default_factory=zero_sum)
    """Tokens on which the latent fires."""
    sum_S: Tensor = field(default_factory=zero_sum)
    squares_S: Tensor = field(default_factory=zero_sum)
    distinct_S: Tensor = field(default_factory=zero_sum)
    """Contexts in which the latent fires."""

    def __post_init__(self) -> None:
        """Start from empty sums."""
        self.lagged, self.smoothness = LaggedCorrelation(self.lags), Smoothness()
        self.profile, self.shuffled = FiringProfile(self.bins), FiringProfile(self.bins)
        self.generator = torch.Generator().manual_seed(self.seed)

    def add(self, acts_CTS: Tensor, x_CTD: Tensor, special_CT: Tensor) -> None:
        """Add a batch of contexts.

        Args:
            acts_CTS: latents or channels.
            x_CTD: activations that the SAE reads.
            special_CT: mask of special tokens, which do not count.
        """
        document_CT = number_documents(special_CT)
        ordinary_CT = ~special_CT
        acts_CTS = acts_CTS * ordinary_CT[..., None]
        fires_CTS = acts_CTS > 0
        self.tokens += int(ordinary_CT.sum())
        self.contexts += len(acts_CTS)
        self.fires_S = self.fires_S + fires_CTS.sum((0, 1)).double()
        self.sum_S = self.sum_S + acts_CTS.sum((0, 1)).double()
        self.squares_S = self.squares_S + acts_CTS.pow(2).sum((0, 1)).double()
        self.distinct_S = self.distinct_S + fires_CTS.any(1).sum(0).double()
        self.lagged.add(acts_CTS, document_CT)
        self.smoothness.add(acts_CTS, x_CTD, document_CT)
        self.profile.add(fires_CTS, ordinary_CT)
        # The null distribution: the positions of a context in random order, the same order for all latents.
        order_CT = torch.rand(special_CT.shape, generator=self.generator).argsort(1).to(special_CT.device)
        rows = torch.arange(len(order_CT), device=special_CT.device)[:, None]
        self.shuffled.add(fires_CTS[rows, order_CT], ordinary_CT[rows, order_CT])

    def __add__(self, other: ContextStatistics) -> ContextStatistics:
        """Pool the contexts of both."""
        total = ContextStatistics(self.lags, self.bins, self.seed)
        sums = ("tokens", "contexts", "fires_S", "sum_S", "squares_S", "distinct_S")
        for name in (*sums, "lagged", "smoothness", "profile", "shuffled"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def firing_scale_S(self) -> Tensor:
        """Root mean square of each latent over the tokens on which it fires."""
        return (self.squares_S / self.fires_S.clamp(min=1)).sqrt()

    def overall_scale_S(self) -> Tensor:
        """Root mean square of each latent over all tokens: smaller for latents that fire rarely."""
        return (self.squares_S / max(self.tokens, 1)).sqrt()

    def deviation_S(self) -> Tensor:
        """Standard deviation of each channel over all tokens."""
        return (self.squares_S / self.tokens - (self.sum_S / self.tokens).pow(2)).clamp(min=0).sqrt()

    def most_persistent(self, keep_S: Tensor, lag: int, share: float) -> Tensor:
        """Choose the latents of the highest autocorrelation that together account for a share of all firing.

        Args:
            keep_S: mask of the latents to choose from.
            lag: lag of the autocorrelation, in tokens.
            share: share of all firing, above 0 and at most 1.

        Returns:
            Mask [S].
        """
        correlation_S = self.lagged.correlation_LS()[self.lags.index(lag)]
        ranked_S = torch.where(keep_S & ~correlation_S.isnan(), correlation_S, -torch.inf).argsort(descending=True)
        before_S = self.fires_S[ranked_S].cumsum(0) - self.fires_S[ranked_S]
        mask_S = torch.zeros_like(keep_S)
        mask_S[ranked_S[before_S < share * self.fires_S.sum()]] = True
        return mask_S & keep_S

    def latent_metrics(self, keep_S: Tensor) -> dict[str, float]:
        """Compute the metrics of `positional_consistency` over the latents of a mask, by metric name."""
        correlation_LS = self.lagged.correlation_LS()[:, keep_S]
        curve = weighted_mean(correlation_LS, self.fires_S[keep_S]).tolist()
        excess = self.profile.information_S()[keep_S] - self.shuffled.information_S()[keep_S]
        p = (self.fires_S[keep_S] / max(self.tokens, 1)).clamp(EPSILON, 1 - EPSILON)
        entropy = -(p * p.log2() + (1 - p) * (1 - p).log2())
        per_token = (self.fires_S[keep_S].sum() / max(self.tokens, 1)).item()
        per_sequence = (self.distinct_S[keep_S].sum() / max(self.contexts, 1)).item()
        return {
            **self._autocorrelations(curve),
            "autocorrelation_median": correlation_LS[self.lags.index(MEDIAN_LAG)].nanmedian().item(),
            "half_life": half_life(self.lags, curve),
            "smoothness": self.smoothness.latent_mean(keep_S),
            "smoothness_scale_free": self.smoothness.latent_mean(keep_S, self.firing_scale_S()),
            "smoothness_all_tokens": self.smoothness.latent_mean(keep_S, self.overall_scale_S()),
            "position_information": excess.mean().item(),
            "position_share": (excess / entropy).mean().item(),
            "sequence_l0": per_sequence / per_token if per_token else float("nan"),
            "l0": per_token,
        }

    def channel_metrics(self) -> dict[str, float]:
        """Compute the metrics that channels have, which are signed and always active, by metric name.

        Channels have equal weights, and each is divided by its standard deviation.
        """
        correlation_LS = self.lagged.correlation_LS()
        curve = weighted_mean(correlation_LS, torch.ones_like(correlation_LS[0])).tolist()
        return {
            **self._autocorrelations(curve),
            "half_life": half_life(self.lags, curve),
            "smoothness_scale_free": self.smoothness.channel_mean(self.deviation_S()),
        }

    def _autocorrelations(self, curve: list[float]) -> dict[str, float]:
        return {f"autocorrelation_{lag}": value for lag, value in zip(self.lags, curve, strict=True)}
