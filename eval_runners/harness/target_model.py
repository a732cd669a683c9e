"""The model of a target: a language model, or a synthetic model whose features are known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import Target

LoadedModel = Any
"""A target's HookedTransformer, or the SyntheticData of a synthetic target."""


def require_source(purpose: str, target: Target, needs_truth: bool | None = False) -> None:
    """Check that a target is of the kind that an evaluation or a command needs.

    Raises:
        UsageError: it has a language model where known features are needed, or the other way round; or its synthetic
            model cannot be.
    """
    if needs_truth and target.synthetic is None:
        raise UsageError(
            f"{purpose} needs features that are known, and {target.name} is a language model: give --target synthetic"
        )
    if target.synthetic is not None and needs_truth is False:
        raise UsageError(
            f"{purpose} needs a language model, and {target.name} is synthetic: its SAEs are scored by ground_truth"
        )
    if target.synthetic is not None:
        from sae_variants.synthetic.config import read_synthetic

        read_synthetic(target.synthetic, f"[synthetic] of {target.name}")


def model_loader(target: Target, device: str) -> Callable[[], LoadedModel]:
    """A function that loads the target's language model, or its synthetic model, when it is first called."""
    from sae_variants.language_model.load import load_model
    from sae_variants.synthetic.model import load_synthetic

    if target.synthetic is not None:
        table = target.synthetic
        return cache(lambda: load_synthetic(table, device, f"[synthetic] of {target.name}"))
    return cache(lambda: load_model(target.model_name, device, target.dtype))
