"""Activations at a hook of a language model, the width of the hook, and the key of cached activations."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Callable
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sae_variants.common.errors import UsageError
from sae_variants.language_model.hub import model_revision
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer


def activation_key(target: Target, model: HookedTransformer, device: str, *packages: str) -> dict[str, Any]:
    """Return what determines cached activations, apart from an evaluator's settings.

    Args:
        target: Language model and hook.
        model: The loaded language model.
        device: Device on which it runs.
        packages: Further packages whose versions matter.
    """
    tokenizer: Any = model.tokenizer
    return {
        "model": model_revision(target.model_name),
        "hook_name": target.hook_name,
        "dtype": str(model.cfg.dtype),
        "device": device.partition(":")[0],
        "tokenizer": [tokenizer.padding_side, tokenizer.truncation_side],
        "versions": {name: version(name) for name in ("transformer-lens", "transformers", "torch", *packages)},
    }


_locks: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()


def lock_of(model: HookedTransformer) -> Lock:
    """Return what a thread holds while it runs a model with hooks, which another thread's run would fire and remove."""
    return _locks.setdefault(model, Lock())


HEADS = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z")
"""Ends of the names of hooks whose activations are [batch, pos, heads, d_head]; the heads are concatenated."""

CONTEXTS_PER_PASS = 64
"""Contexts in a batch of the language model; rounding depends on it, so that whoever shares or keeps passes uses it."""
EMBEDDING = ("hook_embed", "hook_pos_embed")
"""Names of the hooks before the layers."""


def hook_width(model: HookedTransformer, hook_name: str) -> int:
    """Return d_in, the width of the activations at a hook; heads are concatenated.

    Raises:
        UsageError: The model has no such hook, it does not fire, or it does not give a vector per token.
    """
    shapes = _shapes(model, hook_name)
    if width := _width(hook_name, shapes.get(hook_name, ())):
        return width
    shape = shapes.get(hook_name)
    if hook_name not in model.hook_dict:
        reason = f"unknown hook {hook_name!r}"
    elif shape is None:
        reason = f"hook {hook_name} does not fire"
    elif shape[-1:] == (1,):
        reason = f"hook {hook_name} is a single number per token"
    else:
        reason = f"hook {hook_name} has the shape {list(shape)}, not [batch, pos, d_in]"
    raise UsageError(f"{reason}; {_nearest(model, hook_name)}")


def usable_hooks(model: HookedTransformer) -> dict[str, int]:
    """Return the width of every hook that fires and gives a vector per token, by the hook's name."""
    widths = {name: _width(name, shape) for name, shape in _shapes(model).items()}
    return {name: width for name, width in widths.items() if width}


def _shapes(model: HookedTransformer, hook_name: str | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the activations at one hook, or all, for two contexts of three tokens."""
    import torch

    ids_CT = torch.zeros(2, 3, dtype=torch.long, device=model.cfg.device)
    wanted = (lambda name: name == hook_name) if hook_name else (lambda name: True)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # the bridge warns of hooks that do not fire
        _, cached = model.run_with_cache(ids_CT, names_filter=wanted, prepend_bos=False)
    return {name: tuple(acts.shape) for name, acts in cached.items() if acts is not None}


def _width(name: str, shape: tuple[int, ...]) -> int:
    """Return the width of a vector per token, or 0 if a hook's shape gives none."""
    dimensions = 4 if name.endswith(HEADS) else 3
    width = math.prod(shape[2:])
    return width if len(shape) == dimensions and shape[:2] == (2, 3) and width > 1 else 0


def _nearest(model: HookedTransformer, hook_name: str) -> str:
    """Return the usable hooks with the most similar names, each with its width, and the kinds of hook in a layer."""
    usable = usable_hooks(model)
    near = difflib.get_close_matches(hook_name, usable, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'{name} ({usable[name]} wide)' for name in near)}? " if near else ""
    kinds: dict[str, int] = {}
    for name, width in usable.items():
        kinds.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.N.", name), width)
    known = ", ".join(f"{name} ({width})" for name, width in kinds.items())
    return f"{hint}hooks with a vector per token, N from 0 to {model.cfg.n_layers - 1}, and their width: {known}"


def layer_of_hook(hook_name: str) -> int | None:
    """Return the layer that a hook lies in, or None if it lies outside the layers, as the embedding does."""
    match = re.match(r"blocks\.(\d+)\.", hook_name)
    return int(match[1]) if match else None


def require_hook(hook_name: str, purpose: str, embedding: bool = False, heads: bool = True) -> None:
    """Check, without a model, that an evaluation can use a hook.

    Args:
        hook_name: Name of the hook.
        purpose: The evaluation, which the message names.
        embedding: Whether hooks before the layers can be used.
        heads: Whether hooks with a vector per head can be used.

    Raises:
        UsageError: It cannot.
    """
    example = "such as blocks.3.hook_resid_post"
    if layer_of_hook(hook_name) is None and not (embedding and hook_name in EMBEDDING):
        raise UsageError(f"{purpose} needs a hook inside a layer, {example}, not {hook_name}")
    if hook_name.endswith(HEADS) and not heads:
        raise UsageError(f"{purpose} needs a hook without heads, {example}, not {hook_name}")


def replacing(hook_name: str, replace: Callable[[Tensor], Tensor]) -> tuple[str, Callable[..., Tensor]]:
    """Return the hook that replaces activations, for `model.hooks(fwd_hooks=[...])`.

    Args:
        hook_name: Name of the hook.
        replace: Function from activations [C, T, D] to their replacement [C, T, D]; heads are concatenated.
    """

    def hook_function(acts: Tensor, hook: Any) -> Tensor:
        return replace(acts.flatten(2)).reshape(acts.shape)

    return hook_name, hook_function


def hook_activations(
    model: HookedTransformer, hook_name: str, dtype: str = "float32", contexts_per_pass: int = CONTEXTS_PER_PASS
) -> Callable[[Tensor], Tensor]:
    """Return the function from token ids to the activations at a hook; the model stops after the hook's layer.

    Args:
        model: The language model.
        hook_name: Name of the hook, such as `blocks.3.hook_resid_post`.
        dtype: Data type of the activations.
        contexts_per_pass: Contexts in a batch of the language model.

    Returns:
        Function from token ids [C, T] to activations [C, T, D]; heads are concatenated.
    """
    import torch
    from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name, str_to_dtype

    stop, lock = extract_stop_at_layer_from_tlens_hook_name(hook_name), lock_of(model)

    @torch.no_grad()
    def activations(tokens_CT: Tensor) -> Tensor:
        parts = []
        for part in tokens_CT.split(contexts_per_pass):
            with lock:
                _, cached = model.run_with_cache(
                    part.to(model.cfg.device), names_filter=hook_name, stop_at_layer=stop, prepend_bos=False
                )
            parts.append(cached[hook_name].flatten(2).to(str_to_dtype(dtype)))
        return torch.cat(parts)

    return activations
