"""A target's recipe: what gives an SAE its L0, and the check that every field is known and of its type."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection
from typing import Any, Union, get_type_hints

from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.values import check_type
from sae_variants.language_model.target import Target
from sae_variants.registry.variants import Variant, find_variant, split_part, variant_names
from sae_variants.training.plan import make_plan
from sae_variants.training.settings import SETTING_NAMES, SETTING_TYPES


def l0_fields(name: str, l0: float, target: Target, given: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields that set an SAE's L0, with their values: k, or the coefficient that the target lists.

    Args:
        name: Name of the SAE.
        l0: Latents that fire per token.
        target: Language model, hook and text.
        given: Fields that are given by themselves.

    Raises:
        UsageError: The SAE has no k, and the target lists no coefficient for that L0; or such a field is given.
    """
    fields = _l0_fields(name, l0, target)
    for field in fields:
        if field in given:
            raise UsageError(f"{field} is given twice: by --l0 and by itself")
    if name in target.l0 and (changed := sorted(SETTING_NAMES & {*given} - {"seed"})):
        note = f"note: {name}: {', '.join(fields)} for L0 {l0:g} was measured with the recipe of {target.name}"
        print(f"{note}; with another {', '.join(changed)} its L0 can be far from that", file=sys.stderr)
    return fields


def _l0_fields(name: str, l0: float, target: Target) -> dict[str, Any]:
    variant, part = find_variant(name), split_part(name)[1]
    if name not in target.l0 and "k" in variant.field_names:
        fields = variant.config_class.l0_fields(part, l0)
        if get_type_hints(variant.config_class)["k"] is int and not float(l0).is_integer():
            raise UsageError(f"{name} fires as many latents on every token: its L0 is a whole number, not {l0:g}")
        return {field: int(value) if float(value).is_integer() else value for field, value in fields.items()}
    table = target.l0.get(name, {})
    for field, by_level in table.items():
        if (value := {float(level): value for level, value in by_level.items()}.get(l0)) is not None:
            return {field: value}
    known = ", ".join(level for values in table.values() for level in values)
    raise UsageError(
        f"{name} has no k, and the target {target.name} knows its {variant.l0_field} "
        + (f"for L0 {known} only, not {l0:g}" if known else "for no L0")
        + f": try values with --grid, e.g. --grid {variant.l0_field}=1,2,4"
    )


def check_settings(target: Target) -> None:
    """Check the training settings in the tables `train` and `variants` of a target, for which no variant is imported.

    Raises:
        UsageError: A value of another type.
    """
    for table, values in {"train": target.train, **{f"variants.{n}": v for n, v in target.variants.items()}}.items():
        for name in [name for name in values if name in SETTING_NAMES]:
            check_type(f"{name} in [{table}] of {target.name}", values[name], SETTING_TYPES[name])


def check_recipe(target: Target) -> None:
    """Check the tables `train`, `variants` and `l0` of a target.

    Raises:
        UsageError: An unknown field or variant, or a value of another type.
    """
    check_settings(target)
    _check_fields(f"[train] of {target.name}", target.train, [find_variant(name) for name in variant_names()])
    for name, values in target.variants.items():
        _check_fields(f"[variants.{name}] of {target.name}", values, [find_variant(name)])
    for name, coefficients in target.l0.items():
        for field, values in coefficients.items():
            check_name(f"field in [l0.{name}] of {target.name}", field, find_variant(name).field_names)
            if not all(_is_number(l0) for l0 in values):
                raise UsageError(f"[l0.{name}.{field}] of {target.name} must name an L0 by each key, such as 30 = 1.4")


def check_plans(target: Target) -> None:
    """Check that a target's recipe can be used as it is, without options that change it.

    Raises:
        UsageError: Every variant refuses the settings in `train`, or every one with a field refuses that field; or a
            variant that the recipe names refuses its values.
    """
    refusals = {name: _refusal(name, target) for name in variant_names()}
    for field in [None, *(target.train.keys() - SETTING_NAMES)]:
        reasons = [why for name, why in refusals.items() if field is None or field in find_variant(name).field_names]
        if None not in reasons:
            raise UsageError(f"[train] of {target.name}: {reasons[0]}")
    for name in target.variants:
        if why := _refusal(name, target):
            raise UsageError(f"[variants.{name}] of {target.name}: {why}")


def _refusal(name: str, target: Target) -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of variants that nobody asked for
            make_plan(name, target)
    except UsageError as error:
        return str(error)
    return None


def _check_fields(where: str, values: dict[str, Any], variants: list[Variant]) -> None:
    known = SETTING_NAMES.union(*(variant.field_names for variant in variants))
    for name, value in values.items():
        check_name(f"field in {where}", name, known)
        if name not in SETTING_NAMES:  # of any variant that has the field
            hints = (get_type_hints(variant.config_class) for variant in variants if name in variant.field_names)
            hint = Union[tuple(known_types.get(name, Any) for known_types in hints)]  # noqa: UP007
            check_type(f"{name} in {where}", value, hint)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
