"""Mutual information between the firing of two sets of latents.

Shapes: N tokens, U upper latents, L lower latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 2**13
"""Tokens whose firing is turned into numbers at a time."""


def joint_counts(upper_NU: Tensor, lower_NL: Tensor) -> Tensor:
    """[U, L] tokens on which both fire; exact, in float64."""
    counts = torch.zeros(upper_NU.shape[1], lower_NL.shape[1], dtype=torch.float64)
    for upper, lower in zip(upper_NU.split(AT_ONCE), lower_NL.split(AT_ONCE), strict=True):
        counts += upper.float().T @ lower.float()
    return counts


def mutual_information(both_UL: Tensor, upper_U: Tensor, lower_L: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """[U, L] bits between firing and firing, as counted over n tokens, and how much too many counting gives.

    That bias is (cells of the joint - cells of one - cells of the other + 1) / 2n nats, of cells that are not empty
    (Miller 1955; Panzeri and Treves 1996).
    """
    upper_U1, lower_1L = upper_U.double()[:, None], lower_L.double()[None]
    cells = (both_UL, upper_U1 - both_UL, lower_1L - both_UL, n - upper_U1 - lower_1L + both_UL)
    margins = ((upper_U1, lower_1L), (upper_U1, n - lower_1L), (n - upper_U1, lower_1L), (n - upper_U1, n - lower_1L))
    bits = joint = torch.zeros_like(both_UL)
    for cell, (row, column) in zip(cells, margins, strict=True):
        bits = bits + _plogp(cell, row * column, n)
        joint = joint + (cell > 0)
    single = sum((side > 0).double() for side in (upper_U1, n - upper_U1, lower_1L, n - lower_1L))
    return bits, (joint - single + 1) / (2 * n * math.log(2))


def _plogp(cell: Tensor, product: Tensor, n: int) -> Tensor:
    ratio = torch.where(cell > 0, cell * n / product.clamp(min=1), 1.0)
    return cell / n * ratio.log2()


@dataclass(frozen=True)
class LevelInformation:
    """Of each upper latent that counts, in bits."""

    best_child: Tensor
    """With the child that tells most, as counted."""
    best_child_null: Tensor
    """The same with tokens permuted, mean over permutations."""
    best_child_corrected: Tensor
    """Both less the bias of counting, the second subtracted from the first."""
    total_corrected: Tensor
    """The same, summed over its children."""
    best_of_all: Tensor
    """With the lower latent that tells most, child or not, less the bias."""


def level_information(
    upper_NU: Tensor, lower_NL: Tensor, parent_L: Tensor, permutations: int, seed: int
) -> tuple[LevelInformation, Tensor]:
    """Bits between levels, and which upper latents [U] count: those that fire, and have children that do.

    Args:
        upper_NU, lower_NL: which latents fire on which token.
        parent_L: index of each lower latent's parent, -1 for none.
    """
    n = len(upper_NU)
    upper_U, lower_L = upper_NU.sum(0), lower_NL.sum(0)
    is_child_UL = (parent_L[None] == torch.arange(len(upper_U))[:, None]) & (lower_L > 0)
    counts_U = (upper_U > 0) & is_child_UL.any(1)

    def of(upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        bits_UL, bias_UL = mutual_information(joint_counts(upper, lower_NL), upper_U, lower_L, n)
        best_U = torch.where(is_child_UL, bits_UL, -math.inf).amax(1)
        corrected_UL = bits_UL - bias_UL
        corrected_U = torch.where(is_child_UL, corrected_UL, -math.inf).amax(1)
        total_U = torch.where(is_child_UL, corrected_UL, 0.0).sum(1)
        return best_U[counts_U], corrected_U[counts_U], total_U[counts_U], corrected_UL.amax(1)[counts_U]

    best, corrected, total, best_of_all = of(upper_NU)
    generator = torch.Generator().manual_seed(seed)
    nulls = [of(upper_NU[torch.randperm(n, generator=generator)]) for _ in range(permutations)]
    null, null_corrected, null_total, _ = (torch.stack(found).mean(0) for found in zip(*nulls, strict=True))
    return LevelInformation(best, null, corrected - null_corrected, total - null_total, best_of_all), counts_U


def mean_or_none(values: Tensor) -> Any:
    return values.double().mean().item() if len(values) else None
