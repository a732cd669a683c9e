"""Encoder and decoder of an SAE with k latents per token; only the encoder's product is dense.

    values, ids, _ = encode(x, W_enc, b_enc, b_in, k)      the k largest of (x - b_in) W_enc + b_enc, ReLU
    out, _ = decode(values, ids, W_dec, b_dec)             Σ_j values_j · W_dec[ids_j] + b_dec

Values and gradients equal those of the dense products. N x k numbers are kept between forward and backward, not N x S:
the dense pre-activations exist for a few rows at a time. The gradient of a latent's weights is a sum over the tokens on
which it fires, so the pairs of token and latent are sorted by latent and summed as bags.

Some latents can be treated densely, on some of the tokens: the dead ones, for AuxK. Their gradients are added to those
of the others.

Shapes: N tokens, n of them, D = d_in, S = d_sae, d of them, k latents of a token, R rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_variants.common.memory import KEPT_BYTES
from sae_variants.ops.products import encoder_product, sum_by_latent, sum_by_token
from sae_variants.ops.shards import Shards

ROWS = {"cpu": 256}
"""Tokens whose pre-activations exist at a time: fewer make the product slower, more need more memory."""
ROWS_ELSEWHERE = 4096
"""Tokens at a time on other devices, so many that the whole device is used."""
GROUP = 64
"""Latents in a group, of which `top_k` first finds the maximum."""
COUNTERS, COPIES, KEPT, BUFFERS = 64, 15, 3, 30_000_000
"""Bytes of a latent's counters, numbers kept for each number of the batch, freed copies of a matrix of weights that are
kept if they are small, and bytes of libraries, as measured."""
NO_TOKENS = slice(0, 0)
MANY = 8
"""Latents, for each of the k that a token uses, from which `reconstruct_from` is faster than dense products."""


def step_bytes(n_tokens: int, D: int, S: int, device: str) -> int:
    """Return the memory of a step beside weights, gradients and Adam's moments.

    It is that of the pre-activations of a few tokens, before there are gradients, or of copies of the weights of dead
    latents, if nearly all are dead; and of counters of latents, copies of the batch, freed memory and libraries.
    """
    rows = min(n_tokens, ROWS.get(device.partition(":")[0], ROWS_ELSEWHERE))
    freed = KEPT * 4 * D * S if 4 * D * S <= KEPT_BYTES else 0
    return max(4 * rows, 2 * 4 * D) * S + COUNTERS * S + 4 * COPIES * n_tokens * D + freed + BUFFERS


def top_k(pre_RS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of every row and their indices [R, k], in any order.

    They are in the k groups with the largest maxima, so only those are searched if there are many groups.
    """
    R, S = pre_RS.shape
    if S % GROUP or 4 * k * GROUP > S:
        values, ids = torch.topk(pre_RS, k, dim=-1, sorted=False)
        return values, ids
    groups_Rk = pre_RS.view(R, -1, GROUP).amax(-1).topk(k, dim=-1, sorted=False).indices
    rows_R1 = torch.arange(R, device=pre_RS.device)[:, None] * (S // GROUP)
    candidates = pre_RS.view(-1, GROUP).index_select(0, (rows_R1 + groups_Rk).flatten()).view(R, -1)
    values, ids = candidates.topk(k, dim=-1, sorted=False)
    return values, groups_Rk.gather(1, ids // GROUP) * GROUP + ids % GROUP


def keep_largest(pre_nd: Tensor, k: int, shards: Shards | None = None) -> Tensor:
    """Return the ReLU [n, d] of the k largest pre-activations of every row, in all shards, and 0 for the others."""
    top = pre_nd.topk(min(k, pre_nd.shape[1]), dim=-1, sorted=False)
    values = top.values.relu() if shards is None else shards.keep_largest(top.values.relu(), k)
    return torch.zeros_like(pre_nd).scatter(-1, top.indices, values)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, W_enc_DS: Tensor, b_enc_S: Tensor, b_in_D: Tensor, k: int, tokens: slice, some_d: Tensor
    ) -> Any:
        x_ND = x_ND - b_in_D  # subtracted here, because folding it into b_enc loses precision
        rows = ROWS.get(x_ND.device.type, ROWS_ELSEWHERE)
        parts = [top_k(encoder_product(x_RD, W_enc_DS, b_enc_S), k) for x_RD in x_ND.split(rows)]
        values_Nk, ids_Nk = (torch.cat(side) for side in zip(*parts, strict=True))
        values_Nk = values_Nk.relu()
        pre_nd = encoder_product(x_ND[tokens], W_enc_DS.T[some_d].T, b_enc_S[some_d])
        ctx.save_for_backward(x_ND, W_enc_DS, values_Nk, ids_Nk, some_d)
        ctx.tokens = tokens
        ctx.mark_non_differentiable(ids_Nk)
        return values_Nk, ids_Nk, pre_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Nk: Tensor, _: Any, grad_nd: Tensor) -> Any:  # type: ignore[override]
        x_ND, W_enc_DS, values_Nk, ids_Nk, some_d = ctx.saved_tensors
        S, x_nD = W_enc_DS.shape[1], x_ND[ctx.tokens]
        grad_Nk, grad_nd = (grad_Nk * (values_Nk > 0)).to(x_ND.dtype), grad_nd.to(x_ND.dtype)
        grad_S = torch.zeros(S, device=x_ND.device, dtype=torch.promote_types(x_ND.dtype, torch.float32))
        grad_S.index_add_(0, ids_Nk.flatten(), grad_Nk.flatten().to(grad_S.dtype))
        grad_S = grad_S.index_add_(0, some_d, grad_nd.sum(0).to(grad_S.dtype)).to(x_ND.dtype)
        grad_x_ND = None
        if ctx.needs_input_grad[0]:
            grad_x_ND = sum_by_token(ids_Nk, grad_Nk, W_enc_DS.T)
            grad_x_ND[ctx.tokens] += encoder_product(grad_nd, W_enc_DS.T[some_d])
        grad_W_SD = sum_by_latent(ids_Nk, grad_Nk, x_ND, S)
        grad_W_SD.index_add_(0, some_d, encoder_product(grad_nd.T, x_nD))
        # The gradient of b_in is that of all tokens at once, without a product of N x S.
        return grad_x_ND, grad_W_SD.T, grad_S, -(W_enc_DS @ grad_S), None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values_Nk: Tensor,
        ids_Nk: Tensor,
        W_dec_SD: Tensor,
        b_dec_D: Tensor,
        acts_nd: Tensor,
        some_d: Tensor,
        unit_rows: bool,
    ) -> Any:
        ctx.unit_rows = unit_rows
        ctx.save_for_backward(values_Nk, ids_Nk, W_dec_SD, acts_nd, some_d)
        out_ND = sum_by_token(ids_Nk, values_Nk, W_dec_SD) + b_dec_D
        return out_ND, encoder_product(acts_nd.to(W_dec_SD.dtype), W_dec_SD[some_d])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor, grad_nD: Tensor) -> Any:  # type: ignore[override]
        values_Nk, ids_Nk, W_dec_SD, acts_nd, some_d = ctx.saved_tensors
        grad_nD = grad_nD.to(W_dec_SD.dtype)
        with torch.enable_grad():  # PyTorch's own gradient of the weights of a bag gathers no rows
            weights_Nk = values_Nk.detach().requires_grad_()
            out_ND = sum_by_token(ids_Nk, weights_Nk, W_dec_SD.detach())
        (grad_Nk,) = torch.autograd.grad(out_ND, weights_Nk, grad_ND)
        grad_W_SD = sum_by_latent(ids_Nk, values_Nk, grad_ND, len(W_dec_SD))
        grad_W_SD.index_add_(0, some_d, encoder_product(acts_nd.to(grad_nD).T, grad_nD))
        if ctx.unit_rows:
            along_S = torch.einsum("sd,sd->s", grad_W_SD, W_dec_SD)
            grad_W_SD.addcmul_(along_S[:, None], W_dec_SD, value=-1)
        return grad_Nk, None, grad_W_SD, grad_ND.sum(0), encoder_product(grad_nD, W_dec_SD[some_d].T), None, None


def encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_in: Tensor, k: int, tokens: slice = NO_TOKENS, some: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode inputs; fastest if W_enc.T is contiguous.

    Args:
        x: Inputs [..., D].
        W_enc: Encoder [D, S].
        b_enc: Encoder bias [S].
        b_in: Subtracted from the input [D].
        k: Latents that fire per token.
        tokens: The n tokens on which some latents are treated densely.
        some: Indices [d] of these latents.

    Returns:
        Values and indices [..., k] of the latents that fire, and the pre-activations [n, d] of `some` on `tokens`.
    """
    some = _no_latents(x) if some is None else some
    values, ids, pre_nd = _Encode.apply(x.flatten(0, -2), W_enc, b_enc, b_in, k, tokens, some)  # type: ignore[misc]
    return values.unflatten(0, x.shape[:-1]), ids.unflatten(0, x.shape[:-1]), pre_nd


def decode(
    values: Tensor,
    ids: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    acts_nd: Tensor | None = None,
    some: Tensor | None = None,
    unit_rows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Decode latents.

    Args:
        values: Activations [..., k] of the latents that fire.
        ids: Their indices [..., k].
        W_dec: Decoder rows [S, D].
        b_dec: Decoder bias [D].
        acts_nd: Activations [n, d] of some latents that are decoded separately.
        some: Indices [d] of these latents.
        unit_rows: Whether the component of the gradient along each row is removed; rows must have unit norm.

    Returns:
        The output [..., D], and the separate output [n, D], without bias, of `acts_nd`.
    """
    some = _no_latents(values) if some is None else some
    acts_nd = values.new_zeros(0, len(some)) if acts_nd is None else acts_nd
    both: Any = _Decode.apply(values.flatten(0, -2), ids.flatten(0, -2), W_dec, b_dec, acts_nd, some, unit_rows)
    return both[0].unflatten(0, values.shape[:-1]), both[1]


def reconstruct_from(
    x_nD: Tensor,
    some: Tensor,
    k: int,
    W_enc: Tensor,
    b_enc: Tensor,
    b_in: Tensor,
    W_dec: Tensor,
    shards: Shards,
    unit_rows: bool = False,
) -> Tensor:
    """Reconstruct inputs by the k largest of some latents, of which there may be many: nothing of [n, d] is kept.

    Args:
        x_nD: Inputs [n, D].
        some: Indices [d] of the latents.
        k: Latents that fire per token.
        W_enc: Encoder [D, S].
        b_enc: Encoder bias [S].
        b_in: Subtracted from the input [D].
        W_dec: Decoder rows [S, D].
        shards: Where other latents lie.
        unit_rows: As in `decode`.

    Returns:
        The output [n, D], without bias, of this process's latents.
    """
    if not len(some):  # other shards may have some
        shards.keep_largest(x_nD.new_zeros(len(x_nD), 0), k)
        return torch.zeros_like(x_nD)
    values, ids, _ = encode(x_nD, W_enc.T.index_select(0, some).T, b_enc[some], b_in, min(k, len(some)))
    rows = W_dec.index_select(0, some)
    return decode(shards.keep_largest(values, k), ids, rows, torch.zeros_like(b_in), unit_rows=unit_rows)[0]


def _no_latents(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.long, device=like.device)


@torch.compiler.disable
def sparse_codes(values: Tensor, ids: Tensor, S: int) -> Tensor:
    """Return values [..., k] at indices [..., k] as a sparse tensor [..., S] without gradient."""
    flat_Nk = ids.flatten(0, -2)
    tokens = torch.arange(len(flat_Nk), device=ids.device).repeat_interleave(ids.shape[-1])
    indices = torch.stack([*torch.unravel_index(tokens, ids.shape[:-1]), flat_Nk.flatten()])
    return torch.sparse_coo_tensor(indices, values.detach().flatten(), (*ids.shape[:-1], S), check_invariants=False)
