"""Skips the computation of padding in short documents wherever that changes no bit of SAEBench's numbers.

SAEBench pads every document to the context's length, runs the language model and the SAE on the padding, and discards
its outputs: it sets activations of special tokens to zero, and leaves zero rows out of its means. A causal model's
activations do not depend on what follows, and an SAE encodes every token alone, so the padding need not be computed.
Kernels may add in another order for another shape, however. So the first batch of every shape is computed both ways and
compared bit by bit. After the first difference only SAEBench's way is used.

Shape legend: B documents, L tokens of the context, D width of the hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor
    from transformer_lens import HookedTransformer

ROUND_TO = 8
"""Batches are cut to a multiple of this number of tokens, so that few shapes need a comparison."""


class Agreement:
    """Takes the short way for shapes on which it gave the same bits as the long way."""

    def __init__(self) -> None:
        """Start without any shape that is trusted."""
        self.trusted: set[Hashable] = set()
        self.broken = False

    def result(self, shape: Hashable, short: Callable[[], Tensor], long: Callable[[], Tensor]) -> Tensor:
        """Compute by the short way if it is trusted for the shape, else by the long way.

        Args:
            shape: identifies the shape of the inputs.
            short: computes the tensor without padding; may fail.
            long: computes the tensor as SAEBench does.
        """
        if self.broken:
            return long()
        if shape in self.trusted:
            return short()
        expected = long()
        try:
            cut = short()
        except Exception:  # an SAE may need the whole context, which SAEBench's way gives it
            cut = None
        if cut is not None and cut.equal(expected):
            self.trusted.add(shape)
        else:
            self.broken = True
        return expected


@contextlib.contextmanager
def skipped_by_model(model: HookedTransformer) -> Iterator[Agreement]:
    """Let SAEBench collect activations from documents in order of length, each batch cut to its longest."""
    import torch
    from sae_bench.sae_bench_utils import activation_collection as collection

    original = collection.get_llm_activations
    tokenizer: Any = model.tokenizer
    agreement = Agreement()

    def collect_sorted(tokens_BL: Tensor, batch_size: int, rest: tuple[Any, ...]) -> Tensor:
        real_BL = tokens_BL != tokenizer.pad_token_id
        # a document ends at its last token that is not padding; special tokens before that are kept
        lengths = (real_BL * torch.arange(1, tokens_BL.shape[1] + 1, device=tokens_BL.device)).amax(1)
        parts, order = [], lengths.argsort(stable=True)
        for rows in order.split(batch_size):
            longest = _rounded(int(lengths[rows].max()), tokens_BL.shape[1])

            def whole(rows: Tensor = rows) -> Tensor:
                return original(tokens_BL[rows], model, batch_size, *rest, show_progress=False)

            def cut(rows: Tensor = rows, longest: int = longest) -> Tensor:
                acts_BLD = original(tokens_BL[rows, :longest], model, batch_size, *rest, show_progress=False)
                return torch.nn.functional.pad(acts_BLD, (0, 0, 0, tokens_BL.shape[1] - longest))

            full = longest == tokens_BL.shape[1]
            parts.append(whole() if full else agreement.result((len(rows), longest), cut, whole))
        return torch.cat(parts)[order.argsort()]

    def collect(tokens: Any, given: Any, batch_size: int, layer: int, hook_name: str, mask: bool = False) -> Any:
        rest = (layer, hook_name, mask)

        def unchanged() -> Tensor:
            return original(tokens, given, batch_size, *rest, show_progress=False)

        if not mask or tokenizer.padding_side != "right" or given is not model:
            return unchanged()
        return agreement.result(("all",), lambda: collect_sorted(tokens, batch_size, rest), unchanged)

    with mock.patch.object(collection, "get_llm_activations", collect):
        yield agreement


@contextlib.contextmanager
def skipped_by_sae(sae: SAE[Any]) -> Iterator[Agreement]:
    """Let SAEBench encode a batch only as far as its longest document reaches."""
    import torch

    encode = sae.encode
    agreement = Agreement()

    def encode_cut(acts_BLD: Tensor) -> Tensor:
        # SAEBench recognizes padding by these zeros, and multiplies the latents there by zero
        real_BL = acts_BLD.sum(-1) != 0
        length = acts_BLD.shape[1]
        longest = _rounded(int((real_BL * torch.arange(1, length + 1, device=real_BL.device)).max()), length)

        def cut() -> Tensor:
            latents = encode(acts_BLD[:, :longest].contiguous())
            return torch.nn.functional.pad(latents, (0, 0, 0, length - longest)) * real_BL[..., None]

        def whole() -> Tensor:
            return encode(acts_BLD) * real_BL[..., None]

        return whole() if longest == length else agreement.result((*acts_BLD.shape, longest), cut, whole)

    with mock.patch.object(sae, "encode", encode_cut):
        yield agreement


def _rounded(length: int, at_most: int) -> int:
    return min(-(-max(length, 1) // ROUND_TO) * ROUND_TO, at_most)
