"""Sparsity of the change of logits that ablating a latent at one token causes.

Source: Gao et al., arXiv 2406.04093, section 4.5.
Shapes: C contexts, T tokens of a context without BOS, V = vocabulary, A = tokens that are compared, D = d_in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eval_runners.data.heldout import prepend_bos
from eval_runners.measures.ablation import Ablation
from eval_runners.measures.statistics import random_direction
from sae_variants.common.console import progress

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

    from eval_runners.measures.sampled_latents import SampledLatents


def logit_sparsities(
    sae: SAE[Any],
    hook_name: str,
    model: HookedTransformer,
    sampled: SampledLatents,
    tokens_after: int,
    per_latent: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Ablate each sampled latent, and a random direction of the same norm, at single tokens on which it fires.

    Tokens whose document ends within `tokens_after` tokens are not used. Latents without any other token are left out.

    Args:
        sae: an SAE with decoder rows in the residual stream at the hook.
        hook_name: where the SAE reads and writes.
        model: the language model, in float32.
        sampled: the latents, and the text on which they fire.
        tokens_after: A, the number of tokens whose logits are compared; the first is the ablated token.
        per_latent: largest number of contexts, with one token each, in which a latent is ablated.
        seed: seed of the contexts, the tokens and the random directions.

    Returns:
        A row per latent: `latent`, `activation` (the largest that was ablated), and the mean sparsity of the logit
        changes by ablating the latent (`latents`) and a random direction (`random`), NaN where no logit changes;
        `latents_per_token` and `random_per_token`, the same per token.
    """
    generator = torch.Generator().manual_seed(seed)
    document_ends_CT = sampled.special_CT.unfold(1, tokens_after, 1).any(-1)
    rows = []
    for number, latent in enumerate(progress(sampled.latents, "latents")):
        acts_CT = sampled.acts_CTP[:, : document_ends_CT.shape[1], number] * ~document_ends_CT
        contexts = (acts_CT > 0).any(1).nonzero().squeeze(1)
        contexts = contexts[torch.randperm(len(contexts), generator=generator)[:per_latent]]
        if not len(contexts):
            continue
        tokens = [int(torch.multinomial((acts_CT[c] > 0).float(), 1, generator=generator)) for c in contexts.tolist()]
        ids_CT = sampled.ids_CT[contexts]
        compared_CT, ablated_CT = torch.zeros(ids_CT.shape, dtype=torch.bool), torch.zeros(ids_CT.shape)
        for row, (context, token) in enumerate(zip(contexts.tolist(), tokens, strict=True)):
            compared_CT[row, token : token + tokens_after] = True
            ablated_CT[row, token] = acts_CT[context, token]
        ablation = Ablation(model, hook_name, prepend_bos(ids_CT, model), pad(compared_CT, (1, 0)))
        ablated_CT1 = pad(ablated_CT, (1, 0))[..., None]
        row_D = sae.W_dec.detach()[latent].float().cpu()
        directions = {"latents": row_D, "random": random_direction(row_D, generator)}
        sparsities = {}
        for name, direction_D in directions.items():
            change_CAV = ablation.without(ablated_CT1 * direction_D).view(len(contexts), tokens_after, -1)
            sparsities[name] = change_sparsity(change_CAV)
            sparsities[f"{name}_per_token"] = change_sparsity_per_token(change_CAV)
        rows.append({"latent": latent, "activation": float(ablated_CT.max()), **sparsities})
    return rows


def change_sparsity(change_CAV: Tensor) -> float:
    """(L1 / L2)² / (A V) of changes of logits, less the median of each token, mean over contexts.

    It is 1 / (A V) where a single logit changes, and 1 where all change by the same amount.

    Args:
        change_CAV: changes of the logits. Contexts without any change are left out.

    Returns:
        A number in (0, 1], or NaN where no logit of any context changes.
    """
    centred = change_CAV.double() - change_CAV.double().median(-1, keepdim=True).values
    flat = centred.flatten(1)
    changed = flat[flat.any(1)]
    return (changed.abs().sum(1).pow(2) / changed.pow(2).sum(1) / flat.shape[1]).mean().item()


def change_sparsity_per_token(change_CAV: Tensor) -> float:
    """(L1 / L2)² / V of the change of each token's logits, less their median, mean over tokens weighted by L2².

    It does not depend on how many of the tokens change: 1 where all logits of one token change by the same amount.

    Args:
        change_CAV: changes of the logits.

    Returns:
        A number in (0, 1], or NaN where no logit changes.
    """
    change = change_CAV.double().flatten(0, 1)
    centred = change - change.median(-1, keepdim=True).values
    return (centred.abs().sum(1).pow(2).sum() / centred.pow(2).sum() / centred.shape[1]).item()
