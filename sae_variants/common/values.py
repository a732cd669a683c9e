"""Values that users type: parsing, type checks, and numbers that JSON can represent."""

from __future__ import annotations

import ast
import math
import re
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def parse_value(text: str) -> Any:
    """Return the value that a text stands for.

    `32` is 32, `1e-3` is 0.001, `true` is True, `none` is None, `1,2` and `[1,2]` are [1, 2]; any other text is itself.
    """
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    if text.startswith("[") and text.endswith("]"):
        return [parse_value(part) for part in split_values(text[1:-1]) if part]
    if "," in text:
        return [parse_value(part) for part in text.split(",")]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def split_values(text: str) -> list[str]:
    """Return the parts of a text between its commas, except those in brackets, without spaces around them."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text)]


def finite_or_none(value: Any) -> Any:
    """Return the value with None for every number that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: finite_or_none(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_type(what: str, value: Any, hint: Any) -> Any:
    """Return a value in its annotated type: an int as a float or a list of one where that is expected, 8.0 as 8.

    Args:
        what: The subject of the error message, such as `k of topk`.
        value: The value to check.
        hint: The annotated type: a class, a union, a `Literal` or a generic.

    Raises:
        UsageError: The value has another type, is not among the choices, or is NaN or infinite.
    """
    from pydantic import ValidationError

    kinds = (hint, *get_args(hint))
    if value is None and NoneType not in kinds and (str in kinds or "none" in kinds):
        value = "none"  # a word here, which `parse_value` takes for nothing
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        value = int(value)
    if get_origin(hint) is list and isinstance(value, (int, float, str)):
        value = [value]
    try:
        return _validator(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"{what} must be {_type_name(hint)}, not {value!r}") from error


@cache
def _validator(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_type_name(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    return "None" if hint is NoneType else hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
