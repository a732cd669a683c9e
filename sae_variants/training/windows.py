"""Stream of activations on which every SAE trains: windows of consecutive tokens, shuffled as windows.

Contexts of T tokens are read in a fixed order, `buffer_contexts` at a time. Position 0, the BOS at the start of every
context, is dropped, and the other positions are cut into windows of W consecutive tokens. The windows of a buffer are
shuffled and served as rows. Rows of special tokens inside a context are replaced by copies of other rows of the buffer,
so that SAEs do not train on them. They are also marked, so that a consistency term can ignore their windows.

A batch is a function of the text, the settings and its number alone. To resume at a step, the stream skips to the
buffer that contains it; only text is read again, no activation is computed again.

Shapes: C contexts in a buffer, T tokens in a context, W tokens in a window, N rows in a batch, D = d_in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_variants.common.errors import UsageError


class Batch(NamedTuple):
    """Rows of a training step; each W consecutive rows are a window."""

    acts_ND: Tensor
    """Activations [N, D]."""
    special_N: Tensor
    """Mask [N] of the rows that stand for special tokens, on the host."""
    context_N: Tensor
    """Number [N] of each row's context within the buffer, on the host."""


@dataclass(frozen=True)
class WindowStream:
    """Endless stream of batches."""

    contexts: Callable[[], Iterator[Tensor]]
    """Starts a pass over the text: contexts [T] of token ids, always in the same order."""
    activations: Callable[[Tensor], Tensor]
    """Function from token ids [C, T] to activations [C, T, D] at the hook."""
    special_ids: tuple[int, ...]
    """Ids of special tokens."""
    context_size: int
    """Tokens T in a context, BOS included."""
    window: int
    """Tokens W in a window."""
    batch_rows: int
    """Rows N in a batch."""
    buffer_contexts: int
    """Contexts C in a buffer."""
    seed: int
    """Seed of the order of the windows."""
    ahead_on: str | None = None
    """Device on which a thread makes the next buffer while one is served, which needs the memory of two; None: none."""

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
        """Number of windows in a context."""
        return (self.context_size - 1) // self.window

    @property
    def batches_per_buffer(self) -> int:
        """Number of batches in a buffer."""
        return self.buffer_contexts * self.windows_per_context * self.window // self.batch_rows

    def buffers(self, start: int = 0) -> Iterator[Tensor]:
        """Yield the token ids [C, T] of buffer `start` and all following; the text starts again when it ends."""
        number, buffer = 0, []
        while True:
            is_empty = True
            for context in self.contexts():
                is_empty = False
                buffer.append(context)
                if len(buffer) == self.buffer_contexts:
                    if number >= start:
                        yield torch.stack(buffer)
                    number, buffer = number + 1, []
            if is_empty:
                raise UsageError(
                    f"the text is shorter than one context of {self.context_size} tokens: "
                    "give more text or a smaller context_size"
                )

    def windows(self, tokens_CT: Tensor, number: int) -> Batch:
        """Return all windows of a buffer, shuffled.

        Args:
            tokens_CT: Token ids [C, T] of the buffer.
            number: Number of the buffer in the stream.

        Returns:
            Rows of the n windows [n*W].
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        rows = self.windows_per_context * self.window
        slack = self.context_size - 1 - rows
        first = 1 + int(torch.randint(slack + 1, (1,), generator=generator))
        acts_CTD = self.activations(tokens_CT)
        special_CT = torch.isin(tokens_CT, torch.tensor(self.special_ids, dtype=tokens_CT.dtype))
        order = torch.randperm(len(tokens_CT) * self.windows_per_context, generator=generator)
        context, in_context = order // self.windows_per_context, order % self.windows_per_context
        starts = context * self.context_size + first + in_context * self.window
        index_N = (starts[:, None] + torch.arange(self.window)).flatten()
        special_N = special_CT.flatten()[index_N]
        acts_ND = acts_CTD.flatten(0, 1).index_select(0, index_N.to(acts_CTD.device))
        if special_N.any() and not special_N.all():
            ordinary = (~special_N).nonzero().squeeze(1)
            chosen = ordinary[torch.randint(len(ordinary), (int(special_N.sum()),), generator=generator)]
            acts_ND[special_N.to(acts_ND.device)] = acts_ND[chosen.to(acts_ND.device)]
        context_N = context.repeat_interleave(self.window)
        return Batch(acts_ND, special_N, context_N)

    def buffers_of(self, steps: int) -> int:
        """Return the number of buffers from which the batches of so many steps come."""
        return -(-steps // self.batches_per_buffer)

    def batches(self, start: int = 0, last: int | None = None) -> Iterator[Batch]:
        """Yield batch `start` and all following, without end; what lies behind batch `last` is not made ahead."""
        number, skip = divmod(start, self.batches_per_buffer)
        buffers = (self.windows(tokens_CT, n) for n, tokens_CT in enumerate(self.buffers(number), number))
        if self.ahead_on is not None:
            needed = None if last is None else self.buffers_of(last) - number
            ahead = _ahead(itertools.islice(buffers, needed), self.ahead_on)
            buffers = itertools.chain(ahead, buffers)  # the thread has ended when this one goes on with the rest
        for rows in buffers:
            for i in range(skip, self.batches_per_buffer):
                part = slice(i * self.batch_rows, (i + 1) * self.batch_rows)
                yield Batch(*(values[part] for values in rows))
            skip = 0


def _ahead(buffers: Iterator[Batch], device: str) -> Iterator[Batch]:
    """Yield the same, each made by a thread while the one before it is in use; an error is raised where it is due.

    On CUDA the thread has a stream of its own, so that the language model runs beside the steps of the SAEs.
    """
    stream = torch.cuda.Stream(device) if device.startswith("cuda") else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))

    def make() -> tuple[Batch | None, Any]:
        with torch.cuda.stream(stream):  # nothing if it is None
            return next(buffers, None), None if stream is None else stream.record_event()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make)
        while True:
            buffer, event = coming.result()
            if buffer is None:
                return
            if event is not None:
                event.wait(torch.cuda.current_stream(device))
                buffer.acts_ND.record_stream(torch.cuda.current_stream(device))
            coming = pool.submit(make)
            yield buffer


def checked(batches: Iterator[Batch], hook_name: str) -> Iterator[Batch]:
    """Return the batches after a check of the first one, before any step.

    Raises:
        UsageError: All activations are zero, or one is not finite.
    """
    first = next(batches)
    if not first.acts_ND.isfinite().all():
        raise UsageError(
            f"activations at {hook_name} are not finite: the language model overflows in its data type, or its "
            "weights are broken"
        )
    if not first.acts_ND.any():
        raise UsageError(f"all activations at {hook_name} are zero, as its weights may be: choose another hook")
    return itertools.chain([first], batches)
