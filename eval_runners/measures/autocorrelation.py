"""How activations lie along a context: sums over a stream of contexts, and the statistics that follow from them.

Nothing here grows with the number of contexts. A pair of tokens counts only if no special token stands between them:
two documents that were packed into one context are not neighbours.

Shapes: C contexts, T positions in a context, S latents (or channels), L lags, B bins of positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-12
MEDIAN_LAG = 8
"""Lag whose autocorrelation is also reported for the latent in the middle, and by which latents are ranked."""


def segments(special_CT: Tensor) -> Tensor:
    """Number [C, T] of the document that a token belongs to, within its context; -1 for special tokens."""
    return special_CT.int().cumsum(1).masked_fill(special_CT, -1)


@dataclass
class Lagged:
    """Pearson correlation between a latent's activation and its own, `lag` tokens on, pooled over all pairs."""

    lags: tuple[int, ...]
    sums: dict[int, Tensor] = field(default_factory=dict)
    """lag -> [6, S]: pairs, sum x, sum y, sum x², sum y², sum xy."""

    def add(self, acts_CTS: Tensor, segment_CT: Tensor) -> None:
        for lag in self.lags:
            if lag >= acts_CTS.shape[1]:
                continue
            same_CT = (segment_CT[:, lag:] == segment_CT[:, :-lag]) & (segment_CT[:, lag:] >= 0)
            x, y = acts_CTS[:, :-lag][same_CT], acts_CTS[:, lag:][same_CT]
            pairs = torch.full_like(x[:1].sum(0), len(x), dtype=torch.float64)
            parts = [part.sum(0).double() for part in (x, y, x * x, y * y, x * y)]
            found = torch.stack([pairs, *parts])
            self.sums[lag] = self.sums[lag] + found if lag in self.sums else found

    def __add__(self, other: Lagged) -> Lagged:
        lags = self.sums.keys() | other.sums.keys()
        return Lagged(self.lags, {lag: self.sums.get(lag, 0) + other.sums.get(lag, 0) for lag in lags})  # type: ignore

    def correlation_LS(self) -> Tensor:
        """[L, S]; not a number where a latent never varies."""
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


@dataclass
class Profile:
    """How often latents fire at each position, and the information in bits between firing and the bin of a position."""

    bins: int
    fires_TS: Tensor | None = None
    tokens_T: Tensor | None = None

    def add(self, fires_CTS: Tensor, ordinary_CT: Tensor) -> None:
        found = (fires_CTS & ordinary_CT[..., None]).sum(0).float(), ordinary_CT.sum(0).float()
        if self.fires_TS is None or self.tokens_T is None:
            self.fires_TS, self.tokens_T = found
        else:
            self.fires_TS += found[0]
            self.tokens_T += found[1]

    def __add__(self, other: Profile) -> Profile:
        if self.fires_TS is None or self.tokens_T is None or other.fires_TS is None or other.tokens_T is None:
            return self if other.fires_TS is None else other
        return Profile(self.bins, self.fires_TS + other.fires_TS, self.tokens_T + other.tokens_T)

    def binned(self) -> tuple[Tensor, Tensor]:
        """(fires [B, S], tokens [B]) of equally long stretches of positions."""
        assert self.fires_TS is not None
        assert self.tokens_T is not None
        positions = len(self.tokens_T)
        bin_T = torch.arange(positions, device=self.tokens_T.device) * self.bins // positions
        fires_BS = torch.zeros(self.bins, self.fires_TS.shape[1], dtype=torch.float64, device=self.fires_TS.device)
        tokens_B = torch.zeros(self.bins, dtype=torch.float64, device=self.fires_TS.device)
        fires_BS.index_add_(0, bin_T, self.fires_TS.double())
        tokens_B.index_add_(0, bin_T, self.tokens_T.double())
        return fires_BS, tokens_B

    def rate_BS(self) -> Tensor:
        """Share of a bin's tokens on which a latent fires, over its share of all tokens; 1 if position is nothing."""
        fires_BS, tokens_B = self.binned()
        mean_S = fires_BS.sum(0) / tokens_B.sum().clamp(min=1)
        return fires_BS / tokens_B.clamp(min=1)[:, None] / mean_S.clamp(min=EPSILON)

    def information_S(self) -> Tensor:
        """Mutual information in bits between firing and bin, as counted (biased upwards by chance)."""
        fires_BS, tokens_B = self.binned()
        silent_BS = tokens_B[:, None] - fires_BS
        total = tokens_B.sum()
        found = torch.zeros_like(fires_BS[0])
        for joint_BS in (fires_BS, silent_BS):
            expected_BS = tokens_B[:, None] * joint_BS.sum(0) / total
            ratio = (joint_BS / expected_BS.clamp(min=EPSILON)).clamp(min=EPSILON).log2()
            found += (joint_BS / total * ratio).sum(0)
        return found


@dataclass
class Smoothness:
    """T-SAE's: the largest |a_t - a_{t-1}| / |x_t - x_{t-1}| of a sequence, over the sequences where a latent fires."""

    peak_S: Tensor | float = 0.0
    sequences_S: Tensor | float = 0.0
    all_peaks_S: Tensor | float = 0.0
    sequences: int = 0

    def add(self, acts_CTS: Tensor, x_CTD: Tensor, segment_CT: Tensor) -> None:
        neighbours_CT = (segment_CT[:, 1:] == segment_CT[:, :-1]) & (segment_CT[:, 1:] >= 0)
        step_CT = (x_CTD[:, 1:] - x_CTD[:, :-1]).norm(dim=-1).clamp(min=EPSILON)
        slope_CTS = (acts_CTS[:, 1:] - acts_CTS[:, :-1]).abs() / step_CT[..., None]
        peak_CS = (slope_CTS * neighbours_CT[..., None]).amax(1)
        fires_CS = ((acts_CTS > 0) & (segment_CT >= 0)[..., None]).any(1)
        self.peak_S = self.peak_S + (peak_CS * fires_CS).sum(0).double()
        self.sequences_S = self.sequences_S + fires_CS.sum(0).double()
        self.all_peaks_S = self.all_peaks_S + peak_CS.sum(0).double()
        self.sequences += len(acts_CTS)

    def __add__(self, other: Smoothness) -> Smoothness:
        return Smoothness(
            self.peak_S + other.peak_S,
            self.sequences_S + other.sequences_S,
            self.all_peaks_S + other.all_peaks_S,
            self.sequences + other.sequences,
        )

    def value(self, keep_S: Tensor, scale_S: Tensor | None = None) -> float:
        """Mean over sequences and the latents that fire in them; each latent divided by its scale, if one is given."""
        peak_S, sequences_S = torch.as_tensor(self.peak_S), torch.as_tensor(self.sequences_S)
        if scale_S is not None:
            peak_S = peak_S / scale_S.clamp(min=EPSILON)
        return (peak_S[keep_S].sum() / sequences_S[keep_S].sum()).item()

    def linear_value(self, scale_S: Tensor) -> float:
        """The same for channels, over all sequences."""
        return (torch.as_tensor(self.all_peaks_S) / scale_S.clamp(min=EPSILON)).mean().item() / max(self.sequences, 1)


def weighted_mean(values_LS: Tensor, weight_S: Tensor) -> Tensor:
    """Mean over latents [L], by weight; latents without a number are left out."""
    known = ~values_LS.isnan()
    weight_LS = weight_S * known
    return (values_LS.nan_to_num() * weight_LS).sum(-1) / weight_LS.sum(-1)


def half_life(lags: tuple[int, ...], curve: list[float]) -> float:
    """Lag at which the curve has fallen to half of its first value, between lags on a line in log2(lag).

    Infinite if it never falls so far, not a number if it does not begin above 0.
    """
    from math import isnan, log2, nan

    if not curve or isnan(curve[0]) or curve[0] <= 0:
        return nan
    half = curve[0] / 2
    for (lag0, high), (lag1, low) in zip(
        zip(lags, curve, strict=True), list(zip(lags, curve, strict=True))[1:], strict=False
    ):
        if low <= half:
            share = (high - half) / (high - low)
            return 2 ** (log2(lag0) + share * (log2(lag1) - log2(lag0)))
    return float("inf")


@dataclass
class Statistics:
    """All sums for one set of activations, filled batch by batch."""

    lags: tuple[int, ...]
    bins: int
    seed: int = 0
    tokens: int = 0
    contexts: int = 0

    def __post_init__(self) -> None:
        self.lagged, self.smoothness = Lagged(self.lags), Smoothness()
        self.profile, self.null = Profile(self.bins), Profile(self.bins)
        self.fires_S: Any = 0.0
        self.sum_S: Any = 0.0
        self.squares_S: Any = 0.0
        self.distinct_S: Any = 0.0
        self.generator = torch.Generator().manual_seed(self.seed)

    def add(self, acts_CTS: Tensor, x_CTD: Tensor, special_CT: Tensor) -> None:
        segment_CT = segments(special_CT)
        ordinary_CT = ~special_CT
        acts_CTS = acts_CTS * ordinary_CT[..., None]
        fires_CTS = acts_CTS > 0
        self.tokens += int(ordinary_CT.sum())
        self.contexts += len(acts_CTS)
        self.fires_S = self.fires_S + fires_CTS.sum((0, 1)).double()
        self.sum_S = self.sum_S + acts_CTS.sum((0, 1)).double()
        self.squares_S = self.squares_S + acts_CTS.pow(2).sum((0, 1)).double()
        self.distinct_S = self.distinct_S + fires_CTS.any(1).sum(0).double()
        self.lagged.add(acts_CTS, segment_CT)
        self.smoothness.add(acts_CTS, x_CTD, segment_CT)
        self.profile.add(fires_CTS, ordinary_CT)
        # the null: positions of a context in another order, the same for all latents
        order_CT = torch.rand(special_CT.shape, generator=self.generator).argsort(1).to(special_CT.device)
        rows = torch.arange(len(order_CT), device=special_CT.device)[:, None]
        self.null.add(fires_CTS[rows, order_CT], ordinary_CT[rows, order_CT])

    def __add__(self, other: Statistics) -> Statistics:
        """Of the contexts of both."""
        both = Statistics(self.lags, self.bins, self.seed)
        counted = ("tokens", "contexts", "fires_S", "sum_S", "squares_S", "distinct_S")
        for name in (*counted, "lagged", "smoothness", "profile", "null"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def scale_S(self) -> Tensor:
        """Root mean square of a latent over the tokens on which it fires."""
        return (self.squares_S / self.fires_S.clamp(min=1)).sqrt()

    def root_mean_square_S(self) -> Tensor:
        """The same over all tokens: smaller, the fewer tokens a latent fires on."""
        return (self.squares_S / max(self.tokens, 1)).sqrt()

    def most_persistent(self, keep_S: Tensor, lag: int, share: float) -> Tensor:
        """Mask of the latents of the highest autocorrelation, as many as make up a share of all firing."""
        correlation_S = self.lagged.correlation_LS()[self.lags.index(lag)]
        ranked_S = torch.where(keep_S & ~correlation_S.isnan(), correlation_S, -torch.inf).argsort(descending=True)
        before_S = self.fires_S[ranked_S].cumsum(0) - self.fires_S[ranked_S]
        mask_S = torch.zeros_like(keep_S)
        mask_S[ranked_S[before_S < share * self.fires_S.sum()]] = True
        return mask_S & keep_S

    def metrics(self, keep_S: Tensor) -> dict[str, float]:
        """The numbers of `positional_consistency` over the latents of a mask."""
        correlation_LS = self.lagged.correlation_LS()[:, keep_S]
        curve = weighted_mean(correlation_LS, self.fires_S[keep_S]).tolist()
        counted, null = self.profile.information_S()[keep_S], self.null.information_S()[keep_S]
        p = (self.fires_S[keep_S] / max(self.tokens, 1)).clamp(EPSILON, 1 - EPSILON)
        entropy = -(p * p.log2() + (1 - p) * (1 - p).log2())
        per_token = (self.fires_S[keep_S].sum() / max(self.tokens, 1)).item()
        per_sequence = (self.distinct_S[keep_S].sum() / max(self.contexts, 1)).item()
        return {
            **{f"autocorrelation_{lag}": value for lag, value in zip(self.lags, curve, strict=True)},
            "autocorrelation_median": correlation_LS[self.lags.index(MEDIAN_LAG)].nanmedian().item(),
            "half_life": half_life(self.lags, curve),
            "smoothness": self.smoothness.value(keep_S),
            "smoothness_scale_free": self.smoothness.value(keep_S, self.scale_S()),
            "smoothness_all_tokens": self.smoothness.value(keep_S, self.root_mean_square_S()),
            "position_information": (counted - null).mean().item(),
            "position_share": ((counted - null) / entropy).mean().item(),
            "sequence_l0": per_sequence / per_token if per_token else float("nan"),
            "l0": per_token,
        }

    def linear_metrics(self) -> dict[str, float]:
        """The same for channels, which have a sign and never stop firing: each counts alike, over its deviation."""
        correlation_LS = self.lagged.correlation_LS()
        curve = weighted_mean(correlation_LS, torch.ones_like(correlation_LS[0])).tolist()
        return {
            **{f"autocorrelation_{lag}": value for lag, value in zip(self.lags, curve, strict=True)},
            "half_life": half_life(self.lags, curve),
            "smoothness_scale_free": self.smoothness.linear_value(self.deviation_S()),
        }

    def deviation_S(self) -> Tensor:
        return (self.squares_S / self.tokens - (self.sum_S / self.tokens).pow(2)).clamp(min=0).sqrt()


@dataclass
class Documents:
    """The direction along which documents lie furthest apart for their own width (Fisher's, documents as classes)."""

    count: float = 0.0
    sum_D: Any = 0.0
    total_DD: Any = 0.0
    between_DD: Any = 0.0
    _direction: Any = None

    def add(self, x_CTD: Tensor, special_CT: Tensor) -> None:
        segment_CT = segments(special_CT)
        for x_TD, segment_T in zip(x_CTD.double(), segment_CT, strict=True):
            for number in segment_T.unique().tolist():
                rows = x_TD[segment_T == number]
                if number >= 0 and len(rows) > 1:
                    sum_D = rows.sum(0)
                    self.count += len(rows)
                    self.sum_D = self.sum_D + sum_D
                    self.total_DD = self.total_DD + rows.T @ rows
                    self.between_DD = self.between_DD + torch.outer(sum_D, sum_D) / len(rows)
        self._direction = None

    def direction_D1(self) -> Tensor:
        """[D, 1], found once after the last `add`."""
        if self._direction is None:
            from scipy.linalg import eigh

            mean = torch.outer(self.sum_D, self.sum_D) / self.count
            between, within = self.between_DD - mean, self.total_DD - self.between_DD
            ridge = 1e-3 * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype, device=within.device)
            _, vectors = eigh(between.cpu().numpy(), (within + ridge).cpu().numpy())
            self._direction = torch.from_numpy(vectors[:, -1:].copy())
        return self._direction
