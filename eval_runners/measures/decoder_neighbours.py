"""Latents whose decoder directions lie close together: near-copies, and how their activations correlate.

Shapes: C contexts, T positions in a context, D = d_in, S latents, N latents that count, P chosen latents.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval_runners.measures.autocorrelation import zero_sum

COPY_ABOVE = 0.7
"""Decoder cosine above which two latents are near-copies."""
CHOSEN = 64
"""Latents whose activations are correlated."""
ROWS = 256
"""Decoder rows compared with all others at a time."""


def find_near_copies(W_dec_SD: Tensor, band_S: Tensor, keep_S: Tensor) -> tuple[Tensor, Tensor]:
    """Find the latents that have a near-copy, and those with a near-copy that fires at other positions.

    Args:
        W_dec_SD: decoder.
        band_S: third of the positions in which a latent fires most; -1 for none.
        keep_S: mask of the latents that count.

    Returns:
        Mask [S] of latents with a near-copy; mask [S] of latents with a near-copy in another band.
    """
    copy_S, redundant_S = torch.zeros_like(keep_S), torch.zeros_like(keep_S)
    index_N = keep_S.nonzero().squeeze(1)
    rows_ND, band_N = normalize(W_dec_SD.detach()[index_N].float(), dim=-1), band_S[index_N]
    for start in range(0, len(index_N), ROWS):
        part = slice(start, start + ROWS)
        near = rows_ND[part] @ rows_ND.T > COPY_ABOVE
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = False
        band = band_N[part, None]
        copy_S[index_N[part]] = near.any(1)
        redundant_S[index_N[part]] = (near & (band != band_N) & (band >= 0) & (band_N >= 0)).any(1)
    return copy_S, redundant_S


class NeighbourCorrelation:
    """Correlation between the activations of the latents that lie closest to another one by decoder direction."""

    def __init__(self, W_dec_SD: Tensor, fires_S: Tensor) -> None:
        """Choose the latents.

        Args:
            W_dec_SD: decoder.
            fires_S: mask of the latents to choose from.
        """
        index_N = fires_S.nonzero().squeeze(1)
        rows_ND = normalize(W_dec_SD.detach()[index_N].float(), dim=-1)
        nearest_N = torch.full((len(rows_ND),), -1.0, device=rows_ND.device)
        for start in range(0, len(rows_ND), ROWS):
            cosine = rows_ND[start : start + ROWS] @ rows_ND.T
            cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -1
            nearest_N[start : start + ROWS] = cosine.amax(1)
        chosen_P = nearest_N.topk(min(CHOSEN, len(rows_ND))).indices
        self.latents = index_N[chosen_P[_chain_order(rows_ND[chosen_P])]]
        """[P] chosen latents, neighbours side by side."""
        self.tokens = 0
        self.sum_P = zero_sum()
        self.product_PP = zero_sum()

    def add(self, acts_CTS: Tensor, special_CT: Tensor) -> None:
        """Add a batch of contexts; `special_CT` is the mask of special tokens, which do not count."""
        rows = acts_CTS[..., self.latents][~special_CT].double()
        self.tokens += len(rows)
        self.sum_P = self.sum_P + rows.sum(0)
        self.product_PP = self.product_PP + rows.T @ rows

    def correlation_PP(self) -> Tensor:
        """Pearson correlation [P, P] over the tokens that were added; 0 where a latent never varies."""
        covariance = self.product_PP / self.tokens - torch.outer(self.sum_P, self.sum_P) / self.tokens**2
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        return covariance / torch.outer(deviation, deviation).clamp(min=1e-12)


def _chain_order(rows_PD: Tensor) -> list[int]:
    """Order unit rows so that each is followed by the closest of those that remain."""
    cosine_PP = rows_PD @ rows_PD.T
    order = [0] if len(rows_PD) else []
    while len(order) < len(rows_PD):
        remaining_P = cosine_PP[order[-1]].clone()
        remaining_P[order] = -2
        order.append(int(remaining_P.argmax()))
    return order
