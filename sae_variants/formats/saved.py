"""Configs in SAELens' layout for SAEs that come from other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError


def check_agrees(config: Path, stated: Mapping[str, Any], weights: Path, found: Mapping[str, int]) -> None:
    """Check that a config states what the weights beside it show, as the library that wrote them does.

    Args:
        config: File of the config.
        stated: Its fields; one that is absent, None or 0 states nothing.
        weights: File of the weights.
        found: Field -> its value in the weights.

    Raises:
        UsageError: A field differs.
    """
    for name, value in found.items():
        if stated.get(name) and stated[name] != value:
            raise UsageError(
                f"{config} has {name} = {stated[name]!r}, but {weights.name} has {value}: one of the files belongs to"
                " another SAE"
            )


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
