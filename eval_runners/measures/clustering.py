"""Lower latents grouped by their parents, compared with clusterings of their decoder rows.

Shapes: N tokens, D = d_in, L lower latents, of which A fire and have a parent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

CLUSTERINGS = ("kmeans", "agglomerative")
"""Clusterings of the decoder rows into as many groups as there are parents."""
PARTITIONS = ("learned", *CLUSTERINGS, "shuffled")
"""Partitions of the lower latents. learned: by parent; shuffled: the same group sizes, latents assigned at random."""


def compare_partitions(rows_LD: Tensor, fires_NL: Tensor, parent_L: Tensor, seed: int) -> dict[str, float]:
    """Compare the groups of latents with one parent with clusterings of the decoder rows.

    Args:
        rows_LD: decoder rows.
        fires_NL: whether each latent fires on each token.
        parent_L: index of each latent's parent, negative for none.
        seed: seed of k-means and of the shuffled partition.

    Returns:
        For every partition `silhouette_*` (cosine distance) and `coactivation_*` (mean Jaccard index of the tokens on
        which two latents of a group fire); for every clustering `ari_*` and `nmi_*` with the learned groups. Empty
        where the latents that fire have fewer than two parents, or no two of them share a parent.
    """
    import numpy as np
    from sklearn.cluster import AgglomerativeClustering, KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    alive_L = fires_NL.any(0) & (parent_L >= 0)
    learned_A = parent_L[alive_L].numpy()
    groups = len(np.unique(learned_A))
    if not 2 <= groups < len(learned_A):
        return {}
    rows_AD = rows_LD[alive_L].double().numpy()
    rows_AD = rows_AD / np.linalg.norm(rows_AD, axis=1, keepdims=True)
    partitions = {
        "learned": learned_A,
        "kmeans": KMeans(groups, random_state=seed).fit_predict(rows_AD),
        "agglomerative": AgglomerativeClustering(groups, metric="cosine", linkage="average").fit_predict(rows_AD),
        "shuffled": np.random.default_rng(seed).permutation(learned_A),
    }
    jaccard_AA = _coactivation(fires_NL[:, alive_L])
    values: dict[str, float] = {}
    for name, labels_A in partitions.items():
        pairs_AA = np.triu(labels_A[:, None] == labels_A[None], 1)
        values[f"silhouette_{name}"] = float(silhouette_score(rows_AD, labels_A, metric="cosine"))
        values[f"coactivation_{name}"] = float(jaccard_AA[pairs_AA].mean()) if pairs_AA.any() else float("nan")
    for name in CLUSTERINGS:
        values[f"ari_{name}"] = float(adjusted_rand_score(learned_A, partitions[name]))
        values[f"nmi_{name}"] = float(normalized_mutual_info_score(learned_A, partitions[name]))
    return values


def _coactivation(fires_NA: Tensor) -> np.ndarray:
    """Jaccard index [A, A] of the sets of tokens on which two latents fire."""
    import numpy as np

    fires = fires_NA.float()
    both_AA = (fires.T @ fires).double().numpy()
    single_A = np.diag(both_AA)
    return both_AA / (single_A[:, None] + single_A[None] - both_AA)
