"""Effect of single latents on a language model's predictions, compared with random directions and with children.

Where a latent fires, the vector that it writes is subtracted from the activations at the hook.

Shapes: C contexts, T tokens, P measured positions, D = d_in, V tokens of the vocabulary, U latents, L lower latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eval_runners.measures.ablation import Ablation, projection_share
from eval_runners.measures.statistics import bootstrap_interval, random_direction
from sae_variants.common.console import progress
from sae_variants.language_model.hooks import hook_activations

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer


def trace_sampled(
    sae: SAE[Any],
    lower: SAE[Any] | None,
    parent_L: Tensor | None,
    model: HookedTransformer,
    hook_name: str,
    ids_CT: Tensor,
    fires_CTU: Tensor,
    *,
    n_latents: int,
    per_latent: int,
    random_directions: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Trace a random sample of the latents that fire in enough contexts, and have children if any latent has.

    Args:
        sae: the SAE whose latents are traced.
        lower: the lower level of a two-level SAE, else None.
        parent_L: index of each lower latent's parent, -1 for none; None without lower level.
        model: the language model.
        hook_name: hook of the SAE.
        ids_CT: token ids, BOS included.
        fires_CTU: whether each latent fires on each token.
        n_latents: latents to trace at most.
        per_latent: contexts in which each latent is traced.
        random_directions: random directions compared with each latent.
        seed: seed of latents, contexts and directions.

    Returns:
        The row of `trace_latent` for each latent. `other_children` are those of the latent of the previous row.
    """
    generator = torch.Generator().manual_seed(seed)
    in_context_CU = fires_CTU.any(1)
    eligible_U = in_context_CU.sum(0) >= min(per_latent, len(ids_CT))
    if parent_L is not None:
        eligible_U &= torch.bincount(parent_L.clamp(min=0), minlength=len(eligible_U)) > 0
    candidates = eligible_U.nonzero().squeeze(1)
    latents = candidates[torch.randperm(len(candidates), generator=generator)[:n_latents]].tolist()
    rows = []
    for number, latent in enumerate(progress(latents, "latents")):
        contexts = in_context_CU[:, latent].nonzero().squeeze(1)
        contexts = contexts[torch.randperm(len(contexts), generator=generator)[:per_latent]]
        parents = {"children": latent}
        if len(latents) > 1:
            parents["other_children"] = latents[number - 1]
        ids, fires = ids_CT[contexts], fires_CTU[contexts, :, latent]
        rows.append(
            trace_latent(
                sae, lower, parent_L, model, hook_name, ids, fires, latent, parents, random_directions, generator
            )
        )
    return rows


def trace_latent(
    sae: SAE[Any],
    lower: SAE[Any] | None,
    parent_L: Tensor | None,
    model: HookedTransformer,
    hook_name: str,
    ids_CT: Tensor,
    fires_CT: Tensor,
    latent: int,
    parents: Mapping[str, int],
    random_directions: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Measure the effect of ablating a latent, random directions of the same norm, and children.

    Args:
        sae: the SAE of the latent.
        lower: the lower level of a two-level SAE, else None.
        parent_L: index of each lower latent's parent, -1 for none; None without lower level.
        model: the language model.
        hook_name: hook of the SAE.
        ids_CT: token ids, BOS included.
        fires_CT: where the latent fires: there everything is ablated and measured.
        latent: index of the latent.
        parents: name in the row -> upper latent whose children are ablated.
        random_directions: number of random directions.
        generator: of the random directions.

    Returns:
        latent; places, the number of positions; kl and top_change of the latent, and their means over the random
        directions as `*_random`; for each name of `parents` its `kl_*`, and `*_share`: the projection of its change
        of the logits on the latent's.
    """
    with torch.no_grad():
        x_CTD = hook_activations(model, hook_name)(ids_CT)
        fires_on_device_CT = fires_CT.to(x_CTD.device)
        acts_CT = sae.encode(x_CTD)[..., latent] * fires_on_device_CT
        row_D = sae.W_dec[latent]
    ablation = Ablation(model, hook_name, ids_CT, fires_CT)
    change_PV = ablation.without(acts_CT[..., None] * row_D)
    effect = ablation.effect(change_PV)
    directions = (random_direction(row_D, generator) for _ in range(random_directions))
    randoms = [ablation.effect(ablation.without(acts_CT[..., None] * direction_D)) for direction_D in directions]
    row = {
        "latent": latent,
        "places": int(fires_CT.sum()),
        "kl": effect.kl,
        "top_change": effect.top,
        "kl_random": sum(random.kl for random in randoms) / len(randoms),
        "top_change_random": sum(random.top for random in randoms) / len(randoms),
    }
    if lower is not None and parent_L is not None:
        with torch.no_grad():
            lower_CTL = lower.encode(x_CTD) * fires_on_device_CT[..., None]
        for name, parent in parents.items():
            is_child_L = (parent_L == parent).to(x_CTD.device)
            children_PV = ablation.without((lower_CTL * is_child_L) @ lower.W_dec.detach())
            row[f"{name}_share"] = projection_share(children_PV, change_PV)
            row[f"kl_{name}"] = ablation.effect(children_PV).kl
    return row


AVERAGED = (
    "kl",
    "kl_random",
    "top_change",
    "top_change_random",
    "kl_children",
    "children_share",
    "other_children_share",
)
PAIRED = ("kl", "kl_random", "kl_excess")
WITH_INTERVAL = ("kl", "kl_random", "kl_excess", "children_share")


def summarize_traces(rows: list[dict[str, Any]], seed: int) -> dict[str, float | None]:
    """Average traced latents, with 95 % bootstrap intervals over latents.

    Args:
        rows: rows of `trace_latent`. A value that is not finite, such as the share of a change that is zero, is left
            out.
        seed: seed of the bootstrap.

    Returns:
        Means by column, None where no value is finite; `kl_excess`, of a latent's KL minus its random directions';
        medians; intervals as `*_low` and `*_high`; `kl_ratio`, of the mean KLs; `traced`, the number of latents.
    """
    values: dict[str, float | None] = {"traced": float(len(rows))}
    if not rows:
        return values
    columns = {name: np.array([row[name] for row in rows], float) for name in AVERAGED if name in rows[0]}
    columns["kl_excess"] = columns["kl"] - columns["kl_random"]  # paired: latents differ more than their effects do
    both = np.isfinite(columns["kl_excess"])
    finite = {name: column[np.isfinite(column) & (both | (name not in PAIRED))] for name, column in columns.items()}
    for name, column in finite.items():
        values[name] = float(column.mean()) if len(column) else None
        if name in WITH_INTERVAL and len(column):
            values[f"{name}_low"], values[f"{name}_high"] = bootstrap_interval(column, seed)
    values |= {f"{name}_median": float(np.median(finite[name])) for name in ("kl", "kl_random") if len(finite[name])}
    kl, kl_random = values["kl"], values["kl_random"]
    return values | {"kl_ratio": kl / kl_random if kl is not None and kl_random else None}
