"""Dataclass -> command line: each field is an option, and the docstring under it is the option's help.

Options that were not given are absent from the result, so that a target's recipe can supply the default.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from dataclasses import fields
from itertools import pairwise
from typing import Any

from sae_variants.common.values import parse_value


def field_docs(config_class: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, inherited ones included."""
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
    return "--" + name.replace("_", "-")


def _typed(annotation: str) -> Any:
    def convert(text: str) -> Any:
        value = parse_value(text)
        kind = annotation.split("|")[0].strip()
        if kind.startswith("tuple"):
            one = _typed(kind.removeprefix("tuple[").partition(",")[0])
            parts = [part.strip() for part in text.split(",") if part.strip()]
            if not parts:
                raise argparse.ArgumentTypeError("at least one value is needed")
            return tuple(one(part) for part in parts)
        if kind == "int" and (isinstance(value, bool) or not isinstance(value, int)):
            if isinstance(value, float) and value.is_integer():
                return int(value)
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
        if kind == "float" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number")
        if kind == "bool" and not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
        return text if kind == "str" else float(value) if kind == "float" else value

    return convert


def _metavar(annotation: str) -> str:
    kind = annotation.split("|")[0].strip()
    return "A,B,..." if kind.startswith("tuple") else kind.upper()


def _default(value: Any) -> str:
    if value is None:
        return ""
    return f" (default: {','.join(map(str, value)) if isinstance(value, tuple) else value})"


def add_fields(parser: argparse.ArgumentParser, config_class: type, title: str) -> None:
    """One option per field; a field that was not given is absent from the parsed namespace."""
    group = parser.add_argument_group(title)
    docs = field_docs(config_class)
    for f in fields(config_class):
        flag: dict[str, Any] = {"nargs": "?", "const": True} if str(f.type) == "bool" else {}
        group.add_argument(
            to_option(f.name),
            dest=f.name,
            **flag,
            type=_typed(str(f.type)),
            default=argparse.SUPPRESS,
            metavar=_metavar(str(f.type)),
            help=docs.get(f.name, "").replace("%", "%%") + _default(f.default),
        )


def given_fields(args: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """The fields of a dataclass that stood on the command line."""
    return {f.name: getattr(args, f.name) for f in fields(config_class) if hasattr(args, f.name)}
