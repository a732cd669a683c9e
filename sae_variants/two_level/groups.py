"""Groups of lower latents that fire together, each around a latent that contains the others.

A latent's container is the more frequent latent whose firing correlates most with its own:

    φ_ij = (P_ij - P_i P_j) / √(P_i (1 - P_i) P_j (1 - P_j))          P: shares of the tokens on which latents fire

The containers with most latents become the upper latents' groups. An upper latent starts as what its group writes
where the container fires: it writes Σ_i P(i | container) ā_i row_i, and reads how far its latents point along that sum.

Shapes: L lower latents, B of them, U upper latents, D = d_in, N tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from sae_variants.two_level.folding import TINY
from sae_variants.two_level.levels import TwoLevels
from sae_variants.two_level.saved import NO_PARENT

LEAST_CORRELATION = 0.2
"""Least φ of a latent and its container."""
ROWS_AT_ONCE = 1024
"""Latents whose correlations with all others are in memory at once."""
COUNTED_STEPS = 64
"""Steps before each use of the groups over which it is counted which lower latents fire together."""


def firing_correlation(pairs_BL: Tensor, count_B: Tensor, count_L: Tensor, tokens: int) -> Tensor:
    """Return φ [B, L] of latents that fire together on `pairs_BL` of so many tokens; 0 for one that never fires.

    Args:
        pairs_BL: Tokens on which a latent of some, and one of all, fire together.
        count_B: Tokens on which each of the former fires.
        count_L: The same of all latents.
        tokens: All tokens.
    """
    rate_B, rate_L = (count.double() / max(tokens, 1) for count in (count_B, count_L))
    scale_BL = (rate_B * (1 - rate_B)).clamp(min=0).sqrt()[:, None] * (rate_L * (1 - rate_L)).clamp(min=0).sqrt()
    above_chance_BL = pairs_BL.double() / max(tokens, 1) - rate_B[:, None] * rate_L
    return torch.where(scale_BL > 0, above_chance_BL / scale_BL.clamp(min=1e-30), 0.0)


def containers(pairs_LL: Tensor, tokens: int, allowed_U: Tensor | None = None) -> Tensor:
    """Return the container [L] of each latent, `NO_PARENT` for none.

    Args:
        pairs_LL: Tokens [L, L] on which two latents fire; on the diagonal, those on which one fires.
        tokens: All tokens.
        allowed_U: Latents that may be containers; None: all.
    """
    count_L, found = pairs_LL.diagonal(), []
    for pairs_BL, count_B in zip(pairs_LL.split(ROWS_AT_ONCE), count_L.split(ROWS_AT_ONCE), strict=True):
        phi_BL = firing_correlation(pairs_BL, count_B, count_L, tokens)
        phi_BL = phi_BL.masked_fill(count_B[:, None] >= count_L, -1.0)
        if allowed_U is not None:
            phi_BL[:, torch.isin(torch.arange(len(count_L), device=count_L.device), allowed_U, invert=True)] = -1.0
        best_B, container_B = phi_BL.max(1)
        found.append(torch.where(best_B >= LEAST_CORRELATION, container_B, NO_PARENT))
    return torch.cat(found)


def largest_groups(container_L: Tensor, count_L: Tensor, n_groups: int) -> Tensor:
    """Return the containers [U] of the largest groups; the most frequent other latents follow if there are fewer."""
    L = len(container_L)
    members_L = torch.bincount(container_L[container_L != NO_PARENT], minlength=L).double()
    return (members_L + count_L / count_L.max().clamp(min=1) / 2).topk(n_groups).indices


def group_links(pairs_LL: Tensor, mean_L: Tensor, container_L: Tensor, container_U: Tensor) -> Tensor:
    """Return what groups write [U, L]: P(i | container) ā_i for the container and its latents, 0 for the others.

    Args:
        pairs_LL: Tokens on which two latents fire.
        mean_L: Mean activation ā [L] of each latent where it fires.
        container_L: Container [L] of each latent.
        container_U: Container [U] of each group.
    """
    given_UL = pairs_LL[container_U] / pairs_LL.diagonal()[container_U].clamp(min=1)[:, None]
    is_member_UL = container_L == container_U[:, None]
    is_member_UL |= torch.arange(len(container_L), device=container_L.device) == container_U[:, None]
    return given_UL.to(mean_L) * mean_L * is_member_UL


def parents_by_container(container_L: Tensor, container_U: Tensor) -> Tensor:
    """Return the upper latent [L] whose group each lower latent is in, `NO_PARENT` for none."""
    upper_L = torch.full_like(container_L, NO_PARENT)
    upper_L[container_U] = torch.arange(len(container_U), device=container_U.device)
    return torch.where(container_L == NO_PARENT, NO_PARENT, upper_L[container_L])


class GroupedLevels(TwoLevels):
    """Two levels of which the upper one can start from groups of the lower one, and has them as its children."""

    pairs_LL: Tensor
    pairs_tokens: Tensor
    container_U: Tensor

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        if cfg.start == "groups":
            device = self.b_dec.device
            self.register_buffer("pairs_LL", torch.zeros(cfg.d_lower, cfg.d_lower, device=device))
            self.register_buffer("pairs_tokens", torch.zeros((), dtype=torch.long, device=device))
            self.register_buffer("container_U", torch.full((cfg.d_sae,), NO_PARENT, device=device))

    @torch.no_grad()
    def count_pairs(self, acts_NL: Tensor, step: int) -> None:
        """Count which lower latents [N, L] fire together, if groups are needed soon."""
        cfg = self.cfg
        ends = (cfg.lower_alone_until, cfg.total_steps) if cfg.start == "groups" and cfg.total_steps else ()
        if not any(end - COUNTED_STEPS <= step < end for end in ends):
            return
        if step in [end - COUNTED_STEPS for end in ends]:
            self.pairs_LL.zero_()
            self.pairs_tokens.zero_()
        fires_NL = (acts_NL > 0).to(self.pairs_LL)
        self.pairs_LL.addmm_(fires_NL.T, fires_NL)
        self.pairs_tokens += len(fires_NL)

    @torch.no_grad()
    def start_from_groups(self) -> None:
        """Initialise upper latents as sums of groups of lower ones that fire together."""
        tokens, count_L = int(self.pairs_tokens), self.pairs_LL.diagonal()
        container_L = containers(self.pairs_LL, tokens)
        self.container_U = largest_groups(container_L, count_L, self.cfg.d_sae)
        mean_L = self.activity_L / (count_L / max(tokens, 1)).clamp(min=1e-6)
        links_UL = group_links(self.pairs_LL, mean_L, container_L, self.container_U)
        rows_LD = F.normalize(self.W_dec_lower, dim=-1)
        links_UL /= (links_UL @ rows_LD).norm(dim=-1, keepdim=True).clamp(min=TINY)
        self.W_links.data[:] = links_UL
        self.W_enc_upper.data[:] = (links_UL @ rows_LD @ rows_LD.T * (links_UL > 0)).T

    @override
    @torch.no_grad()
    def parents(self) -> Tensor:
        if self.cfg.start != "groups" or not self.pairs_tokens or (self.container_U == NO_PARENT).all():
            return super().parents()
        container_L = containers(self.pairs_LL, int(self.pairs_tokens), self.container_U)
        return parents_by_container(container_L, self.container_U)
