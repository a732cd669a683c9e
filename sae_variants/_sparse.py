"""The products of an autoencoder whose tokens have k latents each; only the encoder's is dense.

    values, ids = encode(x, W_enc, b_enc, b_in, k)      the k largest of (x - b_in) W_enc + b_enc, ReLU
    out = decode(values, ids, W_dec, b_dec)             Σ_j values_j · W_dec[ids_j] + b_dec

Equal to the dense products and to their gradients. Between forward and backward N x k numbers are kept, not N x S: the
dense pre-activations exist for some rows at a time. The gradient of a latent's weights is a sum over the tokens on
which it fires, so pairs of token and latent are sorted by latent and summed as bags. Runs wherever PyTorch does.

Shapes: N tokens, D = d_in, S = d_sae, k latents of a token, R rows at a time, G groups of g latents.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = {"cpu": 256}
"""Tokens whose pre-activations exist at a time, so many that they stay in the cache;"""
ROWS_ELSEWHERE = 4096
"""on other devices so many that there is work for all of it."""
GROUP = 64


def largest(pre_RS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and their places [R, k], in any order.

    They lie in the k groups with the largest maxima, so where groups are many only those are searched.
    """
    R, S = pre_RS.shape
    if S % GROUP or 4 * k * GROUP > S:
        values, places = torch.topk(pre_RS, k, dim=-1, sorted=False)
        return values, places
    pre_RGg = pre_RS.view(R, -1, GROUP)
    groups_Rk = pre_RGg.amax(-1).topk(k, dim=-1, sorted=False).indices
    candidates = pre_RGg.gather(1, groups_Rk[..., None].expand(R, k, GROUP)).flatten(1)
    values, places = candidates.topk(k, dim=-1, sorted=False)
    return values, groups_Rk.gather(1, places // GROUP) * GROUP + places % GROUP


def sums_by_latent(ids_Nk: Tensor, weights_Nk: Tensor, rows_ND: Tensor, S: int) -> Tensor:
    """[S, D]: of each latent the weighted sum of the rows of the tokens on which it fires."""
    flat = ids_Nk.flatten()
    order = flat.argsort(stable=True)
    counts_S = torch.bincount(flat, minlength=S)
    weights = weights_Nk.flatten()[order].to(rows_ND.dtype)
    tokens, starts = order // ids_Nk.shape[1], counts_S.cumsum(0) - counts_S
    return F.embedding_bag(tokens, rows_ND, starts, mode="sum", per_sample_weights=weights)


def weighted_rows(ids_Nk: Tensor, weights_Nk: Tensor, rows_SD: Tensor) -> Tensor:
    """[N, D]: of each token the weighted sum of its latents' rows."""
    return F.embedding_bag(ids_Nk, rows_SD, mode="sum", per_sample_weights=weights_Nk.to(rows_SD.dtype))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, W_enc_DS: Tensor, b_enc_S: Tensor, b_in_D: Tensor, k: int) -> Any:
        bias_S = b_enc_S - b_in_D @ W_enc_DS
        rows = ROWS.get(x_ND.device.type, ROWS_ELSEWHERE)
        parts = [largest(torch.addmm(bias_S, x_RD, W_enc_DS), k) for x_RD in x_ND.split(rows)]
        values_Nk, ids_Nk = (torch.cat(side) for side in zip(*parts, strict=True))
        values_Nk = values_Nk.relu()
        ctx.save_for_backward(x_ND, W_enc_DS, b_in_D, values_Nk, ids_Nk)
        ctx.mark_non_differentiable(ids_Nk)
        return values_Nk, ids_Nk

    @staticmethod
    def backward(ctx: Any, grad_Nk: Tensor, _: Any) -> Any:  # type: ignore[override]
        x_ND, W_enc_DS, b_in_D, values_Nk, ids_Nk = ctx.saved_tensors
        S = W_enc_DS.shape[1]
        grad_Nk = (grad_Nk * (values_Nk > 0)).to(x_ND.dtype)
        grad_S = grad_Nk.new_zeros(S).index_add_(0, ids_Nk.flatten(), grad_Nk.flatten())
        grad_x_ND = weighted_rows(ids_Nk, grad_Nk, W_enc_DS.T) if ctx.needs_input_grad[0] else None
        # -(x - b_in) would be another N x D; b_in's part is the same for all tokens of a latent
        grad_W_SD = sums_by_latent(ids_Nk, grad_Nk, x_ND, S).addr_(grad_S, b_in_D, alpha=-1)
        return grad_x_ND, grad_W_SD.T, grad_S, -(W_enc_DS @ grad_S), None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_Nk: Tensor, ids_Nk: Tensor, W_dec_SD: Tensor, b_dec_D: Tensor) -> Tensor:
        ctx.save_for_backward(values_Nk, ids_Nk, W_dec_SD)
        return weighted_rows(ids_Nk, values_Nk, W_dec_SD) + b_dec_D

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> Any:  # type: ignore[override]
        values_Nk, ids_Nk, W_dec_SD = ctx.saved_tensors
        with torch.enable_grad():  # PyTorch's own gradient of the weights of a bag gathers no rows
            weights_Nk = values_Nk.detach().requires_grad_()
            out_ND = weighted_rows(ids_Nk, weights_Nk, W_dec_SD.detach())
        (grad_Nk,) = torch.autograd.grad(out_ND, weights_Nk, grad_ND)
        return grad_Nk, None, sums_by_latent(ids_Nk, values_Nk, grad_ND, len(W_dec_SD)), grad_ND.sum(0)


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_in: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and places [..., k] of the latents that fire; as fast as it can be where W_enc.T is contiguous."""
    values, ids = _Encode.apply(x.flatten(0, -2), W_enc, b_enc, b_in, k)  # type: ignore[misc]
    return values.unflatten(0, x.shape[:-1]), ids.unflatten(0, x.shape[:-1])


def decode(values: Tensor, ids: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """[..., D]"""
    out: Any = _Decode.apply(values.flatten(0, -2), ids.flatten(0, -2), W_dec, b_dec)
    return out.unflatten(0, values.shape[:-1])


def codes(values: Tensor, ids: Tensor, S: int) -> Tensor:
    """The same as a sparse tensor [..., S] without gradient."""
    flat_Nk = ids.flatten(0, -2)
    tokens = torch.arange(len(flat_Nk), device=ids.device).repeat_interleave(ids.shape[-1])
    places = torch.unravel_index(tokens, ids.shape[:-1])
    at = torch.stack([*places, flat_Nk.flatten()])
    return torch.sparse_coo_tensor(at, values.detach().flatten(), (*ids.shape[:-1], S), check_invariants=False)
