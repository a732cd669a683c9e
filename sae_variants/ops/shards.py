"""Where the latents and the tokens of a training lie: here, in one process; `sae_variants.sharded`, in several.

An SAE asks this object wherever a number depends on latents or tokens that another process may hold. In one process
every answer is what was given, so that nothing is added to a step.

Shapes: N tokens, D = d_in, S latents, k candidates of a token, M values; n windows of W tokens, m of them here, and L
latents of their codes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sae_variants.ops.largest import top_k_mask


class Shards:
    """One process, which holds all latents and all tokens."""

    count: int = 1
    """Shards of the latents."""
    groups: int = 1
    """Groups of the tokens."""
    index: int = 0
    """Number of the shard of this process."""

    def rows(self, x_ND: Tensor) -> Tensor:
        """Return the tokens of the batch that this process encodes."""
        return x_ND

    def one_row_in(self, every: int, step: int, n_rows: int) -> slice:
        """Return one in so many of this process's n_rows tokens, others at the next step."""
        return slice(step % every, None, every)

    def once(self, bias_D: Tensor) -> Tensor:
        """Return the bias in one of the shards, and zeros in the others, so that their sum has it once."""
        return bias_D

    def keep_largest(self, values_Nk: Tensor, k: int) -> Tensor:
        """Return the candidates of this shard with 0 for those that are not among the k largest of all shards.

        Args:
            values_Nk: Up to k activations, the largest of this shard.
            k: Latents that fire per token.
        """
        return values_Nk

    def top_k_mask(self, values_M: Tensor, n: int) -> Tensor:
        """Return the mask [M] of those of this process's values that are among the n largest of all processes.

        Of values that equal the n-th largest, so many are kept that there are n: those of the first processes.
        """
        return top_k_mask(values_M, n)

    def top_k_ids(self, values_S: Tensor, n: int) -> Tensor:
        """Return the latents of this shard whose values are among the n largest of all shards."""
        return values_S.topk(n).indices

    def ranked(self, values_M: Tensor, first: int, last: int) -> Tensor:
        """Return those of the values of all processes that are the first-th to the last-th largest."""
        return values_M.topk(last).values[first - 1 :]

    def join(self, partial: Tensor, purpose: str = "reconstructions") -> Tensor:
        """Return the sum over all shards, of which each computes the same loss."""
        return partial

    def join_within(self, partial: Tensor, purpose: str = "reconstructions") -> Tensor:
        """Return the sum over all shards, of which each computes another part of the loss."""
        return partial

    def normalized(self, codes: Tensor, epsilon: float) -> Tensor:
        """Return codes [..., L] over their norm, which is that of the latents of all shards, and at least epsilon."""
        return F.normalize(codes, dim=-1, eps=epsilon)

    def mean(self, x_ND: Tensor) -> Tensor:
        """Return the mean [D] of all tokens of the batch."""
        return x_ND.mean(0)

    def of_all_groups(self, codes_mWL: Tensor) -> tuple[Tensor, int]:
        """Return the codes [n, W, L] of the windows of all groups, and the number of windows before this process's.

        A code that is zero gets no gradient from other groups.
        """
        return codes_mWL, 0

    def of_other_groups(self, values: Tensor, purpose: str) -> Tensor:
        """Return the tensors [...] of the other groups as one [groups - 1, ...]."""
        return values.new_empty(0, *values.shape)

    def over_tokens(self, sums: Tensor, purpose: str = "numbers") -> Tensor:
        """Return sums over this process's tokens as sums over all tokens of the batch, without gradient."""
        return sums

    def over_latents(self, sums: Tensor) -> Tensor:
        """Return sums over this process's latents as sums over all latents, without gradient."""
        return sums

    def shown(self, loss: Tensor) -> Tensor:
        """Return a sum over this process's tokens with the value of that over all, and its own gradient."""
        return loss

    def average(self, loss: Tensor) -> Tensor:
        """Return a mean over this process's tokens as the mean over all, with its own part of the gradient."""
        return loss

    def anywhere(self, flag: bool) -> bool:
        """Return whether a flag is set in any of the processes."""
        return flag

    def least(self, values_S: Tensor) -> Tensor:
        """Return the least of the values that the processes with these latents have."""
        return values_S

    def smallest(self, value: Tensor) -> Tensor:
        """Return the smallest of the numbers [] that the processes have."""
        return value

    def put_first(self, values: Tensor, axis: int, first_S: Tensor) -> Tensor:
        """Return values of latents, along an axis, with those of some latents before those of all others.

        Args:
            values: Tensor whose axis has the length S.
            axis: Axis of the latents.
            first_S: Mask [S] of the latents that come first; the order within both parts remains.
        """
        order_S = first_S.int().argsort(descending=True, stable=True)
        return values.index_select(axis, order_S.to(values.device)).contiguous()


HERE = Shards()
"""This process alone."""
