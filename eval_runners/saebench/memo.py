"""Computes what does not depend on the SAE once, for the first SAE, and reuses it for the others.

For every SAE, SAEBench's core evaluation runs the clean model, the model with the SAE and the model without the hooked
activation, each from the first layer on, and compares their predictions; then the layers up to the hook again, on more
tokens. Here the layers before that of the hook run once for all three and for all SAEs. The predictions of the clean
model are too large to be kept, so all SAEs are compared with them at once, and the losses of the next ones are kept.
The operations and their order are SAEBench's, so no number changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest import mock
from weakref import WeakKeyDictionary

from sae_variants.common.memory import free_memory
from sae_variants.common.worker import device_share
from sae_variants.language_model.hooks import layer_of_hook

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer

SHARE = 0.25
"""Share of the memory that is free at first which stored outputs may take; what exceeds it is computed each time."""
LARGEST = 1 / 32
"""Share of the room left that one output may take, so that few large ones leave room for many small ones."""
Others = Mapping[str, Callable[[], Any]]
"""Functions that load SAEs, by names of these."""
PER_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z")
"""Hooks with a vector per head, which SAEBench reshapes."""


@dataclass
class Memory:
    """Outputs of one language model, by the call that gave them, within a limit of size."""

    room: float
    """Bytes that are left."""
    outputs: dict[Hashable, Any] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Names of SAEs that could not be loaded or run."""

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The stored output for a key, or a computed one, which is stored if there is room for its tensors."""
        if key in self.outputs:
            return self.outputs[key]
        output = compute()
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(output))
        if size <= LARGEST * self.room:
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
        _memories[model] = Memory(SHARE * device_share() * free_memory(str(model.cfg.device)))
    return _memories[model]


def room_for_saes(device: str) -> float:
    """Bytes that the weights of the next SAEs may take."""
    return SHARE * device_share() * free_memory(device)


@contextlib.contextmanager
def reusing_model_runs(model: HookedTransformer, hook_name: str, own: str, others: Others) -> Iterator[None]:
    """Let SAEBench's core evaluation answer repeated runs of the model on the same tokens from memory.

    Args:
        model: The language model.
        hook_name: Hook of the SAEs.
        own: Name of the SAE that is evaluated; empty if it has none.
        others: Functions that load the next SAEs, by their names; they are called only if losses of theirs are missing.
    """
    from sae_bench.evals.core import main as core

    memory, with_cache, by_saebench = memory_of(model), model.run_with_cache, core.get_recons_loss

    def key(call: str, tokens: Tensor, **settings: Any) -> Hashable:
        return call, hook_name, tokens.shape, tokens.cpu().numpy().tobytes(), str(sorted(settings.items()))

    def cached(tokens: Any, *args: Any, **settings: Any) -> Any:
        def run() -> Any:
            output, cache = with_cache(tokens, *args, **settings)
            return output, {hook_name: cache[hook_name]}

        hook_only = settings.get("names_filter") == [hook_name] and settings.get("stop_at_layer") is not None
        if args or not hook_only:
            return with_cache(tokens, *args, **settings)
        return memory.get(key("activations", tokens, **settings), run)

    def recons_loss(sae: Any, _: Any, tokens: Tensor, store: Any, **settings: Any) -> dict[str, Tensor]:
        def reuse(call: str, run: Callable[[], Any]) -> Any:
            return memory.get(key(call, tokens), run)

        if not _resumes(sae, model, hook_name):
            return by_saebench(sae, model, tokens, store, **settings)
        usable = {name: load for name, load in others.items() if name not in memory.broken}
        return _recons_loss(sae, own, model, hook_name, tokens, reuse, usable, memory.broken, **settings)

    with mock.patch.object(model, "run_with_cache", cached), mock.patch.object(core, "get_recons_loss", recons_loss):
        yield


def _resumes(sae: Any, model: HookedTransformer, hook_name: str) -> bool:
    """Return whether the model's run from the hook's layer on is what it is in a run from the first layer on."""
    from transformer_lens import HookedTransformer

    if not issubclass(type(model), HookedTransformer):  # a bridge, which says that it is one, starts at no layer
        return False
    has_mask = getattr(model.tokenizer, "padding_side", "right") == "left"
    is_plain = sae.cfg.metadata.hook_head_index is None and not any(part in hook_name for part in PER_HEAD)
    return (
        layer_of_hook(hook_name) is not None
        and is_plain
        and not has_mask
        and model.cfg.positional_embedding_type != "shortformer"
    )


def _recons_loss(
    sae: Any,
    own: str,
    model: HookedTransformer,
    hook_name: str,
    tokens: Tensor,
    reuse: Callable[[str, Callable[[], Any]], Any],
    others: Others,
    broken: set[str],
    compute_kl: bool,
    compute_ce_loss: bool,
    ignore_tokens: set[int | None],
    exclude_special_tokens_from_reconstruction: bool,
) -> dict[str, Tensor]:
    """Return what SAEBench's `get_recons_loss` returns.

    Args:
        sae: In inference form.
        own: Its name; empty if it has none.
        model: The language model.
        hook_name: Hook of the SAE.
        tokens: Token ids of a batch of contexts.
        reuse: Returns what a name stands for, from memory or computed.
        others: The next SAEs, whose losses are computed, too.
        broken: The names of those that fail are added.
        compute_kl: As in SAEBench, like those that follow.
        compute_ce_loss: Whether the losses are returned.
        ignore_tokens: Tokens whose activations stay as they are.
        exclude_special_tokens_from_reconstruction: Whether there are such tokens.
    """
    import torch

    ignored = list(ignore_tokens) if exclude_special_tokens_from_reconstruction else []
    keep = torch.ones_like(tokens, dtype=torch.bool)
    for token in ignored:
        keep &= tokens != token
    layer = layer_of_hook(hook_name)
    forward: Any = model.forward
    before = reuse("before", lambda: forward(tokens, stop_at_layer=layer))

    def run(*replace: Callable[..., Tensor]) -> Any:
        hooks: Any = [(hook_name, function) for function in replace]
        options: Any = {"start_at_layer": layer, "tokens": tokens, "return_type": "both", "loss_per_token": True}
        return model.run_with_hooks(before, fwd_hooks=hooks, **options)

    def by(sae: Any) -> Callable[..., Tensor]:
        def replace(acts: Tensor, hook: Any) -> Tensor:
            x = acts.to(sae.device)
            return torch.where(keep[..., None], sae.decode(sae.encode(x)).to(x.dtype), x).to(acts.device)

        return replace

    @cache
    def clean() -> tuple[Tensor, Tensor, Tensor]:
        logits, ce = reuse("clean", run)
        probs = logits.softmax(-1) if compute_kl else logits
        return ce, probs, probs.log()

    def losses(replace: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        new_logits, new_ce = run(replace)
        if not compute_kl:
            return (new_ce,)
        _, probs, log_probs = clean()
        log_new = new_logits.softmax(-1).log_()
        return new_ce, torch.sub(log_probs, log_new, out=log_new).mul_(probs).sum(-1)

    kind = f"{compute_kl} {sorted(map(str, ignored))}"
    ce = reuse("clean losses", lambda: clean()[0])
    without = reuse(f"ablated {kind}", lambda: losses(lambda acts, hook: torch.zeros_like(acts)))
    reconstructed = reuse(f"{own} {kind}", lambda: losses(by(sae))) if own else losses(by(sae))
    for name, load in others.items():
        try:
            reuse(f"{name} {kind}", lambda load=load: losses(by(load())))
        except Exception:  # its own evaluation will say why
            broken.add(name)
    found = {}
    if compute_kl:
        found |= {"kl_div_with_sae": reconstructed[1], "kl_div_with_ablation": without[1]}
    if compute_ce_loss:
        found |= {"ce_loss_with_sae": reconstructed[0], "ce_loss_without_sae": ce, "ce_loss_with_ablation": without[0]}
    return found
