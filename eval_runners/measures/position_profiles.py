"""Position profiles of latents: what kind each is, which are copies of one another, and the pictures of both.

Shapes: S latents, B bins of positions, P chosen latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval_runners.measures.autocorrelation import Profile

KINDS = ("flat", "early", "late", "periodic")
FLAT_BELOW = 0.2
"""Coefficient of variation of a cluster's mean profile below which it is flat."""
BAND_ABOVE = 1.2
"""A latent whose profile is not flat has a band, one of three, if its rate there is so many times its mean rate."""
CHANCE = 0.01
"""A latent's profile counts as flat if chance gives one as uneven in more than this share of SAEs (Bonferroni)."""
COPY_ABOVE = 0.7
"""Decoder cosine from which two latents may be copies."""
CLUSTERED_AT_MOST = 4096
MOST_CLUSTERS = 6
CHOSEN = 64
ROWS = 256
"""Decoder rows that are compared with all others at a time."""


@dataclass
class ProfileClusters:
    cluster_S: Tensor
    """Number of a latent's cluster; -1 for latents that do not count."""
    kinds: list[str]
    """Kind of each cluster."""
    centres: np.ndarray
    """[clusters, B] mean rates over the rate of all positions."""
    rate_BS: Tensor
    band_S: Tensor
    """0, 1, 2 for a latent that fires in the first, middle or last third above all; -1 for none."""
    silhouette: float

    def shares(self, mask_S: Tensor) -> dict[str, float]:
        found = self.cluster_S[mask_S]
        return {
            kind: sum((found == i).double().mean().item() for i, own in enumerate(self.kinds) if own == kind)
            for kind in KINDS
        }


def kind_of(centre_B: np.ndarray) -> str:
    """What a mean profile is, by its spread, its repetition and where its mass lies."""
    if centre_B.std() / max(centre_B.mean(), 1e-12) < FLAT_BELOW:
        return "flat"
    wave = np.abs(np.fft.rfft(centre_B - centre_B.mean())) ** 2
    # a slope or a hump lies in the lowest two frequencies, a repetition above them
    if len(wave) > 3 and wave[3:].sum() > 0.5 * wave[1:].sum():
        return "periodic"
    half = len(centre_B) // 2
    return "early" if centre_B[:half].mean() >= centre_B[half:].mean() else "late"


def uneven(profile: Profile, keep_S: Tensor) -> Tensor:
    """Mask of the latents that count which fire over positions as chance does not let them (chi², Bonferroni)."""
    from scipy.stats import chi2

    fires_BS, tokens_B = profile.binned()
    expected_BS = tokens_B[:, None] / tokens_B.sum() * fires_BS.sum(0)
    statistic_S = ((fires_BS - expected_BS) ** 2 / expected_BS.clamp(min=1e-12)).sum(0)
    bound = float(chi2.isf(CHANCE / max(int(keep_S.sum()), 1), max(len(tokens_B) - 1, 1)))
    return keep_S & (statistic_S > bound)


def cluster_profiles(profile: Profile, keep_S: Tensor, seed: int) -> ProfileClusters:
    """Clusters of the profiles: cluster 0 of those that chance could give, k-means among the others.

    As many clusters as part them best (silhouette).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    rate_BS = profile.rate_BS()
    uneven_S = uneven(profile, keep_S)
    index = uneven_S.nonzero().squeeze(1)
    cluster_S = torch.where(keep_S, 0, -1).cpu()
    points = rate_BS.T[index].sqrt().cpu().numpy()
    best: tuple[float, Any] = (-2.0, None)
    if len(points) > MOST_CLUSTERS:
        chosen = np.random.default_rng(seed).permutation(len(points))[:CLUSTERED_AT_MOST]
        for clusters in range(2, MOST_CLUSTERS + 1):
            fitted: Any = KMeans(clusters, random_state=seed).fit(points[chosen])
            if len(set(fitted.labels_.tolist())) < 2:
                continue
            score = float(silhouette_score(points[chosen], fitted.labels_))
            best = max(best, (score, fitted), key=lambda found: found[0])
    if not len(points):
        labels, centres, silhouette = np.zeros(0, dtype=int), np.zeros((0, len(rate_BS))), float("nan")
    elif best[1] is None:
        labels, centres, silhouette = np.zeros(len(points), dtype=int), points.mean(0, keepdims=True) ** 2, float("nan")
    else:
        labels, centres, silhouette = best[1].predict(points), best[1].cluster_centers_ ** 2, best[0]
    cluster_S[index.cpu()] = torch.from_numpy(labels).long() + 1
    kinds = ["flat", *(kind_of(centre) for centre in centres)]
    centres = np.concatenate([np.ones((1, len(rate_BS))), centres])
    thirds_3S = torch.stack([part.mean(0) for part in rate_BS.tensor_split(3)])
    band_S = torch.where(uneven_S & (thirds_3S.amax(0) >= BAND_ABOVE), thirds_3S.argmax(0), -1)
    return ProfileClusters(cluster_S.to(keep_S.device), kinds, centres, rate_BS, band_S, silhouette)


def find_redundant(W_dec_SD: Tensor, band_S: Tensor, keep_S: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the latents that have a near-copy, by decoder, and of those that have one in another band."""
    copy_S, redundant_S = torch.zeros_like(keep_S), torch.zeros_like(keep_S)
    index = keep_S.nonzero().squeeze(1)
    rows, band = torch.nn.functional.normalize(W_dec_SD.detach()[index].float(), dim=-1), band_S[index]
    for start in range(0, len(index), ROWS):
        part = slice(start, start + ROWS)
        near = rows[part] @ rows.T > COPY_ABOVE
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = False
        copy_S[index[part]] = near.any(1)
        redundant_S[index[part]] = (near & (band[part, None] != band) & (band[part, None] >= 0) & (band >= 0)).any(1)
    return copy_S, redundant_S


class Related:
    """Correlation of the activations of those firing latents that lie closest to another one by decoder."""

    def __init__(self, W_dec_SD: Tensor, fires_S: Tensor) -> None:
        index = fires_S.nonzero().squeeze(1)
        rows = torch.nn.functional.normalize(W_dec_SD.detach()[index].float(), dim=-1)
        nearest = torch.full((len(rows),), -1.0, device=rows.device)
        for start in range(0, len(rows), ROWS):
            cosine = rows[start : start + ROWS] @ rows.T
            cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -1
            nearest[start : start + ROWS] = cosine.amax(1)
        chosen = nearest.topk(min(CHOSEN, len(rows))).indices
        # neighbours stand together
        order = [0] if len(chosen) else []
        cosine = rows[chosen] @ rows[chosen].T
        while len(order) < len(chosen):
            left = cosine[order[-1]].clone()
            left[order] = -2
            order.append(int(left.argmax()))
        self.latents = index[chosen[order]]
        self.count = 0
        self.sum_P: Any = 0.0
        self.product_PP: Any = 0.0

    def add(self, acts_CTS: Tensor, special_CT: Tensor) -> None:
        rows = acts_CTS[..., self.latents][~special_CT].double()
        self.count += len(rows)
        self.sum_P = self.sum_P + rows.sum(0)
        self.product_PP = self.product_PP + rows.T @ rows

    def correlation_PP(self) -> Tensor:
        covariance = self.product_PP / self.count - torch.outer(self.sum_P, self.sum_P) / self.count**2
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        return covariance / torch.outer(deviation, deviation).clamp(min=1e-12)
