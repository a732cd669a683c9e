"""Threshold of a trained BatchTopK: calibrated on activations, or a running mean without the bias of its start.

Inference has no batch, so it compares each pre-activation with a threshold. SAELens lets the threshold follow the
smallest activation that fires in each training step, from 0 at a constant rate; after few steps it is far too low.

Shapes: N tokens, S latents.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sae_variants.ops.shards import HERE, Shards

MARGIN = 4
"""A batch of which more than `MARGIN` times k latents per token lie above the threshold counts with that many."""


@torch.no_grad()
def calibrated_threshold(pre_activations: Iterable[Tensor], k: float, shards: Shards = HERE) -> float:
    """Return the threshold above which k latents per token lie, averaged over all tokens; 0 if there are fewer.

    Where that is less than one latent in all, it is the largest pre-activation, above which none lies.

    Args:
        pre_activations: Batches [N, S] of pre-activations.
        k: Latents per token.
        shards: Where other latents and tokens lie.
    """
    kept, tokens, total = [], 0, 0
    for pre_NS in pre_activations:
        values, n_tokens = pre_NS.relu().flatten(), len(pre_NS) * shards.groups
        n = min(max(1, int(MARGIN * k * n_tokens)), len(values) * shards.groups * shards.count)
        kept.append(values[shards.top_k_mask(values, n)])
        tokens, total = tokens + n_tokens, total + n
    largest, rank = torch.cat(kept).double(), int(k * tokens)
    if rank >= total:
        return 0.0
    return shards.ranked(largest, max(1, rank), rank + 1).mean().item()


def running_rate(rate: float, step: int) -> float:
    """Return the rate at which a running mean from 0 has no bias towards 0, as in Adam.

    Args:
        rate: Rate after many steps.
        step: Number of values before this one.
    """
    return rate / (1 - (1 - rate) ** (step + 1))


@torch.no_grad()
def follow_smallest(threshold: Tensor, acts_NS: Tensor, rate: float, shards: Shards = HERE) -> None:
    """Move a threshold, in place, towards the smallest activation that fires; where none fires it stays.

    Args:
        threshold: One number [].
        acts_NS: Activations [N, S] of a training step.
        rate: Share of the way.
        shards: Where other activations of the step lie.
    """
    if not acts_NS.numel():
        return
    smallest = shards.smallest(torch.where(acts_NS > 0, acts_NS, torch.inf).amin()).to(threshold.dtype)
    threshold.lerp_(torch.where(smallest.isinf(), threshold, smallest), rate)
