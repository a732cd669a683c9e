"""Do the latents that are meant to be slow hold the long-lived features of a synthetic model?

Shapes: F features, S latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.measures.nearest import nearest
from eval_runners.measures.true_features import FeatureCounts
from sae_variants.registry.build import latent_groups

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.synthetic.model import SyntheticData

LONGEST = 0.9
"""Quantile of half-lives above which a feature is among the longest-lived."""


def describe_persistence(
    sae: SAE[Any], data: SyntheticData, counts: FeatureCounts, share: float
) -> dict[str, float | None]:
    """Compare slow latents with others by the half-lives of their features; empty for a model without half-lives.

    Args:
        sae: In inference form.
        data: The synthetic model.
        counts: Firing of the latents.
        share: Share of the latents, by measured autocorrelation, that stands for the slow ones where there are none.
    """
    if data.half_lives_F is None or counts.persistence is None:
        return {}
    half_life_S, alive_S = data.half_lives_F[counts.nearest.feature_S], counts.latent_S > 0
    slow = latent_groups(sae).get("slow")
    n_slow = len(range(*slow.indices(len(alive_S)))) if slow else max(1, round(share * len(alive_S)))
    autocorrelation_S = counts.persistence.correlation_LS()[0].nan_to_num(-1).masked_fill(~alive_S, -2)
    persistent_S, slow_S = torch.zeros_like(alive_S), torch.zeros_like(alive_S)
    persistent_S[autocorrelation_S.topk(n_slow).indices] = True
    slow_S[slow or persistent_S] = True
    matched_S = rate_matched(counts.rate_S, slow_S, alive_S)
    longest_F = data.half_lives_F >= torch.quantile(data.half_lives_F, LONGEST)
    held = nearest(sae.W_dec[slow_S], data.directions_FD[longest_F])
    return {
        "auroc": auroc(half_life_S, slow_S, alive_S),
        "rate_matched_auroc": auroc(half_life_S, slow_S, (slow_S & alive_S) | matched_S),
        "measured_auroc": auroc(half_life_S, persistent_S, alive_S),
        "longest_cosine": float(counts.nearest.cosine_F[longest_F].mean()),
        "slow_longest_cosine": float(held.cosine_F.mean()),
    }


def rate_matched(rate_S: Tensor, group_S: Tensor, alive_S: Tensor) -> Tensor:
    """Return the mask of as many other latents as a group has, each of nearly the firing rate of one in it."""
    matched_S = torch.zeros_like(group_S)
    free = (alive_S & ~group_S).nonzero().squeeze(1)
    for latent in (group_S & alive_S).nonzero().squeeze(1).tolist():
        if not len(free):
            break
        nearest = int((rate_S[free] - rate_S[latent]).abs().argmin())
        matched_S[free[nearest]] = True
        free = torch.cat([free[:nearest], free[nearest + 1 :]])
    return matched_S


def auroc(score_S: Tensor, member_S: Tensor, among_S: Tensor) -> float | None:
    """Return the AUROC of a score for membership in a group, among some latents; None if all or none are members."""
    from sklearn.metrics import roc_auc_score

    members = member_S[among_S].cpu().numpy()
    if members.all() or not members.any():
        return None
    return float(roc_auc_score(members, score_S[among_S].cpu().numpy()))
