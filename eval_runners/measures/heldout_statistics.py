"""Statistics of an SAE's latents on held-out contexts, beside those of the activations that it reads.

Shapes: C contexts, T positions in a context, D = d_in, S = d_sae.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_runners.data.heldout import activations_of
from eval_runners.measures.context_statistics import ContextStatistics
from eval_runners.measures.decoder_neighbours import NeighbourCorrelation
from eval_runners.measures.document_direction import DocumentDirection

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

    from sae_variants.language_model.target import Target

AT_ONCE = 2**23
"""Numbers in a block of latents: 32 MiB. A few blocks are held at a time."""


@dataclass(frozen=True)
class HeldoutStatistics:
    """Statistics of an SAE's latents and of their two linear ceilings on held-out contexts."""

    first: ContextStatistics
    """Latents, on the first half of the contexts."""
    second: ContextStatistics
    """Latents, on the second half."""
    residual: ContextStatistics
    """Channels of the activations that the SAE reads, on the second half."""
    direction: ContextStatistics
    """The document direction of the first half, on the second half."""
    neighbours: NeighbourCorrelation
    """Latents closest to another latent by decoder direction, on the second half."""


@torch.no_grad()
def measure_heldout(
    sae: SAE[Any],
    target: Target,
    model: HookedTransformer,
    ids_CT: Tensor,
    lags: tuple[int, ...],
    bins: int,
    seed: int,
    contexts_per_batch: int,
) -> HeldoutStatistics:
    """Fill all statistics in one pass over held-out contexts.

    Args:
        sae: SAE in inference form.
        target: names the hook.
        model: the target's language model.
        ids_CT: tokens of at least two contexts, BOS included.
        lags: in tokens, increasing.
        bins: bins of positions.
        seed: seed of the shuffled positions.
        contexts_per_batch: contexts in a batch of the language model.
    """
    first, second, residual, direction = (ContextStatistics(lags, bins, seed + i) for i in range(4))
    documents = DocumentDirection()
    half = len(ids_CT) // 2
    for x_CTD, special_CT in activations_of(ids_CT[:half], target, model, contexts_per_batch):
        for acts_CTS, x, special in _encode_blocks(sae, x_CTD, special_CT):
            first.add(acts_CTS, x, special)
        documents.add(x_CTD, special_CT)
    neighbours, direction_D1 = NeighbourCorrelation(sae.W_dec, first.fires_S > 0), documents.direction_D1()
    for x_CTD, special_CT in activations_of(ids_CT[half:], target, model, contexts_per_batch):
        for acts_CTS, x, special in _encode_blocks(sae, x_CTD, special_CT):
            second.add(acts_CTS, x, special)
            neighbours.add(acts_CTS, special)
        residual.add(x_CTD, x_CTD, special_CT)
        direction.add(x_CTD @ direction_D1.to(x_CTD), x_CTD, special_CT)
    return HeldoutStatistics(first, second, residual, direction, neighbours)


def _encode_blocks(sae: SAE[Any], x_CTD: Tensor, special_CT: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Encode a few contexts at a time: a wide SAE has 32 MiB of latents in each."""
    contexts = max(1, AT_ONCE // (x_CTD.shape[1] * sae.cfg.d_sae))
    for x, special in zip(x_CTD.split(contexts), special_CT.split(contexts), strict=True):
        yield sae.encode(x).float(), x, special
