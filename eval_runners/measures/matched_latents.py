"""Latents of one SAE beside the latents of another that write the most similar directions.

Shapes: D = d_in, S = d_sae, N tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from eval_runners.measures.ablation import in_float32
from eval_runners.measures.firing import Firing, collect_firing
from eval_runners.measures.latent_sheet import make_sheet
from eval_runners.measures.statistics import match_rows
from sae_variants.common.console import progress

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor
    from transformer_lens import HookedTransformer

    from eval_runners.measures.latent_choice import LatentChoice
    from sae_variants.language_model.target import Target

MATCHED = 2048
"""Latents of the first SAE that take part in the matching, whose time grows with their square."""


def describe_matched_latents(
    saes: tuple[SAE[Any], SAE[Any]],
    target: Target,
    model: HookedTransformer,
    choice: LatentChoice,
    n_contexts: int,
    context_size: int,
    seed: int,
) -> dict[str, Any]:
    """Measure the chosen latents of the first SAE, and of the second those that match them.

    Args:
        saes: in inference form, both for the target's hook.
        target: the hook and the text.
        model: the target's language model.
        choice: latents of the first SAE.
        n_contexts: held-out contexts to read.
        context_size: tokens in a context, BOS included.
        seed: as for `describe_latents`.

    Returns:
        As `describe_latents`, with the second SAE as `other` in `about`. Each latent also has `cosine`, of decoder
        rows, and `match`: the `row` of the second SAE's latent, and the `correlation` of both latents' activations.
        Both are None for a latent that is left without a match. `nearest_other` is the number, cosine and label of
        the second SAE's nearest latent, which may match another one.

    Raises:
        UsageError: as for `describe_latents`.
    """
    choice.check_exist(saes[0].cfg.d_sae)
    firings = [collect_firing(sae, target, model, n_contexts, context_size) for sae in saes]
    chosen = choice.choose_some(firings[0], seed)
    matches = match_latents(saes[0].W_dec, saes[1].W_dec, firings[0], firings[1], chosen)
    sheet, other = (make_sheet(sae, target, model, firing, seed) for sae, firing in zip(saes, firings, strict=True))
    rows = []
    with in_float32(model):
        for latent in progress(chosen, "latents"):
            row = {**sheet.describe(latent), "cosine": None, "match": None}
            row["nearest_other"] = other.relations.nearest_to(saes[0].W_dec[latent])
            if latent in matches:
                number, row["cosine"] = matches[latent]
                correlation = correlate(firings[0], latent, firings[1], number)
                row["match"] = {"correlation": correlation, "row": other.describe(number)}
            rows.append(row)
    return {"about": sheet.about() | {"latents": choice.text, "other": other.about()}, "latents": rows}


def match_latents(
    W_dec_SD: Tensor, other_SD: Tensor, firing: Firing, other_firing: Firing, chosen: list[int]
) -> dict[int, tuple[int, float]]:
    """Match latents that fire one to one, so that the sum of the cosines of their decoder rows is largest.

    Args:
        W_dec_SD: decoder of the first SAE.
        other_SD: decoder of the second SAE.
        firing: firings of the first SAE.
        other_firing: firings of the second SAE.
        chosen: latents whose matches are sought. With them, the most frequent others of the first SAE take part, so
            that no latent gets a match that suits another one better; `MATCHED` at most.

    Returns:
        Chosen latent -> number and cosine of its match, for those that have one.
    """
    counts_S = firing.counts_S().clone()
    counts_S[chosen] += firing.ids_CT.numel() + 1
    ids_M = counts_S.argsort(descending=True, stable=True)[: max(MATCHED, len(chosen))]
    ids_M = ids_M[firing.counts_S()[ids_M] > 0]
    other_ids_M = (other_firing.counts_S() > 0).nonzero().squeeze(1)
    rows, others = (
        W_dec.detach()[ids.to(W_dec.device)].float().cpu().numpy()
        for W_dec, ids in ((W_dec_SD, ids_M), (other_SD, other_ids_M))
    )
    pairs = zip(*match_rows(rows, others), strict=True)
    matches = {int(ids_M[left]): (int(other_ids_M[right]), float(cosine)) for left, right, cosine in pairs}
    return {latent: matches[latent] for latent in chosen if latent in matches}


def correlate(firing: Firing, latent: int, other_firing: Firing, other: int) -> float | None:
    """Pearson correlation of two latents' activations over the tokens that are not special.

    Returns:
        None if the activation of one never varies.
    """
    kept_CT = ~firing.special_CT
    acts_N, others_N = firing.acts_CT(latent)[kept_CT], other_firing.acts_CT(other)[kept_CT]
    correlation = float(torch.corrcoef(torch.stack([acts_N, others_N]).double())[0, 1])
    return None if math.isnan(correlation) else correlation
