"""Mutual information between the firing of upper latents and of lower latents.

Shapes: N tokens, U upper latents, L lower latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOKENS_PER_PRODUCT = 2**13
"""Tokens whose firing is converted to float32 at a time."""


def joint_counts(upper_NU: Tensor, lower_NL: Tensor) -> Tensor:
    """Count the tokens on which both latents of a pair fire, exactly.

    Args:
        upper_NU: whether each upper latent fires on each token.
        lower_NL: whether each lower latent fires on each token.

    Returns:
        Counts [U, L] in float64.
    """
    counts_UL = torch.zeros(upper_NU.shape[1], lower_NL.shape[1], dtype=torch.float64)
    for upper_nU, lower_nL in zip(upper_NU.split(TOKENS_PER_PRODUCT), lower_NL.split(TOKENS_PER_PRODUCT), strict=True):
        counts_UL += upper_nU.float().T @ lower_nL.float()
    return counts_UL


def mutual_information(both_UL: Tensor, upper_U: Tensor, lower_L: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mutual information between the firing of two latents, estimated from counts, and the bias of that estimate.

    The bias is (cells of the joint - cells of either margin + 1) / 2n nats, where only cells that are not empty count.

    Args:
        both_UL: tokens on which both latents fire, in float64.
        upper_U: tokens on which each upper latent fires.
        lower_L: tokens on which each lower latent fires.
        n: number of tokens.

    Returns:
        The estimate [U, L] in bits; its bias [U, L] in bits, to be subtracted.

    Source: Miller 1955; Panzeri and Treves 1996.
    """
    upper_U1, lower_1L = upper_U.double()[:, None], lower_L.double()[None]
    cells = (both_UL, upper_U1 - both_UL, lower_1L - both_UL, n - upper_U1 - lower_1L + both_UL)
    margins = ((upper_U1, lower_1L), (upper_U1, n - lower_1L), (n - upper_U1, lower_1L), (n - upper_U1, n - lower_1L))
    bits_UL = joint_UL = torch.zeros_like(both_UL)
    for cell_UL, (row_U1, column_1L) in zip(cells, margins, strict=True):
        bits_UL = bits_UL + _cell_bits(cell_UL, row_U1 * column_1L, n)
        joint_UL = joint_UL + (cell_UL > 0)
    single_UL = sum((side > 0).double() for side in (upper_U1, n - upper_U1, lower_1L, n - lower_1L))
    return bits_UL, (joint_UL - single_UL + 1) / (2 * n * math.log(2))


def _cell_bits(cell_UL: Tensor, product_UL: Tensor, n: int) -> Tensor:
    """Contribution p log2(p / q) of one cell of the joint; q is the product of the margins, 0 log 0 is 0."""
    ratio_UL = torch.where(cell_UL > 0, cell_UL * n / product_UL.clamp(min=1), 1.0)
    return cell_UL / n * ratio_UL.log2()


@dataclass(frozen=True)
class LevelInformation:
    """Mutual information of each measured upper latent with lower latents, in bits."""

    best_child: Tensor
    """With the most informative child, without correction."""
    best_child_null: Tensor
    """With the most informative child after permuting the tokens, mean over permutations, without correction."""
    best_child_corrected: Tensor
    """With the most informative child, bias-corrected, minus the bias-corrected value after permuting the tokens."""
    total_corrected: Tensor
    """Sum over the children, bias-corrected, minus the bias-corrected sum after permuting the tokens."""
    best_of_all: Tensor
    """With the most informative lower latent, child or not: bias-corrected, minus that after permuting the tokens."""


def level_information(
    upper_NU: Tensor, lower_NL: Tensor, parent_L: Tensor, permutations: int, seed: int
) -> tuple[LevelInformation, Tensor]:
    """Measure the information between levels, for upper latents that fire and have children that fire.

    Args:
        upper_NU: whether each upper latent fires on each token.
        lower_NL: whether each lower latent fires on each token.
        parent_L: index of each lower latent's parent, -1 for none.
        permutations: number of permutations of the tokens behind the null.
        seed: seed of the permutations.

    Returns:
        The information; which upper latents [U] are measured.
    """
    n = len(upper_NU)
    upper_U, lower_L = upper_NU.sum(0), lower_NL.sum(0)
    is_child_UL = (parent_L[None] == torch.arange(len(upper_U))[:, None]) & (lower_L > 0)
    measured_U = (upper_U > 0) & is_child_UL.any(1)

    def estimate(fires_NU: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        bits_UL, bias_UL = mutual_information(joint_counts(fires_NU, lower_NL), upper_U, lower_L, n)
        best_U = torch.where(is_child_UL, bits_UL, -math.inf).amax(1)
        corrected_UL = bits_UL - bias_UL
        corrected_U = torch.where(is_child_UL, corrected_UL, -math.inf).amax(1)
        total_U = torch.where(is_child_UL, corrected_UL, 0.0).sum(1)
        return best_U[measured_U], corrected_U[measured_U], total_U[measured_U], corrected_UL.amax(1)[measured_U]

    best, corrected, total, best_of_all = estimate(upper_NU)
    generator = torch.Generator().manual_seed(seed)
    nulls = [estimate(upper_NU[torch.randperm(n, generator=generator)]) for _ in range(permutations)]
    null, null_corrected, null_total, null_of_all = (torch.stack(draws).mean(0) for draws in zip(*nulls, strict=True))
    above_chance = corrected - null_corrected, total - null_total, best_of_all - null_of_all
    return LevelInformation(best, null, *above_chance), measured_U


def summarize_information(
    upper_NU: Tensor, lower_NL: Tensor, parent_L: Tensor, permutations: int, seed: int
) -> dict[str, float | None]:
    """Average `level_information` over the measured upper latents.

    Args:
        upper_NU: whether each upper latent fires on each token.
        lower_NL: whether each lower latent fires on each token.
        parent_L: index of each lower latent's parent, -1 for none.
        permutations: number of permutations of the tokens behind the null.
        seed: seed of the permutations.

    Returns:
        Means in bits by metric name, None where no upper latent is measured; `parents`, the number of measured upper
        latents; `childless`, the share of upper latents that are no latent's parent.
    """
    information, measured_U = level_information(upper_NU, lower_NL, parent_L, permutations, seed)
    null, best = _mean_or_none(information.best_child_null), _mean_or_none(information.best_child)
    return {
        "best_child_bits": _mean_or_none(information.best_child_corrected),
        "best_child_null_bits": null,
        "best_child_ratio": best / null if null and best is not None else None,
        "total_bits": _mean_or_none(information.total_corrected),
        "best_of_all_bits": _mean_or_none(information.best_of_all),
        "parents": float(measured_U.sum()),
        "joint_beyond_best_bits": joint_beyond_best(upper_NU, lower_NL, parent_L),
        "joint_beyond_best_shuffled_bits": joint_beyond_best(upper_NU, lower_NL, shuffled_groups(parent_L, seed)),
        "childless": 1 - len(parent_L[parent_L >= 0].unique()) / upper_NU.shape[1],
    }


def joint_beyond_best(upper_NU: Tensor, lower_NL: Tensor, parent_L: Tensor) -> float | None:
    """Measure how much more the children of a latent tell of its firing together than the best of them does.

    Only firing under the parent counts, as if the parent gated its children. So an SAE whose gate makes children fire
    with their parent by construction has no advantage over one without.

    Args:
        upper_NU: whether each upper latent fires on each token.
        lower_NL: whether each lower latent fires on each token.
        parent_L: index of each lower latent's parent, -1 for none.

    Returns:
        Mean over the parents with children that fire of: information in bits with the firing of any child, minus that
        with the firing of the best child, both bias-corrected; None without such parents.
    """
    n, differences = len(upper_NU), []
    for parent in parent_L[parent_L >= 0].unique().tolist():
        fires_N, children_NC = upper_NU[:, parent], lower_NL[:, parent_L == parent]
        under_NC = children_NC & fires_N[:, None]
        counts_C = torch.cat([under_NC.any(1, keepdim=True), under_NC], dim=1).sum(0)  # any child first
        if counts_C[0]:
            bits_1C, bias_1C = mutual_information(counts_C[None].double(), fires_N.sum()[None], counts_C, n)
            joint, *each = (bits_1C - bias_1C)[0].tolist()
            differences.append(joint - max(each))
    return sum(differences) / len(differences) if differences else None


def shuffled_groups(parent_L: Tensor, seed: int) -> Tensor:
    """Return the parents [L] with the children exchanged at random, each parent with as many as before."""
    parent_L, children = parent_L.clone(), (parent_L >= 0).nonzero().squeeze(1)
    order = torch.randperm(len(children), generator=torch.Generator().manual_seed(seed))
    parent_L[children] = parent_L[children[order]]
    return parent_L


def _mean_or_none(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None
