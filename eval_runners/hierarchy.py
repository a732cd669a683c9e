"""Do the upper latents of a two-level SAE stand for their children, and do they matter to the language model?

Information: mutual information in bits between the firing of an upper latent and of its children, minus that after
permuting the tokens. A child of an upper latent is a lower latent whose parent it is. An upper latent abstracts if its
children together tell more of it than the best of them; that counts children only where their parent fires, and is
compared with children of other parents.

Clustering: the lower latents grouped by their parents, compared with k-means and agglomerative clustering of their
decoder rows into as many groups.

Causes: where a latent fires, what it writes is subtracted from the activations. The effect on the model's predictions
is compared with that of a random direction of the same norm, and with that of subtracting what its children write.

An SAE of one level has only causes, of its latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Direction, Evaluation, Evaluator, Metric
from eval_runners.measures.clustering import CLUSTERINGS, PARTITIONS
from sae_variants.language_model.hooks import require_hook

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from sae_variants.language_model.target import Target

CONTEXTS_PER_BATCH = 16


@dataclass(frozen=True)
class Settings:
    """Settings of information, clustering and causes."""

    n_contexts: int = 256
    """Held-out contexts."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    permutations: int = 5
    """Permutations of the tokens, whose mean information is subtracted."""
    n_latents: int = 48
    """Latents whose effect is traced, sampled from those that fire in enough contexts."""
    contexts_per_latent: int = 6
    """Contexts in which each latent is traced."""
    random_directions: int = 2
    """Random directions compared with each latent."""
    seed: int = 0
    """Seed of permutations, clusterings, samples and random directions."""


def _of_partition(partition: str) -> Direction:
    return "higher" if partition == PARTITIONS[0] else "neither"


_METRICS: dict[str, tuple[tuple[str, str, Direction], ...]] = {
    "information": (
        ("best_child_bits", "bits with the best child, above chance", "higher"),
        ("best_child_null_bits", "bits with the best child, tokens permuted", "neither"),
        ("best_child_ratio", "bits with the best child / tokens permuted", "higher"),
        ("total_bits", "bits with each child, above chance, summed over children", "higher"),
        ("best_of_all_bits", "bits with the best lower latent, child or not, above chance", "neither"),
        ("joint_beyond_best_bits", "bits with all children under their parent, beyond the best child's", "higher"),
        ("joint_beyond_best_shuffled_bits", "the same with children of other parents", "neither"),
        ("parents", "upper latents that fire and have children that fire", "neither"),
        ("childless", "share of upper latents without a child", "lower"),
    ),
    "clustering": (
        *((f"silhouette_{name}", f"silhouette (cosine), {name}", _of_partition(name)) for name in PARTITIONS),
        *(
            (f"coactivation_{name}", f"co-activation within groups (Jaccard), {name}", _of_partition(name))
            for name in PARTITIONS
        ),
        *((f"ari_{name}", f"adjusted Rand index with {name}", "neither") for name in CLUSTERINGS),
        *((f"nmi_{name}", f"normalised mutual information with {name}", "neither") for name in CLUSTERINGS),
    ),
    "causes": (
        ("kl", "KL without the latent, nats", "higher"),
        ("kl_low", "KL without the latent, 95 % interval from", "neither"),
        ("kl_high", "KL without the latent, 95 % interval to", "neither"),
        ("kl_random", "KL without a random direction of the same norm, nats", "neither"),
        ("kl_random_low", "KL without a random direction, 95 % interval from", "neither"),
        ("kl_random_high", "KL without a random direction, 95 % interval to", "neither"),
        ("kl_median", "KL without the latent, median over latents", "higher"),
        ("kl_random_median", "KL without a random direction, median over latents", "neither"),
        ("kl_excess", "KL without the latent minus KL without a random direction", "higher"),
        ("kl_excess_low", "KL difference, 95 % interval from", "neither"),
        ("kl_excess_high", "KL difference, 95 % interval to", "neither"),
        ("kl_ratio", "KL without the latent / without a random direction", "higher"),
        ("top_change", "change of the most likely token's log-probability, nats", "higher"),
        ("top_change_random", "the most likely token's change without a random direction, nats", "neither"),
        ("kl_children", "KL without the latent's children, nats", "neither"),
        ("children_share", "share of the change of the logits that the children cause (projection)", "higher"),
        ("children_share_low", "children's share, 95 % interval from", "neither"),
        ("children_share_high", "children's share, 95 % interval to", "neither"),
        ("other_children_share", "share that another latent's children cause", "neither"),
        ("traced", "latents traced", "neither"),
    ),
}
_SHORT = {
    "best_child_bits": "child bits",
    "best_child_ratio": "child bits / chance",
    "silhouette_learned": "silhouette",
    "coactivation_learned": "co-activation",
    "kl_ratio": "KL / random",
    "children_share": "children's share",
}
METRICS = tuple(
    Metric(category, name, title, better, short=_SHORT.get(name, ""))
    for category, metrics in _METRICS.items()
    for name, title, better in metrics
)


class Hierarchy(Evaluator[Settings]):
    """Information, clustering and causes of a hierarchy of latents."""

    settings_class = Settings
    metrics = METRICS
    version = 2

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Refuse hooks that lie after the layers."""
        require_hook(target.hook_name, self.name, embedding=True)
        return settings, {}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Measure what the SAE's levels allow, and trace a sample of its latents."""
        import torch

        from eval_runners.data.heldout import heldout_tokens, special_mask
        from eval_runners.measures.ablation import in_float32
        from eval_runners.measures.causal_trace import summarize_traces, trace_sampled
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.clustering import compare_partitions
        from eval_runners.measures.information import summarize_information
        from sae_variants.gated.saved import TreeSAE
        from sae_variants.language_model.stored import target_activations
        from sae_variants.two_level.saved import TwoLevelSAE, lower_level_of

        require_finite_weights(sae)
        model = context.model
        ids_CT = heldout_tokens(target, model, settings.n_contexts, settings.context_size)
        counted_CT = ~special_mask(ids_CT, model)
        lower, parent_L = None, None
        upper = below = slice(None)
        if isinstance(sae, TwoLevelSAE):
            lower, parent_L = lower_level_of(sae), sae.parent_L.cpu()
        elif isinstance(sae, TreeSAE):  # both levels are latents of the same SAE
            lower, parent_L, upper, below = sae, sae.parent_S, sae.tree.parents, sae.tree.below
        levels = [sae] if lower is None or lower is sae else [sae, lower]
        fires = _firing(levels, target_activations(target, model), ids_CT, counted_CT)
        fires_NU, fires_NL = fires[0], fires[-1]
        values: dict[str, float | None] = {}
        failures = [] if fires_NU.any() else ["no latent fires"]
        if lower is not None and parent_L is not None:
            information = summarize_information(
                fires_NU[:, upper], fires_NL[:, below], parent_L[below], settings.permutations, settings.seed
            )
            partitions = compare_partitions(lower.W_dec.detach().cpu(), fires_NL, parent_L, settings.seed)
            values |= {f"information.{name}": value for name, value in information.items()}
            values |= {f"clustering.{name}": value for name, value in partitions.items()}
            if not information["parents"]:
                failures.append("no upper latent that fires has a child that does")
        fires_CTU = torch.zeros(*ids_CT.shape, fires_NU.shape[1], dtype=torch.bool)
        fires_CTU[counted_CT] = fires_NU
        with in_float32(model):
            rows = trace_sampled(
                sae,
                lower,
                parent_L,
                model,
                target.hook_name,
                ids_CT,
                fires_CTU,
                n_latents=settings.n_latents,
                per_latent=settings.contexts_per_latent,
                random_directions=settings.random_directions,
                seed=settings.seed,
            )
        values |= {f"causes.{name}": value for name, value in summarize_traces(rows, settings.seed).items()}
        if broken := [row["latent"] for row in rows if not math.isfinite(row["kl"] + row["kl_random"])]:
            failures.append(f"the effect of {len(broken)} latents is not finite, such as of latent {broken[0]}")
        return Evaluation(values, {"latents": rows}, failures)


def _firing(
    levels: list[SAE[Any]], at_hook: Callable[[Tensor], Tensor], ids_CT: Tensor, counted_CT: Tensor
) -> list[Tensor]:
    """Whether each latent of each level fires: a mask [N, latents] per level, over the counted tokens."""
    import torch

    from sae_variants.common.console import progress

    parts: list[list[Tensor]] = [[] for _ in levels]
    batches = list(zip(ids_CT.split(CONTEXTS_PER_BATCH), counted_CT.split(CONTEXTS_PER_BATCH), strict=True))
    with torch.no_grad():
        for ids, counted in progress(batches, "contexts"):
            x_CTD = at_hook(ids)
            x_ND = x_CTD[counted.to(x_CTD.device)]
            for level, fires in zip(levels, parts, strict=True):
                fires.append((level.encode(x_ND) > 0).cpu())
    return [torch.cat(fires) for fires in parts]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
