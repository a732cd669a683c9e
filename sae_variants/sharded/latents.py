"""Collectives of an SAE whose latents lie in several processes.

    topk         local k largest -> gather k candidates of each shard -> exact k largest -> each decodes its own -> sum
    batch top-k  local k N largest -> the k N-th of all by sums of histograms -> each decodes its own -> sum

Gradients of encoder and decoder rows stay with their shard; those of the biases that every process has are summed. With
one group of tokens, the bytes that a process gives do not depend on d_sae. In a step, in numbers of 4 bytes, they are

    topk         N k of candidates, N D of the reconstruction, and D of the bias's gradient
    batch top-k  N D (1 + 2 T) of the last reconstruction, and of T in the encoder and back; D; and 2052 a selection of
                 the largest activations, T + 1 times, and of the slow latents
    AuxK         N k_aux of candidates and N D more, if a latent is dead
    contrastive  P m n of logits and 2 m W of norms and back, for m of n windows of W tokens and P pairs of them in each

and some tens of sums. With G groups, the gradients of a shard, 2 D S of weights, are summed over them, and they give

    AuxK         S marks of dead latents
    slow latents 3 S of the moments by which they are chosen, in one step in four
    contrastive  (3 + G) c of codes and back, of which up to c are not zero in a group, and (1 + G) P n of sums and back

Shapes: N tokens of this process's group, D = d_in, k candidates of a token, C of all shards, S latents of this shard, M
values, m of which are candidates, R processes; in codes, m of n windows of W tokens, L latents, c that fire.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad
from typing_extensions import override

from sae_variants.ops.largest import keys_of, nth_largest_key, top_k_ids, values_of
from sae_variants.ops.shards import Shards
from sae_variants.sharded.collectives import Collectives
from sae_variants.sharded.ranks import ALL, LATENTS, TOKENS, Ranks

MOST_NORM = 1.0
"""Norm at which SAELens' trainer clips gradients."""
ENCODER, SHARDED, REPLICATED = "W_enc", ("W_enc", "b_enc", "W_dec"), ("b_dec",)
"""Parameters by where they lie; the encoder's columns, and the other's rows, belong to latents."""


class LatentShards(Collectives, Shards):
    """A shard of the latents, and a group of the tokens."""

    def __init__(self, ranks: Ranks) -> None:
        """Remember this process's place among the others."""
        super().__init__(ranks)
        self.ranks, self.count, self.groups = ranks, ranks.shards, ranks.groups
        self.group, self.index = ranks.mesh.get_coordinate() or (0, 0)
        self.after_backward: Callable[[], None] = lambda: None
        """Is called once at the end of each backward pass."""
        self._is_queued = False

    def _same(self, gradient: Tensor) -> Tensor:
        """Return the gradient as it is, and let the backward pass end with a call."""
        if not self._is_queued:
            self._is_queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)  # type: ignore[attr-defined]
        return gradient

    def _finish(self) -> None:
        self._is_queued = False
        self.after_backward()

    @override
    def rows(self, x_ND: Tensor) -> Tensor:
        return x_ND.chunk(self.groups)[self.group]

    @override
    def one_row_in(self, every: int, step: int, n_rows: int) -> slice:
        return slice((step - self.group * n_rows) % every, None, every)

    @override
    def once(self, bias_D: Tensor) -> Tensor:
        return bias_D if self.index == 0 else torch.zeros_like(bias_D)

    @override
    def keep_largest(self, values_Nk: Tensor, k: int) -> Tensor:
        own = values_Nk.shape[1]
        candidates_Nk = pad(values_Nk.detach(), (0, k - own), value=-torch.inf)
        all_NC = self._gather(candidates_Nk, LATENTS, "candidates").transpose(0, 1).flatten(1)  # shard by shard
        chosen_NC = torch.zeros_like(all_NC, dtype=torch.bool).scatter_(1, all_NC.topk(k, sorted=False).indices, True)
        return values_Nk * chosen_NC[:, self.index * k : self.index * k + own]

    @override
    def top_k_mask(self, values_M: Tensor, n: int) -> Tensor:
        return self._top_k_mask(values_M, n, ALL, self.ranks.rank)

    @override
    def top_k_ids(self, values_S: Tensor, n: int) -> Tensor:
        return self._top_k_mask(values_S, n, LATENTS, self.index).nonzero().squeeze(1)

    def _top_k_mask(self, values_M: Tensor, n: int, over: str, number: int) -> Tensor:
        """Return the mask [M] of the n largest over some processes, of which this one has a number."""
        ids_m = top_k_ids(values_M, min(n, len(values_M)))  # no others can be among the n largest
        keys_m = keys_of(values_M[ids_m])
        bound = nth_largest_key(keys_m, n, lambda counts: self._sum(counts, over, "counts"))
        is_equal_m = keys_m == bound
        counts_R2 = self._gather(torch.stack([(keys_m > bound).sum(), is_equal_m.sum()]), over, "counts")
        room = n - counts_R2[:, 0].sum() - counts_R2[:number, 1].sum()
        kept_m = (keys_m > bound) | (is_equal_m & (is_equal_m.cumsum(0) <= room))
        return torch.zeros_like(values_M, dtype=torch.bool).index_copy_(0, ids_m, kept_m)

    @override
    def ranked(self, values_M: Tensor, first: int, last: int) -> Tensor:
        keys_M = keys_of(values_M)
        keys = [nth_largest_key(keys_M, n, lambda c: self._sum(c, ALL, "counts")) for n in range(first, last + 1)]
        return values_of(torch.stack(keys), values_M.dtype)

    @override
    def join(self, partial: Tensor, purpose: str = "reconstructions") -> Tensor:
        return self._of_all(partial, self._sum(partial, LATENTS, purpose), self._same)

    @override
    def join_within(self, partial: Tensor, purpose: str = "reconstructions") -> Tensor:
        def add(values: Tensor) -> Tensor:
            return self._sum(values, LATENTS, purpose)

        return self._of_all(partial, add(partial), add)

    @override
    def normalized(self, codes: Tensor, epsilon: float) -> Tensor:
        squares = self.join_within(codes.pow(2).sum(-1, keepdim=True), "contrasts")
        return codes / squares.clamp(min=epsilon**2).sqrt()

    @override
    def mean(self, x_ND: Tensor) -> Tensor:
        return self.over_tokens(x_ND.sum(0)) / self.over_tokens(x_ND.new_tensor(len(x_ND)))

    @override
    def of_all_groups(self, codes_mWL: Tensor) -> tuple[Tensor, int]:
        if self.groups == 1:
            return codes_mWL, 0
        values_M, numbers = codes_mWL.flatten(), codes_mWL.shape[1:].numel()
        ids_c = values_M.detach().nonzero().squeeze(1)
        sizes = self._gather(ids_c.new_tensor([len(codes_mWL), len(ids_c)]), TOKENS, "numbers")
        windows, fire = sizes.mT.tolist()
        first, room = sum(windows[: self.group]), (0, max(fire) - len(ids_c))  # all give as many, some of them zeros
        ids = self._gather(pad(ids_c + first * numbers, room), TOKENS, "codes")
        values = self._of_groups(pad(values_M[ids_c], room), "codes")
        all_M = values.new_zeros(sum(windows) * numbers).index_add(0, ids.flatten(), values.flatten())
        return all_M.view(sum(windows), *codes_mWL.shape[1:]), first

    @override
    def of_other_groups(self, values: Tensor, purpose: str) -> Tensor:
        every = self._of_groups(values, purpose)
        return torch.cat([every[: self.group], every[self.group + 1 :]])

    def _of_groups(self, own: Tensor, purpose: str) -> Tensor:
        """Return the tensors [...] of the groups as one [groups, ...], whose gradients are summed over them."""
        every = self._gather(own.detach(), TOKENS, purpose)
        return self._of_all(own, every, lambda gradient: self._sum(gradient, TOKENS, purpose)[self.group])

    @override
    def over_tokens(self, sums: Tensor, purpose: str = "numbers") -> Tensor:
        return self._sum(sums, TOKENS, purpose)

    @override
    def over_latents(self, sums: Tensor) -> Tensor:
        return self._sum(sums, LATENTS, "numbers")

    @override
    def shown(self, loss: Tensor) -> Tensor:
        return self._of_all(loss, self.over_tokens(loss), self._same)

    @override
    def average(self, loss: Tensor) -> Tensor:
        return self.shown(loss / self.groups)

    @override
    def anywhere(self, flag: bool) -> bool:
        return bool(self.over_tokens(self.over_latents(torch.tensor(float(flag), device=self.ranks.device))))

    @override
    def least(self, values_S: Tensor) -> Tensor:
        return self._sum(values_S, TOKENS, "counts", "MIN")

    @override
    def smallest(self, value: Tensor) -> Tensor:
        return self._sum(value, ALL, "numbers", "MIN")

    @override
    def put_first(self, values: Tensor, axis: int, first_S: Tensor) -> Tensor:
        S, device = len(first_S), self.ranks.device
        first_S = first_S.to(device)
        counts_R = self._gather(first_S.sum(), LATENTS, "saving")
        firsts, before = counts_R.sum(), counts_R[: self.index].sum()
        others = firsts + self.index * S - before  # the places that are taken by those before this shard
        places_S = torch.where(first_S, before + first_S.cumsum(0), others + (~first_S).cumsum(0)) - 1
        places_S, order_S = places_S.sort()
        rows = values.movedim(axis, 0).to(device)[order_S].contiguous()
        received = torch.empty_like(rows)
        received[self._exchange(places_S, places_S // S) % S] = self._exchange(rows, places_S // S)
        return received.movedim(0, axis).contiguous()

    def _exchange(self, rows: Tensor, shards_S: Tensor) -> Tensor:
        """Return the rows that the shards send to this one, which sends its own to the shards [S], in their order."""
        sent = torch.bincount(shards_S, minlength=self.count)
        received = self._gather(sent, LATENTS, "saving")[:, self.index]
        out = rows.new_empty(int(received.sum()), *rows.shape[1:])
        self.sent["saving"] += rows.nbytes
        dist.all_to_all_single(out, rows, received.tolist(), sent.tolist(), self._processes[LATENTS])
        return out

    @torch.no_grad()
    def finish_gradients(self, sae: nn.Module) -> None:
        """Sum the gradients that other processes have parts of, and clip them by their norm over all latents."""
        for name in (*SHARDED, *REPLICATED):
            parameter = sae.get_parameter(name)
            if parameter.grad is None:  # a bias that another shard adds
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad.mT if name == ENCODER else parameter.grad
            summed = self._sum(gradient, TOKENS, "gradients")
            gradient.copy_(self._sum(summed, LATENTS, "gradients") if name in REPLICATED else summed)
        gradients = {name: sae.get_parameter(name).grad for name in (*SHARDED, *REPLICATED)}
        squares = {name: gradient.float().pow(2).sum() for name, gradient in gradients.items() if gradient is not None}
        total = self.over_latents(torch.stack([squares[name] for name in SHARDED]).sum())
        norm = torch.stack([total, *(squares[name] for name in REPLICATED)]).sum().sqrt()
        for gradient in gradients.values():
            assert gradient is not None
            gradient.mul_((MOST_NORM / (norm + 1e-6)).clamp(max=1.0))
