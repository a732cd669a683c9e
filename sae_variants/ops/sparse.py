"""The products of an autoencoder whose tokens have k latents each; only the encoder's is dense.

    values, ids, _ = encode(x, W_enc, b_enc, b_in, k)      the k largest of (x - b_in) W_enc + b_enc, ReLU
    out, _ = decode(values, ids, W_dec, b_dec)             Σ_j values_j · W_dec[ids_j] + b_dec

Equal to the dense products and to their gradients. Between forward and backward N x k numbers are kept, not N x S: the
dense pre-activations exist for some rows at a time. The gradient of a latent's weights is a sum over the tokens on
which it fires, so pairs of token and latent are sorted by latent and summed as bags. Runs wherever PyTorch does.

Shapes: N tokens, n of them, D = d_in, S = d_sae, d of them, k latents of a token, R rows at a time, G groups of g.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = {"cpu": 256}
"""Tokens whose pre-activations exist at a time: of fewer the product is slower, more take memory;"""
ROWS_ELSEWHERE = 4096
"""on other devices so many that there is work for all of it."""
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether products of float32 may be oneDNN's, on a CPU for which it has code of its own."""
GROUP = 64
DENSEST = 0.1
"""Share of a matrix that is not 0 from which a product is faster than bags."""
_NONE = slice(0, 0)


def encoder_product(x_ND: Tensor, W_DS: Tensor, b_S: Tensor | None = None) -> Tensor:
    """x W + b [N, S]. On CPUs by oneDNN, on some of which it takes half the time of what PyTorch has for float32."""
    plain = x_ND.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x_ND.dtype == W_DS.dtype
    if ONEDNN and plain and x_ND.dtype == torch.float32 and x_ND.numel() and W_DS.numel():
        W_SD = W_DS.T if W_DS.is_contiguous() else W_DS.T.contiguous()  # of other strides it is slow beyond measure
        return torch.ops.mkldnn._linear_pointwise(x_ND.contiguous(), W_SD, b_S, "none", [], "")
    return x_ND @ W_DS if b_S is None else torch.addmm(b_S, x_ND, W_DS)


def top_k(pre_RS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and their places [R, k], in any order.

    They lie in the k groups with the largest maxima, so where groups are many only those are searched.
    """
    R, S = pre_RS.shape
    if S % GROUP or 4 * k * GROUP > S:
        values, places = torch.topk(pre_RS, k, dim=-1, sorted=False)
        return values, places
    groups_Rk = pre_RS.view(R, -1, GROUP).amax(-1).topk(k, dim=-1, sorted=False).indices
    rows_R1 = torch.arange(R, device=pre_RS.device)[:, None] * (S // GROUP)
    candidates = pre_RS.view(-1, GROUP).index_select(0, (rows_R1 + groups_Rk).flatten()).view(R, -1)
    values, places = candidates.topk(k, dim=-1, sorted=False)
    return values, groups_Rk.gather(1, places // GROUP) * GROUP + places % GROUP


def sums_by_latent(ids_Nk: Tensor, weights_Nk: Tensor, rows_ND: Tensor, S: int) -> Tensor:
    """[S, D]: of each latent the weighted sum of the rows of the tokens on which it fires."""
    flat = ids_Nk.flatten()
    order = flat.argsort(stable=True)
    return _bags(flat[order], order // ids_Nk.shape[1], weights_Nk.flatten()[order], rows_ND, S)


def weighted_rows(ids_Nk: Tensor, weights_Nk: Tensor, rows_SD: Tensor) -> Tensor:
    """[N, D]: of each token the weighted sum of its latents' rows."""
    return F.embedding_bag(ids_Nk, rows_SD, mode="sum", per_sample_weights=weights_Nk.to(rows_SD.dtype))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, W_enc_DS: Tensor, b_enc_S: Tensor, b_in_D: Tensor, k: int, tokens: slice, some_d: Tensor
    ) -> Any:
        x_ND = x_ND - b_in_D  # into the bias of the latents it would go at a loss of digits
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
            grad_x_ND = weighted_rows(ids_Nk, grad_Nk, W_enc_DS.T)
            grad_x_ND[ctx.tokens] += encoder_product(grad_nd, W_enc_DS.T[some_d])
        grad_W_SD = sums_by_latent(ids_Nk, grad_Nk, x_ND, S)
        grad_W_SD.index_add_(0, some_d, encoder_product(grad_nd.T, x_nD))
        # b_in's gradient over all tokens at once: no product of N x S
        return grad_x_ND, grad_W_SD.T, grad_S, -(W_enc_DS @ grad_S), None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values_Nk: Tensor, ids_Nk: Tensor, W_dec_SD: Tensor, b_dec_D: Tensor, acts_nd: Tensor, some_d: Tensor,
        unit_rows: bool,
    ) -> Any:  # fmt: skip
        ctx.unit_rows = unit_rows
        ctx.save_for_backward(values_Nk, ids_Nk, W_dec_SD, acts_nd, some_d)
        out_ND = weighted_rows(ids_Nk, values_Nk, W_dec_SD) + b_dec_D
        return out_ND, encoder_product(acts_nd.to(W_dec_SD.dtype), W_dec_SD[some_d])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor, grad_nD: Tensor) -> Any:  # type: ignore[override]
        values_Nk, ids_Nk, W_dec_SD, acts_nd, some_d = ctx.saved_tensors
        grad_nD = grad_nD.to(W_dec_SD.dtype)
        with torch.enable_grad():  # PyTorch's own gradient of the weights of a bag gathers no rows
            weights_Nk = values_Nk.detach().requires_grad_()
            out_ND = weighted_rows(ids_Nk, weights_Nk, W_dec_SD.detach())
        (grad_Nk,) = torch.autograd.grad(out_ND, weights_Nk, grad_ND)
        grad_W_SD = sums_by_latent(ids_Nk, values_Nk, grad_ND, len(W_dec_SD))
        grad_W_SD.index_add_(0, some_d, encoder_product(acts_nd.to(grad_nD).T, grad_nD))
        if ctx.unit_rows:
            along_S = torch.einsum("sd,sd->s", grad_W_SD, W_dec_SD)
            grad_W_SD.addcmul_(along_S[:, None], W_dec_SD, value=-1)
        return grad_Nk, None, grad_W_SD, grad_ND.sum(0), encoder_product(grad_nD, W_dec_SD[some_d].T), None, None


def encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_in: Tensor, k: int, tokens: slice = _NONE, some: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and places [..., k] of the latents that fire; as fast as it can be where W_enc.T is contiguous.

    And the pre-activations [n, d] of some latents on some of the tokens, whose gradients join those of the others.
    """
    some = _nothing(x) if some is None else some
    values, ids, pre_nd = _Encode.apply(x.flatten(0, -2), W_enc, b_enc, b_in, k, tokens, some)  # type: ignore[misc]
    return values.unflatten(0, x.shape[:-1]), ids.unflatten(0, x.shape[:-1]), pre_nd


def decode(
    values: Tensor, ids: Tensor, W_dec: Tensor, b_dec: Tensor, acts_nd: Tensor | None = None,
    some: Tensor | None = None, unit_rows: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[..., D]; and what activations of some latents alone write [n, D], without bias.

    With `unit_rows`, which must be true of W_dec, the part of its gradient along each row is taken off.
    """
    some = _nothing(values) if some is None else some
    acts_nd = values.new_zeros(0, len(some)) if acts_nd is None else acts_nd
    made: Any = _Decode.apply(values.flatten(0, -2), ids.flatten(0, -2), W_dec, b_dec, acts_nd, some, unit_rows)
    return made[0].unflatten(0, values.shape[:-1]), made[1]


def _nothing(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.long, device=like.device)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, W_DS: Tensor, b_S: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, W_DS)
        return encoder_product(x_ND, W_DS, b_S)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NS: Tensor) -> Any:  # type: ignore[override]
        x_ND, W_DS = ctx.saved_tensors
        grad_NS = grad_NS.to(W_DS.dtype)  # under autocast it is of lower precision
        entries = _few(grad_NS)
        if entries is None:
            grad_x_ND = encoder_product(grad_NS, W_DS.T) if ctx.needs_input_grad[0] else None
            return grad_x_ND, encoder_product(x_ND.T, grad_NS), grad_NS.sum(0)
        tokens, latents = entries
        values, (N, S) = grad_NS[entries], grad_NS.shape
        grad_x_ND = _bags(tokens, latents, values, W_DS.T.contiguous(), N) if ctx.needs_input_grad[0] else None
        order = latents.argsort(stable=True)
        grad_W_SD = _bags(latents[order], tokens[order], values[order], x_ND, S)
        return grad_x_ND, grad_W_SD.T, values.new_zeros(S).index_add_(0, latents, values)


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts_NS: Tensor, rows_SD: Tensor) -> Tensor:
        entries = _few(acts_NS)
        ctx.save_for_backward(acts_NS, rows_SD, *(entries or ()))
        if entries is None:
            return encoder_product(acts_NS, rows_SD)
        return _bags(*entries, acts_NS[entries], rows_SD, len(acts_NS))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> Any:  # type: ignore[override]
        acts_NS, rows_SD, *entries = ctx.saved_tensors
        acts_NS, grad_ND = acts_NS.to(rows_SD.dtype), grad_ND.to(rows_SD.dtype)
        if not entries:
            return encoder_product(grad_ND, rows_SD.T), encoder_product(acts_NS.T, grad_ND)
        tokens, latents = entries
        order = latents.argsort(stable=True)
        grad_SD = _bags(latents[order], tokens[order], acts_NS[tokens, latents][order], grad_ND, len(rows_SD))
        with torch.enable_grad():
            values = acts_NS[tokens, latents].detach().requires_grad_()
            out_ND = _bags(tokens, latents, values, rows_SD.detach(), len(acts_NS))
        (grad,) = torch.autograd.grad(out_ND, values, grad_ND)
        return torch.zeros_like(acts_NS).index_put_((tokens, latents), grad), grad_SD


def _few(matrix_NS: Tensor) -> tuple[Tensor, Tensor] | None:
    """Places of what is not 0, by rows; None where it is more than `DENSEST` of all."""
    if torch.count_nonzero(matrix_NS) > DENSEST * matrix_NS.numel():
        return None
    rows, columns = matrix_NS.nonzero(as_tuple=True)
    return rows, columns


def _bags(bags: Tensor, places: Tensor, weights: Tensor, rows: Tensor, count: int) -> Tensor:
    """[count, D]: of each bag, numbered in rising order, the weighted sum of rows."""
    sizes = torch.bincount(bags, minlength=count)
    return F.embedding_bag(places, rows, sizes.cumsum(0) - sizes, mode="sum", per_sample_weights=weights.to(rows.dtype))


def sparse_gradient_product(x_ND: Tensor, W_DS: Tensor, b_S: Tensor) -> Tensor:
    """x W + b [N, S], whose gradients take no product where few of the outputs have one."""
    found: Any = _Product.apply(x_ND, W_DS, b_S)
    return found


def decode_sparse(acts_NS: Tensor, rows_SD: Tensor) -> Tensor:
    """What activations write [N, D], without product where few of them fire.

    Those that are 0 get no gradient, as activation functions let none through there.
    """
    found: Any = _Written.apply(acts_NS, rows_SD)
    return found


def sparse_codes(values: Tensor, ids: Tensor, S: int) -> Tensor:
    """The same as a sparse tensor [..., S] without gradient."""
    flat_Nk = ids.flatten(0, -2)
    tokens = torch.arange(len(flat_Nk), device=ids.device).repeat_interleave(ids.shape[-1])
    places = torch.unravel_index(tokens, ids.shape[:-1])
    at = torch.stack([*places, flat_Nk.flatten()])
    return torch.sparse_coo_tensor(at, values.detach().flatten(), (*ids.shape[:-1], S), check_invariants=False)
