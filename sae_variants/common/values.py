"""Values that users type: parsing, type checks, and numbers that JSON can hold."""

from __future__ import annotations

import ast
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sae_variants.common.errors import UsageError


def parse_value(text: str) -> Any:
    """`32` -> 32, `1e-3` -> 0.001, `true` -> True, `none` -> None, `1,2` -> [1, 2], anything else -> itself."""
    word = {"true": True, "false": False, "none": None}
    if text.lower() in word:
        return word[text.lower()]
    if "," in text:
        return [parse_value(part) for part in text.split(",")]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def finite_or_none(value: Any) -> Any:
    """The same with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite_or_none(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_type(what: str, value: Any, hint: Any) -> None:
    """UsageError unless a value is of the annotated kind; a whole number serves as a float, NaN as nothing."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {float: (int, float), int: (int,), str: (str,), bool: (bool,), list: (list,), NoneType: (NoneType,)}
    for choice in choices:
        origin = get_origin(choice) or choice
        if origin is Literal and value in get_args(choice):
            return
        if origin not in kinds:
            if origin is not Literal:
                return
        elif isinstance(value, kinds[origin]) and (origin is bool or not isinstance(value, bool)) and value == value:
            return
    wanted = " or ".join(
        ", ".join(map(str, get_args(c))) if get_origin(c) is Literal else getattr(c, "__name__", str(c))
        for c in choices
    )
    raise UsageError(f"{what} must be {wanted}, not {value!r}")
