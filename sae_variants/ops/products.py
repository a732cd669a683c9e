"""Matrix products of an SAE: the dense one of the encoder, and weighted sums of few rows.

Shapes: N tokens, D = d_in, S = d_sae, k latents of a token, B bags, M entries of all bags.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN computes float32 products, on CPUs for which it has optimised code."""


def encoder_product(x_ND: Tensor, W_DS: Tensor, b_S: Tensor | None = None) -> Tensor:
    """Return x W + b [N, S].

    On CPUs oneDNN computes it in float32; on some of them it needs half of the time of PyTorch's default.
    """
    if torch.compiler.is_compiling():  # which the custom operator of oneDNN does not survive
        return x_ND @ W_DS if b_S is None else torch.addmm(b_S, x_ND, W_DS)
    plain = x_ND.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x_ND.dtype == W_DS.dtype
    if ONEDNN and plain and x_ND.dtype == torch.float32 and x_ND.numel() and W_DS.numel():
        W_SD = W_DS.T if W_DS.is_contiguous() else W_DS.T.contiguous()  # oneDNN is very slow for other strides
        return torch.ops.mkldnn._linear_pointwise(x_ND.contiguous(), W_SD, b_S, "none", [], "")
    return x_ND @ W_DS if b_S is None else torch.addmm(b_S, x_ND, W_DS)


def sum_bags(bags_M: Tensor, ids_M: Tensor, weights_M: Tensor, rows_SD: Tensor, n_bags: int) -> Tensor:
    """Return the weighted sum of rows in every bag.

    Args:
        bags_M: Number of the bag of each entry [M], in ascending order.
        ids_M: Row of each entry [M].
        weights_M: Weight of each entry [M].
        rows_SD: Rows [S, D].
        n_bags: Number of bags B.

    Returns:
        Sums [B, D].
    """
    starts_B = torch.searchsorted(bags_M, torch.arange(n_bags, device=bags_M.device))
    return F.embedding_bag(ids_M, rows_SD, starts_B, mode="sum", per_sample_weights=weights_M.to(rows_SD.dtype))


def sum_by_latent(ids_Nk: Tensor, weights_Nk: Tensor, rows_ND: Tensor, S: int) -> Tensor:
    """Return, for each latent, the weighted sum [S, D] of the rows of the tokens on which it fires."""
    flat = ids_Nk.flatten()
    order = flat.argsort(stable=True)
    return sum_bags(flat[order], order // ids_Nk.shape[1], weights_Nk.flatten()[order], rows_ND, S)


def sum_by_token(ids_Nk: Tensor, weights_Nk: Tensor, rows_SD: Tensor) -> Tensor:
    """Return, for each token, the weighted sum [N, D] of the rows of its latents."""
    return F.embedding_bag(ids_Nk, rows_SD, mode="sum", per_sample_weights=weights_Nk.to(rows_SD.dtype))
