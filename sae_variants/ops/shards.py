"""Where the latents and the tokens of a training lie: here, in one process; `sae_variants.sharded`, in several.

An SAE asks this object wherever a number depends on latents or tokens that another process may hold. In one process
every answer is what was given, so that nothing is added to a step.

Shapes: N tokens, D = d_in, k candidates of a token.
"""

from __future__ import annotations

from torch import Tensor


class Shards:
    """One process, which holds all latents and all tokens."""

    count: int = 1
    """Shards of the latents."""

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
            values_Nk: Up to k activations of at least 0, the largest of this shard.
            k: Latents that fire per token.
        """
        return values_Nk

    def join(self, out_ND: Tensor) -> Tensor:
        """Return the sum of the reconstructions of all shards."""
        return out_ND

    def mean(self, x_ND: Tensor) -> Tensor:
        """Return the mean [D] of all tokens of the batch."""
        return x_ND.mean(0)

    def over_tokens(self, sums: Tensor) -> Tensor:
        """Return sums over this process's tokens as sums over all tokens of the batch, without gradient."""
        return sums

    def over_latents(self, sums: Tensor) -> Tensor:
        """Return sums over this process's latents as sums over all latents, without gradient."""
        return sums

    def shown(self, loss: Tensor) -> Tensor:
        """Return a sum over this process's tokens with the value of that over all, and its own gradient."""
        return loss

    def anywhere(self, flag: bool) -> bool:
        """Return whether a flag is set in any of the processes."""
        return flag

    def least(self, values_S: Tensor) -> Tensor:
        """Return the least of the values that the processes with these latents have."""
        return values_S


HERE = Shards()
"""This process alone."""
