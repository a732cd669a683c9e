"""Latents of one SAE matched with the latents of another: how many survive, and how alike the matched latents are.

Latents that fire are matched one to one so that the sum of the cosines of their decoder rows is largest.

Shapes: N tokens, D = d_in, S = d_sae, M matched pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from sae_lens import SAE
    from torch import Tensor

SURVIVAL_COSINE = 0.7
"""Cosine with its match above which a latent survives."""
TOKENS_PER_PASS = 2048


class Moments(NamedTuple):
    """Statistics of every latent over tokens."""

    fires_S: Tensor
    """Tokens on which the latent fires."""
    mean_S: Tensor
    square_S: Tensor
    """Mean of the squared activation."""

    def spread(self, ids_M: Tensor) -> Tensor:
        """Standard deviation [M] of some latents."""
        return (self.square_S[ids_M] - self.mean_S[ids_M] ** 2).clamp(min=0).sqrt()


def compare_latents(
    sae: SAE[Any], other: SAE[Any], x_ND: Tensor, *, n_min: int, most: int, seed: int
) -> dict[str, float | None]:
    """Match the latents of an SAE with those of another and compare the pairs.

    Args:
        sae: the SAE whose latents are counted.
        other: the SAE in which matches are sought.
        x_ND: activations on which both are compared.
        n_min: tokens on which a latent must fire to be matched.
        most: latents of `sae` that are matched at most, sampled at random.
        seed: seed of that sample.

    Returns:
        latents: latents of `sae` that were matched. of: latents of `other` that could be their match. survival: share
        of `latents` whose match has a cosine above `SURVIVAL_COSINE`. cosine and correlation: means over the pairs,
        of decoder rows and of activations; None where there is no pair, or no pair whose activations vary.
    """
    import torch

    from eval_runners.measures.statistics import match_rows

    generator = torch.Generator().manual_seed(seed)
    moments = latent_moments(sae, x_ND), latent_moments(other, x_ND)
    ids, other_ids = ((each.fires_S >= n_min).nonzero().squeeze(1) for each in moments)
    if len(ids) > most:
        ids = ids[torch.randperm(len(ids), generator=generator)[:most].sort().values]
    row: dict[str, float | None] = {"latents": len(ids), "of": len(other_ids)}
    if not len(ids) or not len(other_ids):
        return row | {"survival": 0.0, "cosine": None, "correlation": None}
    left_M, right_M, cosines_M = match_rows(_decoder_rows(sae, ids), _decoder_rows(other, other_ids))
    matched = ids[torch.from_numpy(left_M)], other_ids[torch.from_numpy(right_M)]
    correlations = _correlations((sae, other), matched, moments, x_ND)
    return row | {
        "survival": float((cosines_M > SURVIVAL_COSINE).sum()) / len(ids),
        "cosine": float(cosines_M.mean()),
        "correlation": correlations.mean().item() if len(correlations) else None,
    }


def _decoder_rows(sae: SAE[Any], ids: Tensor) -> np.ndarray:
    return sae.W_dec.detach().cpu().double()[ids].numpy()


def latent_moments(sae: SAE[Any], x_ND: Tensor) -> Moments:
    """Count firing, mean and mean square of every latent over tokens, in float64."""
    import torch

    fires_S, total_S, squares_S = (torch.zeros(sae.cfg.d_sae, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for x_nD in x_ND.split(TOKENS_PER_PASS):
            acts_nS = sae.encode(x_nD).double().cpu()
            fires_S += (acts_nS > 0).sum(0)
            total_S += acts_nS.sum(0)
            squares_S += acts_nS.pow(2).sum(0)
    return Moments(fires_S, total_S / len(x_ND), squares_S / len(x_ND))


def _correlations(
    saes: tuple[SAE[Any], SAE[Any]], ids: tuple[Tensor, Tensor], moments: tuple[Moments, Moments], x_ND: Tensor
) -> Tensor:
    """Pearson correlation of the activations of the matched latents, without pairs of which one never varies."""
    import torch

    products_M = torch.zeros(len(ids[0]), dtype=torch.float64)
    with torch.no_grad():
        for x_nD in x_ND.split(TOKENS_PER_PASS):
            acts_nM, other_nM = (
                sae.encode(x_nD).double().cpu()[:, ids_M] for sae, ids_M in zip(saes, ids, strict=True)
            )
            products_M += (acts_nM * other_nM).sum(0)
    mean_M, other_mean_M = (each.mean_S[ids_M] for each, ids_M in zip(moments, ids, strict=True))
    spread_M, other_spread_M = (each.spread(ids_M) for each, ids_M in zip(moments, ids, strict=True))
    scale_M = spread_M * other_spread_M
    return ((products_M / len(x_ND) - mean_M * other_mean_M) / scale_M)[scale_M > 0]


def match_random_directions(n: int, m: int, rows_FD: np.ndarray, seed: int) -> dict[str, float | None]:
    """Survival and mean cosine of n random directions matched with m others.

    The directions have the second moments of decoder rows, each at unit norm: where these fill a subspace, so do they.

    Args:
        n: directions that are matched.
        m: directions among which a match is sought.
        rows_FD: decoder rows of F latents, none of them zero.
        seed: seed of the directions.
    """
    import numpy as np

    from eval_runners.measures.statistics import match_rows

    if not n or not m:
        return {"survival": None, "cosine": None, "latents": float(n)}
    generator = np.random.default_rng(seed)
    unit_FD = rows_FD / np.linalg.norm(rows_FD, axis=1, keepdims=True)
    rows, others = (generator.standard_normal((size, len(unit_FD))) @ unit_FD for size in (n, m))
    _, _, cosines_M = match_rows(rows, others)
    survival = float((cosines_M > SURVIVAL_COSINE).sum() / n)
    return {"survival": survival, "cosine": float(cosines_M.mean()), "latents": float(n)}
