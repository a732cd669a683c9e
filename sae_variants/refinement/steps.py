"""Refinement of an encoder: it encodes again, from an input in which what the last code left is stronger.

    x_0 = x,        x_(t+1) = x_t + η_t (x - decode(encode_t(x_t))),        f = encode_T(x_T)

Since an encoder is linear before its activation function, this is the refinement of its pre-activations,
p_(t+1) = p_t + η_t (x - x̂_t) W_enc: a step of LISTA (Gregor and LeCun, ICML 2010) whose matrices are those of the SAE.

Shapes: D = d_in, T refinement steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def refined_input(
    x: Tensor,
    step_sizes: Iterable[float | Tensor],
    encode: Callable[[Tensor, int], Any],
    decode: Callable[[Any], Tensor],
) -> Tensor:
    """Return the input x_T [..., D] of the last encoding.

    Args:
        x: Inputs [..., D].
        step_sizes: η of the T steps; none of them returns x itself.
        encode: Function from an input and the number of its step to a code.
        decode: Function from a code to a reconstruction [..., D] of x.
    """
    shifted = x
    for step, step_size in enumerate(step_sizes):
        shifted = shifted + step_size * (x - decode(encode(shifted, step)))
    return shifted
