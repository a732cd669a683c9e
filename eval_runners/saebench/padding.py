"""Short documents without the price of their padding, wherever that changes no bit of SAEBench's numbers.

SAEBench pads every document to the context's length, runs the language model and the SAE on the padding, and throws
that away (it sets activations of special tokens to zero, and leaves zero rows out of its means). A causal model's
activations do not depend on what follows, and an SAE encodes every token alone, so the padding need not be computed;
but kernels may add in another order for another shape. So both ways are run on the first batch of every shape and
compared bit by bit, and after the first difference only SAEBench's own way is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

ROUND_TO = 8


class _Agreement:
    """Takes the short cut for shapes on which it gave the same bits as the long way."""

    def __init__(self) -> None:
        self.trusted: set[tuple[Any, ...]] = set()
        self.broken = False

    def result(self, shape: tuple[Any, ...], short: Callable[[], Any], long: Callable[[], Any]) -> Any:
        if self.broken:
            return long()
        if shape in self.trusted:
            return short()
        expected = long()
        try:
            found = short()
        except Exception:  # an SAE may need the whole context; SAEBench's own way gives it
            found = None
        if found is not None and found.equal(expected):
            self.trusted.add(shape)
        else:
            self.broken = True
        return expected


@contextlib.contextmanager
def skipped_by_model(model: Any) -> Iterator[_Agreement]:
    """While SAEBench collects activations: documents in order of length, each batch as long as its longest."""
    import torch
    from sae_bench.sae_bench_utils import activation_collection as collection

    original = collection.get_llm_activations
    agreement = _Agreement()

    def sorted_and_cut(tokens: Any, batch_size: int, rest: tuple[Any, ...]) -> Any:
        real = tokens != model.tokenizer.pad_token_id
        # the last token that is not padding; what special tokens stand before it stays in
        lengths = (real * torch.arange(1, tokens.shape[1] + 1, device=tokens.device)).amax(1)
        parts, order = [], lengths.argsort(stable=True)
        for rows in order.split(batch_size):
            longest = _rounded(int(lengths[rows].max()), tokens.shape[1])

            def whole(rows: Any = rows) -> Any:
                return original(tokens[rows], model, batch_size, *rest, show_progress=False)

            def cut(rows: Any = rows, longest: int = longest) -> Any:
                acts = original(tokens[rows, :longest], model, batch_size, *rest, show_progress=False)
                return torch.nn.functional.pad(acts, (0, 0, 0, tokens.shape[1] - longest))

            full = longest == tokens.shape[1]
            parts.append(whole() if full else agreement.result((len(rows), longest), cut, whole))
        return torch.cat(parts)[order.argsort()]

    def collect(tokens: Any, model_: Any, batch_size: int, layer: int, hook_name: str, mask: bool = False) -> Any:
        rest = (layer, hook_name, mask)

        def own() -> Any:
            return original(tokens, model, batch_size, *rest, show_progress=False)

        if not mask or model.tokenizer.padding_side != "right" or model_ is not model:
            return original(tokens, model_, batch_size, *rest, show_progress=False)
        return agreement.result(("all",), lambda: sorted_and_cut(tokens, batch_size, rest), own)

    with mock.patch.object(collection, "get_llm_activations", collect):
        yield agreement


@contextlib.contextmanager
def skipped_by_sae(sae: Any) -> Iterator[_Agreement]:
    """While SAEBench takes means of latents: a batch is encoded as far as its longest document reaches."""
    import torch

    encode = sae.encode
    agreement = _Agreement()

    def encode_cut(acts_BLD: Any) -> Any:
        # as SAEBench tells padding; the latents of these rows are multiplied by zero
        real_BL = acts_BLD.sum(-1) != 0
        length = acts_BLD.shape[1]
        longest = _rounded(int((real_BL * torch.arange(1, length + 1, device=real_BL.device)).max()), length)

        def cut() -> Any:
            latents = encode(acts_BLD[:, :longest].contiguous())
            return torch.nn.functional.pad(latents, (0, 0, 0, length - longest)) * real_BL[..., None]

        def whole() -> Any:
            return encode(acts_BLD) * real_BL[..., None]

        return whole() if longest == length else agreement.result((*acts_BLD.shape, longest), cut, whole)

    with mock.patch.object(sae, "encode", encode_cut):
        yield agreement


def _rounded(length: int, at_most: int) -> int:
    return min(-(-max(length, 1) // ROUND_TO) * ROUND_TO, at_most)
