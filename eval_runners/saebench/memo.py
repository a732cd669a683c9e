"""Computes what does not depend on the SAE once, for the first SAE, and reuses it for the others.

SAEBench's core evaluation runs, for every SAE, the clean model, the model without the hooked activation, and the layers
up to the hook, all on the same tokens. The reused tensors are those of the first run, so no number changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock
from weakref import WeakKeyDictionary

from sae_variants.common.memory import free_memory

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer

SHARE = 0.25
"""Share of the memory that is free at first which stored outputs may take; what exceeds it is computed each time."""


@dataclass
class Memory:
    """Outputs of one language model, by the call that gave them, within a limit of size."""

    room: float
    """Bytes that are left."""
    outputs: dict[Hashable, Any] = field(default_factory=dict)

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The stored output for a key, or a computed one, which is stored if there is room for its tensors."""
        if key in self.outputs:
            return self.outputs[key]
        output = compute()
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(output))
        if size <= self.room:
            self.room -= size
            self.outputs[key] = output
        return output


_memories: WeakKeyDictionary[HookedTransformer, Memory] = WeakKeyDictionary()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _tensors(part)]
    return [tensor for part in output.values() for tensor in _tensors(part)] if isinstance(output, dict) else [output]


def memory_of(model: HookedTransformer) -> Memory:
    """The memory of a language model, which lives as long as the model."""
    if model not in _memories:
        _memories[model] = Memory(SHARE * free_memory(str(model.cfg.device)))
    return _memories[model]


@contextlib.contextmanager
def reusing_model_runs(model: HookedTransformer, hook_name: str) -> Iterator[None]:
    """Answer SAEBench's repeated calls of the model on the same tokens from memory."""
    memory = memory_of(model)
    forward, with_hooks, with_cache = model.forward, model.run_with_hooks, model.run_with_cache
    hook = model.hook_dict[hook_name]

    def key(call: str, tokens: Tensor, settings: dict[str, Any]) -> Hashable:
        return call, hook_name, tokens.shape, tokens.cpu().numpy().tobytes(), str(sorted(settings.items()))

    def clean(tokens: Any, *args: Any, **settings: Any) -> Any:
        # with a hook it is an SAE's run; without "both" it is a part of another call
        if args or hook.fwd_hooks or settings.get("return_type") != "both":
            return forward(tokens, *args, **settings)
        return memory.get(key("clean", tokens, settings), lambda: forward(tokens, **settings))

    def hooked(tokens: Any, *args: Any, fwd_hooks: Any = (), **settings: Any) -> Any:
        def run() -> Any:
            return with_hooks(tokens, *args, fwd_hooks=fwd_hooks, **settings)

        ablates = [getattr(function, "__name__", "") for _, function in fwd_hooks] == ["standard_zero_ablate_hook"]
        return memory.get(key("ablated", tokens, settings), run) if ablates and not args else run()

    def cached(tokens: Any, *args: Any, **settings: Any) -> Any:
        def run() -> Any:
            output, cache = with_cache(tokens, *args, **settings)
            return output, {hook_name: cache[hook_name]}

        hook_only = settings.get("names_filter") == [hook_name] and settings.get("stop_at_layer") is not None
        if args or not hook_only:
            return with_cache(tokens, *args, **settings)
        return memory.get(key("activations", tokens, settings), run)

    with (
        mock.patch.object(model, "forward", clean),
        mock.patch.object(model, "run_with_hooks", hooked),
        mock.patch.object(model, "run_with_cache", cached),
    ):
        yield
