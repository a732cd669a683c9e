"""Activations at a hook of a language model, the width of the hook, and the key of cached activations."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, check_name
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


def hook_width(model: HookedTransformer, hook_name: str) -> int:
    """Return d_in, the width of the activations at a hook.

    Raises:
        UsageError: The model has no such hook, or its activations are not [batch, pos, d_in].
    """
    import torch

    check_name("hook", hook_name, model.hook_dict)
    with torch.no_grad():
        _, cached = model.run_with_cache(
            torch.zeros(1, 2, dtype=torch.long, device=model.cfg.device), names_filter=hook_name
        )
    if cached[hook_name].ndim != 3:
        raise UsageError(
            f"hook {hook_name} has shape {tuple(cached[hook_name].shape)}; choose one with [batch, pos, d_in]"
        )
    if cached[hook_name].shape[-1] < 2:
        raise UsageError(f"hook {hook_name} is a single number per token; choose one with a vector")
    return cached[hook_name].shape[-1]


def hook_activations(
    model: HookedTransformer, hook_name: str, dtype: str = "float32", contexts_per_pass: int = 64
) -> Callable[[Tensor], Tensor]:
    """Return the function from token ids to the activations at a hook; the model stops after the hook's layer.

    Args:
        model: The language model.
        hook_name: Name of the hook, such as `blocks.3.hook_resid_post`.
        dtype: Data type of the activations.
        contexts_per_pass: Contexts in a batch of the language model.

    Returns:
        Function from token ids [C, T] to activations [C, T, D].
    """
    import torch
    from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name, str_to_dtype

    stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)

    @torch.no_grad()
    def activations(tokens_CT: Tensor) -> Tensor:
        parts = []
        for part in tokens_CT.split(contexts_per_pass):
            _, cached = model.run_with_cache(
                part.to(model.cfg.device), names_filter=hook_name, stop_at_layer=stop, prepend_bos=False
            )
            parts.append(cached[hook_name].to(str_to_dtype(dtype)))
        return torch.cat(parts)

    return activations
