"""Ordered windows of activations, shuffled as windows; the one stream that every SAE trains on.

Contexts of T tokens are read in a fixed order, `buffer_contexts` at a time. Position 0 (the BOS that begins every
context) is dropped and the rest cut into windows of W consecutive tokens; the windows of a buffer are shuffled and
served as rows. Rows of special tokens inside a context are overwritten by copies of other rows of the buffer, so that
they train nothing, and marked, so that a term about neighbours can leave their window out.

A batch is a function of the text, the settings and its number alone. To resume at step s the stream jumps to the
buffer that holds it: only text is read again, no activation is.

Shapes: C contexts in a buffer, T tokens in a context, W tokens in a window, N rows in a batch, D = d_in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sae_variants.common.errors import UsageError


class Batch(NamedTuple):
    acts_ND: Tensor
    """Rows; each run of W is one window."""
    special_N: Tensor
    """True where the row stood for a special token."""


@dataclass(frozen=True)
class WindowStream:
    contexts: Callable[[], Iterator[Tensor]]
    """Begins one pass over the text: contexts [T] of token ids, always in the same order."""
    activations: Callable[[Tensor], Tensor]
    """Token ids [C, T] -> activations [C, T, D] of the hooked place."""
    special_ids: tuple[int, ...]
    context_size: int
    window: int
    batch_rows: int
    buffer_contexts: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_rows % self.window:
            raise UsageError(
                f"batch_tokens = {self.batch_rows} must be a multiple of the stream's window {self.window}"
            )
        if self.window > self.context_size - 1:
            raise UsageError(
                f"window = {self.window} does not fit a context of {self.context_size} tokens, BOS included"
            )
        if self.batches_per_buffer < 1:
            raise UsageError(
                f"buffer_contexts = {self.buffer_contexts} hold fewer than one batch of {self.batch_rows} tokens"
            )

    @property
    def windows_per_context(self) -> int:
        return (self.context_size - 1) // self.window

    @property
    def batches_per_buffer(self) -> int:
        return self.buffer_contexts * self.windows_per_context * self.window // self.batch_rows

    def buffers(self, start: int = 0) -> Iterator[Tensor]:
        """Token ids [C, T] of buffer `start`, start+1, ...; the text begins again when it ends."""
        number, held = 0, []
        while True:
            found = False
            for context in self.contexts():
                found = True
                held.append(context)
                if len(held) == self.buffer_contexts:
                    if number >= start:
                        yield torch.stack(held)
                    number, held = number + 1, []
            if not found:
                raise UsageError(
                    f"the text is shorter than one context of {self.context_size} tokens: "
                    "give more text or a smaller context_size"
                )

    def windows(self, tokens_CT: Tensor, number: int) -> Batch:
        """All windows of a buffer, shuffled: rows [n*W, D] and their special mask [n*W]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        rows = self.windows_per_context * self.window
        slack = self.context_size - 1 - rows
        first = 1 + int(torch.randint(slack + 1, (1,), generator=generator))
        acts_CTD = self.activations(tokens_CT)[:, first : first + rows]
        special_CT = torch.isin(tokens_CT, torch.tensor(self.special_ids, dtype=tokens_CT.dtype))[
            :, first : first + rows
        ]
        order = torch.randperm(len(tokens_CT) * self.windows_per_context, generator=generator)
        special_N = special_CT.reshape(-1, self.window)[order].flatten()
        acts_ND = acts_CTD.reshape(-1, self.window, acts_CTD.shape[-1])[order.to(acts_CTD.device)].flatten(0, 1)
        if special_N.any() and not special_N.all():
            ordinary = (~special_N).nonzero().squeeze(1)
            chosen = ordinary[torch.randint(len(ordinary), (int(special_N.sum()),), generator=generator)]
            acts_ND[special_N.to(acts_ND.device)] = acts_ND[chosen.to(acts_ND.device)]
        return Batch(acts_ND, special_N.to(acts_ND.device))

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, start+1, ... without end."""
        number, skip = divmod(start, self.batches_per_buffer)
        for tokens_CT in self.buffers(number):
            rows = self.windows(tokens_CT, number)
            for i in range(skip, self.batches_per_buffer):
                part = slice(i * self.batch_rows, (i + 1) * self.batch_rows)
                yield Batch(rows.acts_ND[part], rows.special_N[part])
            number, skip = number + 1, 0
