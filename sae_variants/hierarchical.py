"""A dense lower level of latents, and a sparse upper level that reads it and groups its latents under parents.

`two_level.levels` has the equations of the levels. The lower level trains throughout, with a refined encoder
(`refinement.steps`). After a first phase the upper level starts from groups of lower latents that fire together
(`two_level.groups`), and trains on the lower level without a gradient to it; the latents of its group are the children
of an upper latent. With `separate = false` the levels train one after the other and then together, and two terms can
make the children of a parent similar:

    λ_cos · mean over lower latents i of 1 - cos(row of i, row of its parent)
    λ_21 · Σ over groups G of siblings of √|G| · |f_G|₂        an L2,1 norm: few groups fire, not few latents

The upper level is scored as `hierarchical`, the lower as `hierarchical:lower`. `k` is that of the upper level, per
token, averaged over the batch. Related work: in H-SAE (arXiv 2506.01197) parents gate their children; Matryoshka SAEs
(arXiv 2503.17547) nest dictionaries.

Shapes: N tokens, D = d_in, L lower latents, U = d_sae upper latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK
from sae_variants.registry.variants import register
from sae_variants.two_level.config import TwoLevelTrainingSAEConfig
from sae_variants.two_level.levels import Level
from sae_variants.two_level.saved import LOWER, NO_PARENT
from sae_variants.two_level.training import TwoLevelTrainingSAE


@dataclass
class HierarchicalTrainingSAEConfig(TwoLevelTrainingSAEConfig):
    """Config of `hierarchical`."""

    sparsity: Literal["batchtopk", "l1"] = "batchtopk"
    """Source of sparsity: BatchTopK in each level, or ReLU with L1 penalties."""
    l1_coefficient: float = 2.0
    """β₂, weight of the upper level's L1 penalty, which determines L0 instead of k; 0 disables it."""
    lower_l1_coefficient: float = 1.0
    """β₁, weight of the lower level's L1 penalty, which must be below β₂."""
    cosine_coefficient: float = 0.0
    """λ_cos, weight of the distance between lower latents and their parents; 0 disables it."""
    group_coefficient: float = 0.0
    """λ_21, weight of the L2,1 norm over groups of siblings; 0 disables it."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity not in ("batchtopk", "l1"):
            raise ValueError(f"sparsity must be batchtopk or l1, not {self.sparsity!r}")
        for field in ("cosine_coefficient", "group_coefficient"):
            if self.separate and getattr(self, field):
                raise ValueError(f"{field} needs separate=false: it acts on the lower level")

    @override
    def not_progressive(self) -> str:
        if self.sparsity == "batchtopk":
            return super().not_progressive()
        beta, lower_beta = self.l1_coefficient, self.lower_l1_coefficient
        reason = f"lower_l1_coefficient = {lower_beta:g} must be below l1_coefficient = {beta:g}"
        return reason if 0 < beta <= lower_beta else ""


@register(HierarchicalTrainingSAEConfig)
class HierarchicalTrainingSAE(TwoLevelTrainingSAE):
    """Two levels in training, with the terms for the children of a parent."""

    cfg: Any

    @override
    def activation(self, k: float) -> nn.Module:
        return nn.ReLU() if self.cfg.sparsity == "l1" else BatchTopK(k)

    @override
    def sparsity_losses(self, level: Level, name: str, x_ND: Tensor) -> dict[str, Tensor]:
        beta = self.cfg.lower_l1_coefficient if name == LOWER else self.cfg.l1_coefficient
        return {"l1_loss": beta * level.acts.sum(-1).mean()} if self.cfg.sparsity == "l1" and beta else {}

    @override
    def joint_losses(self, lower: Level, upper: Level) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        has_terms = self.cfg.cosine_coefficient or self.cfg.group_coefficient
        if not has_terms or (self.parent_L == NO_PARENT).all():
            return losses
        if self.cfg.cosine_coefficient:
            losses["cosine_loss"] = self.cfg.cosine_coefficient * cosine_loss(lower.rows, upper.rows, self.parent_L)
        if self.cfg.group_coefficient:
            losses["group_loss"] = self.cfg.group_coefficient * group_loss(lower.acts, self.parent_L, self.cfg.d_sae)
        return losses


def cosine_loss(rows_LD: Tensor, parent_rows_UD: Tensor, parent_L: Tensor) -> Tensor:
    """Return the mean over lower latents of 1 - cos to their parent, between 0 and 2.

    Args:
        rows_LD: Decoder rows [L, D] of lower latents, of unit norm.
        parent_rows_UD: Decoder rows [U, D] of upper latents, of unit norm.
        parent_L: Index [L] of each lower latent's parent.
    """
    has_parent_L = parent_L != NO_PARENT
    cosine_L = (rows_LD * parent_rows_UD[parent_L.clamp(min=0)]).sum(-1)
    return torch.where(has_parent_L, 1 - cosine_L, 0.0).mean()


def group_loss(acts_NL: Tensor, parent_L: Tensor, n_parents: int) -> Tensor:
    """Return Σ over groups of √|G| times the Euclidean norm of the group's latents, averaged over tokens.

    Args:
        acts_NL: Lower latents [N, L].
        parent_L: Index [L] of each lower latent's parent.
        n_parents: Number of upper latents.
    """
    has_parent_L = parent_L != NO_PARENT
    acts_NL, parent_L = acts_NL * has_parent_L, parent_L.clamp(min=0)
    squares_NU = acts_NL.new_zeros(len(acts_NL), n_parents).index_add(1, parent_L, acts_NL.pow(2))
    fires = squares_NU > 0
    norms_NU = torch.where(fires, squares_NU, 1).sqrt() * fires  # the slope of the root at 0 is infinite
    sizes_U = torch.bincount(parent_L[has_parent_L], minlength=n_parents).to(acts_NL.dtype)
    return (norms_NU @ sizes_U.sqrt()).mean()
