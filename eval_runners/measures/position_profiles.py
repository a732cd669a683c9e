"""Position profiles of latents: clusters of firing rates over positions, and the kind of each cluster.

Shapes: S latents, B bins of positions, N latents that are clustered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval_runners.measures.firing_profile import FiringProfile

KINDS = ("flat", "early", "late", "periodic")
FLAT_BELOW = 0.2
"""Coefficient of variation of a cluster's mean profile below which the cluster is flat."""
BAND_ABOVE = 1.2
"""Firing rate in a third of the positions, relative to the mean rate, from which a latent belongs to that band."""
CHANCE = 0.01
"""Probability that any latent of an SAE is called uneven by chance (Bonferroni)."""
CLUSTERED_AT_MOST = 4096
"""Latents that k-means is fitted on at most, drawn at random."""
MOST_CLUSTERS = 6


@dataclass(frozen=True)
class ProfileClusters:
    """The clusters of an SAE's position profiles."""

    cluster_S: Tensor
    """Number of a latent's cluster; 0 is flat, -1 marks latents that do not count."""
    kinds: list[str]
    """Kind of each cluster."""
    centres: np.ndarray
    """[clusters, B] firing rate relative to the mean rate."""
    rate_BS: Tensor
    """Firing rate of each latent relative to its mean rate."""
    band_S: Tensor
    """0, 1 or 2 for a latent that fires most in the first, middle or last third of the positions; -1 for none."""
    silhouette: float
    """Mean silhouette of the clusters; NaN where there are fewer than two."""

    def shares(self, mask_S: Tensor) -> dict[str, float]:
        """Share of the latents of a mask whose cluster is of each kind."""
        cluster_N = self.cluster_S[mask_S]
        return {
            kind: sum((cluster_N == i).double().mean().item() for i, named in enumerate(self.kinds) if named == kind)
            for kind in KINDS
        }


def profile_kind(centre_B: np.ndarray) -> str:
    """Classify a mean profile by its spread, its spectrum and where its mass lies.

    Returns:
        Element of `KINDS`.
    """
    if centre_B.std() / max(centre_B.mean(), 1e-12) < FLAT_BELOW:
        return "flat"
    power = np.abs(np.fft.rfft(centre_B - centre_B.mean())) ** 2
    # A slope or a hump lies in the two lowest frequencies, a repetition above them.
    if len(power) > 3 and power[3:].sum() > 0.5 * power[1:].sum():
        return "periodic"
    half = len(centre_B) // 2
    return "early" if centre_B[:half].mean() >= centre_B[half:].mean() else "late"


def find_uneven(profile: FiringProfile, keep_S: Tensor) -> Tensor:
    """Select the latents whose firing depends on position (chi² test, Bonferroni correction).

    Args:
        profile: counts of all latents.
        keep_S: mask of the latents that count.

    Returns:
        Mask [S].
    """
    from scipy.stats import chi2

    fires_BS, tokens_B = profile.binned()
    expected_BS = tokens_B[:, None] / tokens_B.sum() * fires_BS.sum(0)
    statistic_S = ((fires_BS - expected_BS) ** 2 / expected_BS.clamp(min=1e-12)).sum(0)
    bound = float(chi2.isf(CHANCE / max(int(keep_S.sum()), 1), max(len(tokens_B) - 1, 1)))
    return keep_S & (statistic_S > bound)


def cluster_profiles(profile: FiringProfile, keep_S: Tensor, seed: int) -> ProfileClusters:
    """Cluster position profiles: cluster 0 holds those that chance explains, k-means separates the others.

    Args:
        profile: counts of all latents.
        keep_S: mask of the latents that count.
        seed: seed of k-means.
    """
    rate_BS = profile.rate_BS()
    uneven_S = find_uneven(profile, keep_S)
    index_N = uneven_S.nonzero().squeeze(1)
    labels_N, centres, silhouette = _fit_clusters(rate_BS.T[index_N].sqrt().cpu().numpy(), seed)
    cluster_S = torch.where(keep_S, 0, -1).cpu()
    cluster_S[index_N.cpu()] = torch.from_numpy(labels_N).long() + 1
    kinds = ["flat", *(profile_kind(centre_B) for centre_B in centres)]
    centres = np.concatenate([np.ones((1, len(rate_BS))), centres])
    thirds_3S = torch.stack([part_BS.mean(0) for part_BS in rate_BS.tensor_split(3)])
    band_S = torch.where(uneven_S & (thirds_3S.amax(0) >= BAND_ABOVE), thirds_3S.argmax(0), -1)
    return ProfileClusters(cluster_S.to(keep_S.device), kinds, centres, rate_BS, band_S, silhouette)


def _fit_clusters(roots_NB: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Separate profiles into the number of clusters with the largest silhouette.

    Args:
        roots_NB: square roots of relative rates, which stabilize the variance of counts.
        seed: seed of k-means.

    Returns:
        [N] cluster of each profile, [clusters, B] mean relative rates, silhouette. Few profiles form a single cluster.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    labels_N = np.zeros(len(roots_NB), dtype=int)
    if not len(roots_NB):
        return labels_N, np.zeros((0, roots_NB.shape[1])), float("nan")
    best, best_score = None, -2.0
    if len(roots_NB) > MOST_CLUSTERS:
        sample = roots_NB[np.random.default_rng(seed).permutation(len(roots_NB))[:CLUSTERED_AT_MOST]]
        for clusters in range(2, MOST_CLUSTERS + 1):
            fitted: Any = KMeans(clusters, random_state=seed).fit(sample)
            if len(np.unique(fitted.labels_)) < 2:
                continue
            score = float(silhouette_score(sample, fitted.labels_))
            if score > best_score:
                best, best_score = fitted, score
    if best is None:
        return labels_N, roots_NB.mean(0, keepdims=True) ** 2, float("nan")
    return best.predict(roots_NB), best.cluster_centers_**2, best_score
