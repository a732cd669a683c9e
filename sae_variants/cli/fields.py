"""Dataclass -> command line: each field is an option, and the docstring under it is the option's help.

Options that were not given are absent from the result, so that a target's recipe can supply the default.

simple-parsing 0.1.9, which SAELens installs, does not replace this module. It refuses `--k-values 1,2` and
`--tokens 1e6`, fails on a `%` in a field's docstring, shows no default of an option that may be absent, adds a
`--no...` twin to every flag and puts what it has parsed into a dict of its own. Each would need code of its own here.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sae_variants.common.errors import UsageError
from sae_variants.common.values import check_type, parse_value

REFUSALS = {int: "is not a whole number", float: "is not a number", bool: "is neither true nor false"}


def field_docs(config_class: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass, inherited fields included."""
    docs: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        if cls.__module__ == "builtins":
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for statement, after in pairwise(statements):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[statement.target.id] = " ".join(text.value.split())
    return docs


def to_option(name: str) -> str:
    """Return the option of a field: `d_sae` -> `--d-sae`."""
    return "--" + name.replace("_", "-")


def add_fields(parser: argparse.ArgumentParser, config_class: type, title: str) -> None:
    """Add one option per field; a field that was not given is absent from the parsed namespace."""
    group = parser.add_argument_group(title)
    docs, hints = field_docs(config_class), get_type_hints(config_class)
    for f in fields(config_class):
        kind = _main_type(hints[f.name])
        flag: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
        group.add_argument(
            to_option(f.name),
            dest=f.name,
            **flag,
            type=_converter(hints[f.name]),
            default=argparse.SUPPRESS,
            metavar=_metavar(kind),
            help=docs.get(f.name, "").replace("%", "%%") + _default(f.default),
        )


def given_fields(args: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """Return the fields of a dataclass that were given on the command line."""
    given = vars(args)
    return {f.name: given[f.name] for f in fields(config_class) if f.name in given}


def _main_type(hint: Any) -> Any:
    """Return the type of a field's value where it is not None."""
    return next((part for part in get_args(hint) if part is not type(None)), hint) if _is_optional(hint) else hint


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "A,B,..."
    return "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else kind.__name__.upper()


def _converter(hint: Any) -> Callable[[str], Any]:
    """Return the function that turns an option's text into the field's type."""
    kind = _main_type(hint)
    if get_origin(kind) is tuple:
        convert_part = _converter(get_args(kind)[0])
        return lambda text: _split(text, convert_part)
    if kind is str:
        return str

    def convert(text: str) -> Any:
        try:
            return check_type(text, parse_value(text), hint)
        except UsageError as error:
            reason = f"{text!r} {REFUSALS[kind]}" if kind in REFUSALS else str(error)
            raise argparse.ArgumentTypeError(reason) from error

    return convert


def _split(text: str, convert_part: Callable[[str], Any]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise argparse.ArgumentTypeError("at least one value is needed")
    return tuple(convert_part(part) for part in parts)


def _default(value: Any) -> str:
    if value is None:
        return ""
    return f" (default: {','.join(map(str, value)) if isinstance(value, tuple) else value})"
