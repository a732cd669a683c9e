"""What a language model gives that does not depend on the SAE: computed for the first SAE, remembered for the others.

SAEBench's core evaluation runs, for every SAE, the clean model, the model without the hooked activation, and the layers
up to the hook, all on the same tokens. The tensors handed back are those of the first time, so no number changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

from sae_variants.language_model.load import free_memory

SHARE = 0.25
"""Of the memory that is free at first, what may be remembered; the rest is computed each time."""


@dataclass
class Memory:
    room: float
    """Bytes that are left."""
    kept: dict[Any, Any] = field(default_factory=dict)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key in self.kept:
            return self.kept[key]
        made = make()
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(made))
        if size <= self.room:
            self.room -= size
            self.kept[key] = made
        return made


_memories: WeakKeyDictionary[Any, Memory] = WeakKeyDictionary()


def _tensors(made: Any) -> list[Any]:
    if isinstance(made, tuple | list):
        return [tensor for part in made for tensor in _tensors(part)]
    return [tensor for part in made.values() for tensor in _tensors(part)] if isinstance(made, dict) else [made]


def memory_of(model: Any) -> Memory:
    if model not in _memories:
        _memories[model] = Memory(SHARE * free_memory(str(model.cfg.device)))
    return _memories[model]


@contextlib.contextmanager
def reusing_model_runs(model: Any, hook_name: str) -> Iterator[None]:
    """While SAEBench's core evaluation runs: the same calls on the same tokens are answered from memory."""
    memory = memory_of(model)
    forward, with_hooks, with_cache = model.forward, model.run_with_hooks, model.run_with_cache
    hook = model.hook_dict[hook_name]

    def key(what: str, tokens: Any, settings: dict[str, Any]) -> Any:
        return what, hook_name, tokens.shape, tokens.cpu().numpy().tobytes(), str(sorted(settings.items()))

    def clean(tokens: Any, *args: Any, **settings: Any) -> Any:
        if args or hook.fwd_hooks or settings.get("return_type") != "both":  # an SAE's run, or a part of another call
            return forward(tokens, *args, **settings)
        return memory.get(key("clean", tokens, settings), lambda: forward(tokens, **settings))

    def hooked(tokens: Any, *args: Any, fwd_hooks: Any = (), **settings: Any) -> Any:
        def run() -> Any:
            return with_hooks(tokens, *args, fwd_hooks=fwd_hooks, **settings)

        ablates = [getattr(function, "__name__", "") for _, function in fwd_hooks] == ["standard_zero_ablate_hook"]
        return memory.get(key("ablated", tokens, settings), run) if ablates and not args else run()

    def cached(tokens: Any, *args: Any, **settings: Any) -> Any:
        def run() -> Any:
            found, cache = with_cache(tokens, *args, **settings)
            return found, {hook_name: cache[hook_name]}

        only_this = settings.get("names_filter") == [hook_name] and settings.get("stop_at_layer") is not None
        if args or not only_this:
            return with_cache(tokens, *args, **settings)
        return memory.get(key("activations", tokens, settings), run)

    with (
        mock.patch.object(model, "forward", clean),
        mock.patch.object(model, "run_with_hooks", hooked),
        mock.patch.object(model, "run_with_cache", cached),
    ):
        yield
