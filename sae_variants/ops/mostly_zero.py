"""Products with matrices of which most entries are zero, as latents after BatchTopK or ReLU and their gradients are.

Where at most a share `DENSEST` of the entries is not zero, they are summed as bags; otherwise the product is dense, as
it is on other devices than the CPU, where counting them would stop a step.

Shapes: N tokens, D = d_in, S = d_sae.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_variants.ops.host import reads_are_free
from sae_variants.ops.products import encoder_product, sum_bags

DENSEST = 0.1
"""Share of non-zero entries from which a dense product is faster than bags."""


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, W_DS: Tensor, b_S: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, W_DS)
        return encoder_product(x_ND, W_DS, b_S)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NS: Tensor) -> Any:  # type: ignore[override]
        x_ND, W_DS = ctx.saved_tensors
        grad_NS = grad_NS.to(W_DS.dtype)  # under autocast it has a lower precision
        entries = _few_entries(grad_NS)
        if entries is None:
            grad_x_ND = encoder_product(grad_NS, W_DS.T) if ctx.needs_input_grad[0] else None
            return grad_x_ND, encoder_product(x_ND.T, grad_NS), grad_NS.sum(0)
        tokens, latents = entries
        values, (N, S) = grad_NS[entries], grad_NS.shape
        grad_x_ND = sum_bags(tokens, latents, values, W_DS.T.contiguous(), N) if ctx.needs_input_grad[0] else None
        order = latents.argsort(stable=True)
        grad_W_SD = sum_bags(latents[order], tokens[order], values[order], x_ND, S)
        return grad_x_ND, grad_W_SD.T, values.new_zeros(S).index_add_(0, latents, values)


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts_NS: Tensor, rows_SD: Tensor) -> Tensor:
        entries = _few_entries(acts_NS)
        ctx.save_for_backward(acts_NS, rows_SD, *(entries or ()))
        if entries is None:
            return encoder_product(acts_NS, rows_SD)
        return sum_bags(*entries, acts_NS[entries], rows_SD, len(acts_NS))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> Any:  # type: ignore[override]
        acts_NS, rows_SD, *entries = ctx.saved_tensors
        acts_NS, grad_ND = acts_NS.to(rows_SD.dtype), grad_ND.to(rows_SD.dtype)
        if not entries:
            return encoder_product(grad_ND, rows_SD.T), encoder_product(acts_NS.T, grad_ND)
        tokens, latents = entries
        order = latents.argsort(stable=True)
        grad_SD = sum_bags(latents[order], tokens[order], acts_NS[tokens, latents][order], grad_ND, len(rows_SD))
        with torch.enable_grad():
            values = acts_NS[tokens, latents].detach().requires_grad_()
            out_ND = sum_bags(tokens, latents, values, rows_SD.detach(), len(acts_NS))
        (grad,) = torch.autograd.grad(out_ND, values, grad_ND)
        return torch.zeros_like(acts_NS).index_put_((tokens, latents), grad), grad_SD


def _few_entries(matrix_NS: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return rows and columns of the non-zero entries, by rows; None if the product is dense."""
    if not reads_are_free(matrix_NS) or torch.count_nonzero(matrix_NS) > DENSEST * matrix_NS.numel():
        return None
    rows, columns = matrix_NS.nonzero(as_tuple=True)
    return rows, columns


def sparse_gradient_product(x_ND: Tensor, W_DS: Tensor, b_S: Tensor) -> Tensor:
    """Return x W + b [N, S]; its gradients need no dense product if few of the outputs have a gradient."""
    product: Any = _Product.apply(x_ND, W_DS, b_S)
    return product


def decode_sparse(acts_NS: Tensor, rows_SD: Tensor) -> Tensor:
    """Return acts rows [N, D], without a dense product if few activations are not zero.

    Activations of zero get no gradient, because the activation functions have none there.
    """
    decoded: Any = _Decoded.apply(acts_NS, rows_SD)
    return decoded
