"""Upper latents of a two-level SAE explained by lower latents: held-out R² and decoder cosine.

Shapes: N tokens, D = d_in, L lower latents, U upper latents, P of them measured, K lower latents of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

if TYPE_CHECKING:
    from sae_variants.two_level.saved import TwoLevelSAE

TOKENS_PER_PASS = 2048
TOKENS_PER_PRODUCT = 256
NO_LATENT = -1
"""Index where there are fewer than K lower latents."""


def explain_upper_latents(
    sae: TwoLevelSAE, halves: Sequence[Tensor], *, ks: Sequence[int], n_min: int, most: int, seed: int
) -> dict[str, float | None]:
    """Explain upper latents by their children, by the children of another upper latent, and by any lower latents.

    A child counts if it fires. An upper latent without children counts with an R² and a cosine of 0.

    Args:
        sae: the SAE with its lower level.
        halves: activations [N, D] to fit on, and to score on.
        ks: numbers of lower latents that explain together.
        n_min: tokens of each half on which an upper latent must fire to be measured.
        most: upper latents that are measured at most, sampled at random.
        seed: seed of that sample.

    Returns:
        `CATEGORY.r2_K` for the categories children, another and any; children.latents, cosine, size and childless.
        All are means over the measured upper latents.
    """
    (fit_lower_L, fit_upper_U), (score_lower_L, score_upper_U) = (_count_firing(sae, half_ND) for half_ND in halves)
    latents_P = ((fit_upper_U >= n_min) & (score_upper_U >= n_min)).nonzero().squeeze(1)
    if len(latents_P) > most:
        generator = torch.Generator().manual_seed(seed)
        latents_P = latents_P[torch.randperm(len(latents_P), generator=generator)[:most].sort().values]
    values: dict[str, float | None] = {"children.latents": float(len(latents_P))}
    if not len(latents_P):
        return values
    fires_L = (fit_lower_L + score_lower_L) > 0
    is_child_LP = (sae.parent_L.cpu()[:, None] == latents_P) & fires_L[:, None]
    candidates = {"children": is_child_LP, "any": fires_L[:, None].expand_as(is_child_LP)}
    if len(latents_P) > 1:
        candidates["another"] = is_child_LP.roll(1, dims=1)
    correlation_LP = _correlate_levels(sae, halves[0], latents_P)
    for category, candidate_LP in candidates.items():
        best = correlation_LP.abs().masked_fill(~candidate_LP, -1).topk(min(max(ks), len(fires_L)), dim=0)
        ids_PK = best.indices.T.masked_fill(best.values.T < 0, NO_LATENT)
        fitted, scored = (_sum_products(sae, half_ND, latents_P, ids_PK) for half_ND in halves)
        values |= {f"{category}.r2_{k}": held_out_r2(fitted, scored, k).mean().item() for k in ks}
    return values | _compare_decoders(sae, latents_P, is_child_LP)


def _compare_decoders(sae: TwoLevelSAE, latents_P: Tensor, is_child_LP: Tensor) -> dict[str, float | None]:
    """Cosine of upper decoder rows with the sum of their children's, weighted by the links; numbers of children."""
    has_child_P = is_child_LP.any(0)
    links_PL = sae.W_links.detach().cpu()[latents_P] * is_child_LP.T
    sums_PD = links_PL @ sae.W_dec_lower.detach().cpu()
    cosines_P = cosine_similarity(sums_PD, sae.W_dec.detach().cpu()[latents_P]) * has_child_P
    children_P = is_child_LP.sum(0)[has_child_P].float()
    return {
        "children.cosine": cosines_P.mean().item(),
        "children.size": children_P.mean().item() if len(children_P) else None,
        "children.childless": 1 - has_child_P.float().mean().item(),
    }


def _encode_levels(sae: TwoLevelSAE, x_ND: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Lower [n, L] and upper [n, U] activations of consecutive parts of the tokens, in float64."""
    with torch.no_grad():
        for x_nD in x_ND.split(TOKENS_PER_PASS):
            yield sae.encode_lower(x_nD).cpu().double(), sae.encode(x_nD).cpu().double()


def _count_firing(sae: TwoLevelSAE, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens on which each lower latent [L] and each upper latent [U] fires."""
    lower_L, upper_U = torch.zeros(sae.cfg.d_lower), torch.zeros(sae.cfg.d_sae)
    for lower_nL, upper_nU in _encode_levels(sae, x_ND):
        lower_L += (lower_nL > 0).sum(0)
        upper_U += (upper_nU > 0).sum(0)
    return lower_L, upper_U


def _correlate_levels(sae: TwoLevelSAE, x_ND: Tensor, latents_P: Tensor) -> Tensor:
    """Correlation [L, P] of lower with upper activations; 0 for a latent that never varies."""
    L, P, N = sae.cfg.d_lower, len(latents_P), len(x_ND)
    products_LP = torch.zeros(L, P, dtype=torch.float64)
    sum_L, squares_L, sum_P, squares_P = (torch.zeros(n, dtype=torch.float64) for n in (L, L, P, P))
    for lower_nL, upper_nU in _encode_levels(sae, x_ND):
        upper_nP = upper_nU[:, latents_P]
        products_LP += lower_nL.T @ upper_nP
        sum_L, squares_L = sum_L + lower_nL.sum(0), squares_L + lower_nL.pow(2).sum(0)
        sum_P, squares_P = sum_P + upper_nP.sum(0), squares_P + upper_nP.pow(2).sum(0)
    covariance_LP = products_LP / N - sum_L[:, None] * sum_P / N**2
    variance_L = (squares_L / N - (sum_L / N) ** 2).clamp(min=0)
    variance_P = (squares_P / N - (sum_P / N) ** 2).clamp(min=0)
    scale_LP = variance_L[:, None] * variance_P
    return torch.where(scale_LP > 0, covariance_LP / scale_LP.clamp(min=1e-300).sqrt(), 0.0).float()


def _sum_products(sae: TwoLevelSAE, x_ND: Tensor, latents_P: Tensor, ids_PK: Tensor) -> Tensor:
    """Sums over tokens [P, K+2, K+2] of the products of 1, the K lower latents and the upper one.

    The K lower latents of an upper one are those of `ids_PK`; `NO_LATENT` contributes 0.
    """
    P, K = ids_PK.shape
    sums = torch.zeros(P, K + 2, K + 2, dtype=torch.float64)
    for lower_nL, upper_nU in _encode_levels(sae, x_ND):
        upper_nP = upper_nU[:, latents_P]
        for lower, upper in zip(lower_nL.split(TOKENS_PER_PRODUCT), upper_nP.split(TOKENS_PER_PRODUCT), strict=True):
            chosen_nPK = lower[:, ids_PK.clamp(min=0)] * (ids_PK != NO_LATENT)
            terms = torch.cat([torch.ones_like(upper)[..., None], chosen_nPK, upper[..., None]], -1)
            sums += torch.einsum("npi,npj->pij", terms, terms)
    return sums


def held_out_r2(fitted: Tensor, scored: Tensor, k: int) -> Tensor:
    """R² [P] of least squares with a constant on the first k lower latents, fitted on one half, scored on the other.

    Args:
        fitted: sums of products [P, K+2, K+2] of 1, the lower latents and the upper one, on the half to fit on.
        scored: those on the half to score on.
        k: lower latents to use; all K where there are fewer.

    Returns:
        R² of each upper latent; negative where the fit is worse than the mean of the half to score on.
    """
    target = scored.shape[-1] - 1
    used = list(range(min(k + 1, target)))
    weights = torch.linalg.pinv(fitted[:, used][:, :, used], hermitian=True) @ fitted[:, used, target][..., None]
    residual = torch.cat([weights.squeeze(-1), -torch.ones_like(weights[:, 0])], 1)
    products = scored[:, [*used, target]][:, :, [*used, target]]
    error = torch.einsum("pi,pij,pj->p", residual, products, residual)
    total = scored[:, target, target] - scored[:, 0, target] ** 2 / scored[:, 0, 0]
    return 1 - error / total
