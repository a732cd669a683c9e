"""Check of a target's recipe: every field of it is a training setting or a field of a variant, and of its type."""

from __future__ import annotations

from typing import Any

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.values import check_type
from sae_variants.language_model.target import Target
from sae_variants.registry.variants import find_variant, variant_names
from sae_variants.training.settings import SETTING_NAMES, SETTING_TYPES


def check_recipe(target: Target) -> None:
    """Check the tables `train`, `variants` and `l0` of a target.

    Raises:
        UsageError: An unknown field or variant, or a value of another type.
    """
    known = SETTING_NAMES.union(*(find_variant(name).field_names for name in variant_names()))
    _check_fields(f"[train] of {target.name}", target.train, known)
    for name, values in target.variants.items():
        _check_fields(f"[variants.{name}] of {target.name}", values, find_variant(name).field_names | SETTING_NAMES)
    for name, coefficients in target.l0.items():
        for field, values in coefficients.items():
            check_name(f"field in [l0.{name}] of {target.name}", field, find_variant(name).field_names)
            if not all(_is_number(l0) for l0 in values):
                raise UsageError(f"[l0.{name}.{field}] of {target.name} must name an L0 by each key, such as 30 = 1.4")


def _check_fields(where: str, values: dict[str, Any], known: set[str] | frozenset[str]) -> None:
    for name, value in values.items():
        check_name(f"field in {where}", name, known)
        if name in SETTING_NAMES:
            check_type(f"{name} in {where}", value, SETTING_TYPES[name])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
