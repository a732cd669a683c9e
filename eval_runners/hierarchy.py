"""hierarchy: do the upper latents of a two-level SAE stand for their children, and does the model listen to them?

Information: bits between the firing of an upper latent and of its children, less those of permuted tokens; a child is a
lower latent whose parent it is. Clustering: the lower latents as grouped by their parents, beside k-means and
agglomerative clustering of their decoder rows into as many groups. Causes: where a latent fires, what it writes is
taken out of the residual stream, against a random direction of the same norm, and against what its children write.

An SAE of one level has neither of the first two; the third is of its own latents. Shapes: N tokens, D = d_in, L lower
latents, U upper latents, or the latents of an SAE of one level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from eval_runners.contract.contract import Direction, Evaluation, Metric

NAME = "hierarchy"
CATEGORIES = ("information", "clustering", "causes")
CLUSTERINGS = ("kmeans", "agglomerative")
PARTITIONS = ("learned", *CLUSTERINGS, "shuffled")


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 256
    """Held-out contexts that are read."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    permutations: int = 5
    """Times that tokens are permuted for the information that chance gives."""
    n_latents: int = 48
    """Latents whose causes are traced, drawn from those that fire in enough contexts."""
    contexts_per_latent: int = 6
    """Contexts in which a latent is traced."""
    random_directions: int = 2
    """Random directions beside each latent."""
    seed: int = 0
    """Seed of permutations, clusterings, draws and directions."""


def _of_partition(by: str) -> Direction:
    return "higher" if by == PARTITIONS[0] else "neither"


_NAMES: dict[str, tuple[tuple[str, str, Direction], ...]] = {
    "information": (
        ("best_child_bits", "bits with the best child, above chance", "higher"),
        ("best_child_null_bits", "bits with the best child of permuted tokens", "neither"),
        ("best_child_ratio", "bits with the best child / of permuted tokens", "higher"),
        ("total_bits", "bits with each child, above chance, summed over children", "higher"),
        ("best_of_all_bits", "bits with the best lower latent, child or not", "neither"),
        ("parents", "upper latents that fire and have children that do", "neither"),
        ("childless", "share of upper latents without a child", "lower"),
    ),
    "clustering": (
        *((f"silhouette_{by}", f"silhouette (cosine), {by}", _of_partition(by)) for by in PARTITIONS),
        *(
            (f"coactivation_{by}", f"co-activation within groups (Jaccard), {by}", _of_partition(by))
            for by in PARTITIONS
        ),
        *((f"ari_{by}", f"adjusted Rand index with {by}", "neither") for by in CLUSTERINGS),
        *((f"nmi_{by}", f"normalised mutual information with {by}", "neither") for by in CLUSTERINGS),
    ),
    "causes": (
        ("kl", "KL without the latent, nats", "higher"),
        ("kl_low", "its 95 % interval, from", "neither"),
        ("kl_high", "to", "neither"),
        ("kl_random", "KL without a random direction of that norm", "neither"),
        ("kl_random_low", "its 95 % interval, from", "neither"),
        ("kl_random_high", "to", "neither"),
        ("kl_median", "KL without the median latent", "higher"),
        ("kl_random_median", "the same, random direction", "neither"),
        ("kl_excess", "KL less that without the random direction, latent by latent", "higher"),
        ("kl_excess_low", "its 95 % interval, from", "neither"),
        ("kl_excess_high", "to", "neither"),
        ("kl_ratio", "KL / random", "higher"),
        ("top_change", "change of the likeliest token's log-probability", "higher"),
        ("top_change_random", "the same, random direction", "neither"),
        ("kl_children", "KL without its children", "neither"),
        ("children_share", "share of its change of the logits that its children make (projection)", "higher"),
        ("children_share_low", "its 95 % interval, from", "neither"),
        ("children_share_high", "to", "neither"),
        ("other_children_share", "the same, another latent's children", "neither"),
        ("traced", "latents traced", "neither"),
    ),
}
_SHORT = {
    "best_child_bits": "child bits", "best_child_ratio": "child bits / chance", "silhouette_learned": "silhouette",
    "coactivation_learned": "co-activation", "kl_ratio": "KL / random", "children_share": "children's share",
}  # fmt: skip
METRICS = tuple(
    Metric(name, title, better, f"eval_result_metrics.{category}.{name}", short=_SHORT.get(name, ""))
    for category, described in _NAMES.items()
    for name, title, better in described
)


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    names = tuple(dict.fromkeys(metric.name for metric in METRICS))
    return make_output_class(NAME, EvalConfig, CATEGORIES, names)


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """All metrics that the SAE has, and what was traced of each latent."""
    import torch

    from eval_runners.data.heldout import heldout_tokens, special_mask
    from eval_runners.measures.ablation import in_float32, summarize_traces, trace_sampled
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.measures.information import level_information, mean_or_none
    from eval_runners.store.envelope import make_output
    from sae_variants.common.console import progress
    from sae_variants.common.values import finite_or_none
    from sae_variants.language_model.hooks import hook_activations
    from sae_variants.two_level.saved import TwoLevelSAE, lower_level_of

    require_finite_weights(sae)
    lower = lower_level_of(sae) if isinstance(sae, TwoLevelSAE) else None
    ids_CT = heldout_tokens(target, model, config.n_contexts, config.context_size)
    own_CT = ~special_mask(ids_CT, model)
    activations = hook_activations(model, target.hook_name)
    upper_fires, lower_fires = [], []
    with torch.no_grad():
        for ids, own in progress(list(zip(ids_CT.split(16), own_CT.split(16), strict=True)), "contexts"):
            x_ND = activations(ids)[own.to(model.cfg.device)]
            upper_fires.append((sae.encode(x_ND) > 0).cpu())
            if lower is not None:
                lower_fires.append((lower.encode(x_ND) > 0).cpu())
    upper_NU = torch.cat(upper_fires)
    values: dict[str, dict[str, Any]] = {
        category: dict.fromkeys(n for n, _, _ in _NAMES[category]) for category in _NAMES
    }
    parent_L = None
    if lower is not None and isinstance(sae, TwoLevelSAE):
        lower_NL, parent_L = torch.cat(lower_fires), sae.parent_L.cpu()
        found, counts_U = level_information(upper_NU, lower_NL, parent_L, config.permutations, config.seed)
        chance, best = mean_or_none(found.best_child_null), mean_or_none(found.best_child)
        values["information"] = {
            "best_child_bits": mean_or_none(found.best_child_corrected),
            "best_child_null_bits": chance,
            "best_child_ratio": best / chance if chance and best is not None else None,
            "total_bits": mean_or_none(found.total_corrected),
            "best_of_all_bits": mean_or_none(found.best_of_all),
            "parents": float(counts_U.sum()),
            "childless": 1 - len(parent_L[parent_L >= 0].unique()) / upper_NU.shape[1],
        }
        values["clustering"] |= clustering(lower.W_dec.detach().cpu(), lower_NL, parent_L, config.seed)
    fires_CTU = torch.zeros(*ids_CT.shape, upper_NU.shape[1], dtype=torch.bool)
    fires_CTU[own_CT] = upper_NU
    with in_float32(model):
        rows = trace_sampled(
            sae, lower, parent_L, model, target.hook_name, ids_CT, fires_CTU, n_latents=config.n_latents,
            per_latent=config.contexts_per_latent, random_directions=config.random_directions, seed=config.seed,
        )  # fmt: skip
    values["causes"] |= summarize_traces(rows, config.seed)
    failures = [] if upper_NU.any() else ["no latent fires"]
    if parent_L is not None and not values["information"]["parents"]:
        failures.append("no upper latent that fires has a child that does")
    if broken := [row["latent"] for row in rows if not math.isfinite(row["kl"] + row["kl_random"])]:
        failures.append(f"the effect of {len(broken)} latents is not a number, such as of {broken[0]}")
    output = make_output(NAME, config, finite_or_none(values), sae, target)
    return Evaluation(output, {"latents": rows}, failures)


def clustering(rows_LD: Any, fires_NL: Any, parent_L: Any, seed: int) -> dict[str, float]:
    """Groups by parent beside clusterings of the decoder rows, of the lower latents that fire.

    Shuffled: the same sizes of groups, latents drawn at random. Empty where there are fewer than two groups.
    """
    import numpy as np
    from sklearn.cluster import AgglomerativeClustering, KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    alive_L = fires_NL.any(0) & (parent_L >= 0)
    learned = parent_L[alive_L].numpy()
    groups = len(np.unique(learned))
    if not 2 <= groups < len(learned):
        return {}
    rows = rows_LD[alive_L].double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    partitions = {
        "learned": learned,
        "kmeans": KMeans(groups, random_state=seed).fit_predict(rows),
        "agglomerative": AgglomerativeClustering(groups, metric="cosine", linkage="average").fit_predict(rows),
        "shuffled": np.random.default_rng(seed).permutation(learned),
    }
    fires = fires_NL[:, alive_L].float()
    both = (fires.T @ fires).double().numpy()
    single = np.diag(both)
    jaccard = both / (single[:, None] + single[None] - both)
    found = {}
    for name, labels in partitions.items():
        found[f"silhouette_{name}"] = float(silhouette_score(rows, labels, metric="cosine"))
        pairs = np.triu(labels[:, None] == labels[None], 1)
        found[f"coactivation_{name}"] = float(jaccard[pairs].mean()) if pairs.any() else float("nan")
    for name in CLUSTERINGS:
        found[f"ari_{name}"] = float(adjusted_rand_score(learned, partitions[name]))
        found[f"nmi_{name}"] = float(normalized_mutual_info_score(learned, partitions[name]))
    return found


if __name__ == "__main__":
    from pathlib import Path

    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
