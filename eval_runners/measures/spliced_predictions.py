"""Predictions of a language model whose activations at a hook are replaced.

Shapes: C contexts, T tokens, N predicted tokens, D = d_in, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval_runners.data.heldout import activations_of, special_mask
from sae_variants.common.console import progress
from sae_variants.language_model.hooks import replacing
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CONTEXTS_PER_BATCH = 16


@dataclass(frozen=True)
class SplicedLosses:
    """Cross-entropy and divergence of predictions, nats, mean over predicted tokens."""

    clean: float
    """Cross-entropy of the run whose activations are not replaced."""
    cross_entropy: dict[str, float]
    """Replacement -> cross-entropy."""
    kl: dict[str, float]
    """Replacement -> Kullback-Leibler divergence, clean to replaced."""


def spliced_losses(
    target: Target, model: HookedTransformer, ids_CT: Tensor, replacements: Mapping[str, Callable[[Tensor], Tensor]]
) -> SplicedLosses:
    """Predict the next token without and with each replacement of the activations at the target's hook.

    Special tokens keep their activations. Neither they nor the tokens after them are predicted.

    Args:
        target: the hook.
        model: the target's language model.
        ids_CT: contexts, BOS first.
        replacements: name -> function from activations [C, T, D] to their replacement.
    """
    count, clean = 0, 0.0
    cross_entropy, kl = dict.fromkeys(replacements, 0.0), dict.fromkeys(replacements, 0.0)
    for batch_CT in progress(ids_CT.split(CONTEXTS_PER_BATCH), "contexts"):
        special_CT = special_mask(batch_CT, model).to(model.cfg.device)
        ids = batch_CT.to(model.cfg.device)
        predicted_CT = ~special_CT[:, :-1] & ~special_CT[:, 1:]
        next_N1 = ids[:, 1:][predicted_CT][:, None]
        with torch.no_grad():
            clean_NV = _log_probabilities(model, ids, predicted_CT)
            count += len(next_N1)
            clean -= clean_NV.gather(-1, next_N1).sum().item()
            for name, replace in replacements.items():

                def splice(acts: Tensor, replace: Callable = replace, special_CT: Tensor = special_CT) -> Tensor:
                    return torch.where(special_CT[..., None], acts, replace(acts).to(acts))

                with model.hooks(fwd_hooks=[replacing(target.hook_name, splice)]):
                    spliced_NV = _log_probabilities(model, ids, predicted_CT)
                cross_entropy[name] -= spliced_NV.gather(-1, next_N1).sum().item()
                kl[name] += (clean_NV.exp() * (clean_NV - spliced_NV)).sum().item()
    count = max(count, 1)
    return SplicedLosses(
        clean=clean / count,
        cross_entropy={name: total / count for name, total in cross_entropy.items()},
        kl={name: total / count for name, total in kl.items()},
    )


def mean_activation(target: Target, model: HookedTransformer, ids_CT: Tensor) -> Tensor:
    """Mean activation [D] at the target's hook over the tokens that are not special."""
    sum_D, count = torch.zeros((), dtype=torch.float64, device=model.cfg.device), 0
    for x_CTD, special_CT in activations_of(ids_CT, target, model):
        kept_ND = x_CTD[~special_CT].double()
        sum_D, count = sum_D + kept_ND.sum(0), count + len(kept_ND)
    return (sum_D / max(count, 1)).float()


def _log_probabilities(model: HookedTransformer, ids_CT: Tensor, predicted_CT: Tensor) -> Tensor:
    """Log-probabilities [N, V] of the tokens after those of a mask [C, T - 1]."""
    return model(ids_CT, return_type="logits", prepend_bos=False)[:, :-1][predicted_CT].float().log_softmax(-1)
