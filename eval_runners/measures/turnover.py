"""Turnover of latents between snapshots of a training: which are dead, which recover, and which are lost.

Shapes: N tokens, D = d_in, S = d_sae.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sae_lens import SAE

TOKENS_PER_BATCH = 1024


def firing_latents(sae: SAE[Any], x_ND: Tensor) -> Tensor:
    """Mask [S] of the latents that fire on any of the tokens."""
    with torch.no_grad():
        return torch.stack([(sae.encode(x) > 0).any(0) for x in x_ND.split(TOKENS_PER_BATCH)]).any(0)


def latent_turnover(percents: Sequence[str], fires: Sequence[Tensor]) -> dict[str, float]:
    """Shares of the latents that are dead at each snapshot, and that recover or are lost since the snapshot before.

    Args:
        percents: training progress of each snapshot, such as "25".
        fires: mask [S] of the latents that fire, for each snapshot.

    Returns:
        `dead_P` for each snapshot; `recovered_P` and `lost_P` for each but the first.
    """
    shares = {f"dead_{at}": 1 - _share(fires_S) for at, fires_S in zip(percents, fires, strict=True)}
    for at, before_S, after_S in zip(percents[1:], fires, fires[1:], strict=False):
        shares[f"recovered_{at}"] = _share(after_S & ~before_S)
        shares[f"lost_{at}"] = _share(before_S & ~after_S)
    return shares


def _share(mask_S: Tensor) -> float:
    return mask_S.float().mean().item()
