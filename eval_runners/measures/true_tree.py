"""The tree that an SAE's latents form, against the tree of the true features.

Shapes: F features, S latents, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.measures.true_features import FeatureCounts
from sae_variants.two_level.groups import containers

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.synthetic.hierarchy import Hierarchy

    from sae_variants.synthetic.model import SyntheticData

NONE = -1
MOST_PAIRED = 16_384
"""Latents up to which the tree of an SAE that learned none is counted: memory and time grow with their square."""


def has_no_tree(sae: SAE[Any]) -> bool:
    """Whether an SAE learned no tree, so that one is counted."""
    return not (hasattr(sae, "encode_lower") or hasattr(sae, "parent_S"))


def describe_tree(
    sae: SAE[Any], data: SyntheticData, counts: FeatureCounts, lower: FeatureCounts | None = None
) -> dict[str, float | None]:
    """Compare the tree of an SAE's latents with the true one.

    Args:
        sae: In inference form.
        data: The synthetic model.
        counts: Firing of the latents; of pairs, too, if the SAE `has_no_tree`.
        lower: Firing of the lower latents of an SAE with two levels.

    Returns:
        Empty for a model without trees, or if pairs were not counted where they are needed.
    """
    if data.model.hierarchy is None:
        return {}
    truth = true_tree(data.model.hierarchy, data.model.cfg.num_features)
    feature_S = counts.nearest.feature_S
    if lower is not None:
        parent_L: Any = sae.parent_L
        found = learned_tree(parent_L, lower.nearest.feature_S, feature_S, lower.latent_S > 0)
        groups = found.child_E, found.group_E
    elif hasattr(sae, "parent_S"):
        parent_S: Any = sae.parent_S
        found = learned_tree(parent_S, feature_S, feature_S, counts.latent_S > 0)
        groups = found.child_E, found.group_E
    elif counts.pairs_SS is None:
        return {}
    else:
        found = correlated_tree(counts.pairs_SS, counts.tokens, feature_S)
        groups = clustered_groups(sae, len(data.model.hierarchy.roots), feature_S, counts.latent_S > 0)
    return {**score_tree(found, truth), "ari": group_agreement(*groups, truth)}


@dataclass(frozen=True)
class TrueTree:
    """Parent and root of every feature."""

    parent_F: Tensor
    """Parent [F] of a feature; -1 for a root, and for a feature in no tree."""
    root_F: Tensor
    """Root [F] of a feature's tree; -1 for a feature in no tree."""


def true_tree(hierarchy: Hierarchy, num_features: int) -> TrueTree:
    """Return the tree of a synthetic model's features."""
    parent_F = torch.full((num_features,), NONE)
    root_F = torch.full((num_features,), NONE)

    def visit(node: Any, parent: int, root: int) -> None:
        feature = node.feature_index if node.feature_index is not None else parent
        top = root if root != NONE else feature
        if node.feature_index is not None:
            parent_F[feature], root_F[feature] = parent, top
        for child in node.children:
            visit(child, feature, top)

    for root in hierarchy.roots:
        visit(root, NONE, NONE)
    return TrueTree(parent_F, root_F)


@dataclass(frozen=True)
class FoundTree:
    """A tree of latents: rows of the same number belong together."""

    child_E: Tensor
    """Feature that a child's direction is nearest to."""
    parent_E: Tensor
    """Feature that its parent's direction is nearest to."""
    group_E: Tensor
    """Number of the parent latent."""


def correlated_tree(pairs_SS: Tensor, tokens: int, feature_S: Tensor) -> FoundTree:
    """Return the tree of latents that fire together: a latent's parent is its container.

    Args:
        pairs_SS: Tokens on which two latents fire; on the diagonal, those on which one fires.
        tokens: All tokens.
        feature_S: Feature of each latent.
    """
    return learned_tree(containers(pairs_SS, tokens), feature_S, feature_S, pairs_SS.diagonal() > 0)


def learned_tree(parent_L: Tensor, feature_L: Tensor, feature_S: Tensor, alive_L: Tensor) -> FoundTree:
    """Return the tree of latents whose parents are known, as those of an SAE with two levels.

    Args:
        parent_L: Upper latent of each lower one; negative for none.
        feature_L: Feature of each lower latent.
        feature_S: Feature of each upper latent.
        alive_L: Whether a lower latent fires at all.
    """
    keep_L = alive_L & (parent_L >= 0)
    return FoundTree(feature_L[keep_L].cpu(), feature_S[parent_L[keep_L]].cpu(), parent_L[keep_L].cpu())


def clustered_groups(sae: SAE[Any], n_groups: int, feature_S: Tensor, alive_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and groups of the latents that fire, by clustering decoder rows of a flat SAE."""
    from sklearn.cluster import AgglomerativeClustering

    rows = sae.W_dec.detach()[alive_S].float().cpu().numpy()
    groups = AgglomerativeClustering(min(n_groups, len(rows)), metric="cosine", linkage="average").fit_predict(rows)
    return feature_S[alive_S].cpu(), torch.from_numpy(groups)


def score_tree(found: FoundTree, truth: TrueTree) -> dict[str, float]:
    """Compare a found tree with the true one.

    Returns:
        `parent_accuracy`: share of the children, among those whose feature has a parent, whose parent latent is that
        parent; `edge_precision`, `edge_recall` and `edge_f1` of distinct (parent, child) pairs of features. A pair of
        equal features, a latent and its copy, is no edge.
    """
    has_parent_E = truth.parent_F[found.child_E] != NONE
    is_right_E = truth.parent_F[found.child_E] == found.parent_E
    pairs = zip(found.parent_E.tolist(), found.child_E.tolist(), strict=True)
    edges = {(parent, child) for parent, child in pairs if parent != child}
    true_edges = {(int(parent), child) for child, parent in enumerate(truth.parent_F) if parent != NONE}
    right = len(edges & true_edges)
    return {
        "parent_accuracy": float(is_right_E[has_parent_E].float().mean()) if has_parent_E.any() else 0.0,
        "edge_precision": right / len(edges) if edges else 0.0,
        "edge_recall": right / len(true_edges) if true_edges else 0.0,
        "edge_f1": 2 * right / max(len(edges) + len(true_edges), 1),
    }


def group_agreement(feature_E: Tensor, group_E: Tensor, truth: TrueTree) -> float | None:
    """Return the adjusted Rand index of groups of latents and the trees of their features; None without two latents."""
    from sklearn.metrics import adjusted_rand_score

    in_tree_E = truth.root_F[feature_E] != NONE
    if int(in_tree_E.sum()) < 2:
        return None
    return float(adjusted_rand_score(truth.root_F[feature_E][in_tree_E].numpy(), group_E[in_tree_E].numpy()))
