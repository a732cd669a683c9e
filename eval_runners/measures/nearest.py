"""Which latents of an SAE and which true features belong together, by the cosines of their directions.

No matrix of all latents and all features exists at once, so that a million latents can be matched.

Shapes: D = d_in, F features, S latents, P latents at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_variants.common.console import progress

COSINES_AT_ONCE = 2**26
WIDE = 4
"""Latents for each feature above which the best matching considers only the F latents nearest to a feature."""


@dataclass(frozen=True)
class Nearest:
    """Which latents and features belong together."""

    feature_S: Tensor
    """Feature of each latent."""
    latent_F: Tensor
    """Latent of each feature."""
    cosine_F: Tensor
    """Absolute cosine of a feature and its latent."""


def unit(rows_SD: Tensor) -> Tensor:
    """Return the rows with norm 1; a row of zeros stays."""
    return rows_SD / rows_SD.norm(dim=-1, keepdim=True).clamp(min=1e-8)


@torch.no_grad()
def nearest(rows_SD: Tensor, directions_FD: Tensor) -> Nearest:
    """Find the feature of each decoder row, and the decoder row of each feature direction."""
    directions_DF = unit(directions_FD).T
    cosine_F = directions_DF.new_full((directions_DF.shape[1],), -1)
    latent_F = torch.zeros_like(cosine_F, dtype=torch.long)
    features, first = [], 0
    for part_PD in rows_SD.split(max(1, COSINES_AT_ONCE // len(cosine_F))):
        cosine_PF = (unit(part_PD).to(directions_DF) @ directions_DF).abs()
        features.append(cosine_PF.argmax(1))
        best_F, row_F = cosine_PF.max(0)
        is_better_F = best_F > cosine_F
        cosine_F, latent_F = cosine_F.where(~is_better_F, best_F), latent_F.where(~is_better_F, row_F + first)
        first += len(part_PD)
    return Nearest(torch.cat(features), latent_F, cosine_F)


@torch.no_grad()
def mean_correlation_coefficient(rows_SD: Tensor, directions_FD: Tensor) -> float:
    """Return the mean absolute cosine of the best one-to-one matching of decoder rows and feature directions.

    The best matching gives a feature one of the F latents nearest to it: at most F - 1 of these belong to others.
    """
    from sae_lens.synthetic.evals import mean_correlation_coefficient as of_few
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    S, F = len(rows_SD), len(directions_FD)
    if S <= WIDE * F:
        return of_few(rows_SD, directions_FD)
    rows_DS = unit(rows_SD).T
    parts = unit(directions_FD).split(max(1, COSINES_AT_ONCE // S))
    nearest_ = [(part_PD @ rows_DS).abs().topk(F, dim=1) for part_PD in progress(parts, "matching")]
    cosine_FF, latent_FF = (torch.cat([part[i] for part in nearest_]).cpu().numpy() for i in (0, 1))
    costs = 2.0 - cosine_FF.ravel().astype("float64")  # not 0, which would be no edge
    ends = range(0, F * F + 1, F)
    features, latents = min_weight_full_bipartite_matching(csr_array((costs, latent_FF.ravel(), ends), shape=(F, S)))
    return float((unit(directions_FD)[features] * unit(rows_SD)[latents]).sum(1).abs().mean())
