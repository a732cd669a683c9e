"""Configs in SAELens' layout for SAEs that come from other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


def make_saved_config(
    architecture: str, d_in: int, d_sae: int, device: str, fields: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of a `cfg.json` of SAELens 6.

    Args:
        architecture: SAELens' name of the architecture.
        d_in: Width of the activations.
        d_sae: Number of latents.
        device: Device of the weights.
        fields: Further fields of the architecture's config.
        metadata: What is known of the training; values that are None are left out.
    """
    known = {name: value for name, value in metadata.items() if value is not None}
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **fields,
        "metadata": {"sae_lens_version": version("sae-lens"), **known},
    }
