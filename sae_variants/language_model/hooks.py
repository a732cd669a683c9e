"""Activations at a hook of a language model, the hook's width, and the key under which activations are cached."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.language_model.hub import model_revision
from sae_variants.language_model.target import Target


def activation_key(target: Target, model: Any, device: str, *packages: str) -> dict[str, Any]:
    """What decides an activation, and what those packages make of it, beside an evaluation's settings."""
    tokenizer = model.tokenizer
    return {
        "model": model_revision(target.model_name),
        "hook_name": target.hook_name,
        "dtype": str(model.cfg.dtype),
        "device": device.partition(":")[0],
        "tokenizer": [tokenizer.padding_side, tokenizer.truncation_side],
        "versions": {name: version(name) for name in ("transformer-lens", "transformers", "torch", *packages)},
    }


def hook_width(model: Any, hook_name: str) -> int:
    """d_in at a hook. UsageError with the near names if the model has no such hook."""
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


def hook_activations(model: Any, hook_name: str, dtype: str = "float32", contexts_per_pass: int = 64) -> Any:
    """Function from token ids [C, T] to activations [C, T, D] at a hook; the model stops after the hook's layer."""
    import torch
    from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name, str_to_dtype

    stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)

    @torch.no_grad()
    def activations(tokens_CT: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in tokens_CT.split(contexts_per_pass):
            _, cached = model.run_with_cache(
                part.to(model.cfg.device), names_filter=hook_name, stop_at_layer=stop, prepend_bos=False
            )
            parts.append(cached[hook_name].to(str_to_dtype(dtype)))
        return torch.cat(parts)

    return activations
