"""Variants and evaluations of other packages, which name their modules in an entry-point group."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError


@cache
def find_entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=group), key=lambda entry: entry.name))


def merge_plugins(group: str, own: dict[str, str]) -> dict[str, str]:
    """Names with their modules, and those that installed packages give in an entry-point group.

    Raises:
        UsageError: a name that is taken, or one that is not its module's.
    """
    found = dict(own)
    for entry in find_entry_points(group):
        package = entry.dist.name if entry.dist else "a package"
        if found.get(entry.name, entry.value) != entry.value:
            raise UsageError(f"{package} names {entry.name!r} in {group}, which is {found[entry.name]} already")
        if entry.value.rpartition(".")[2] != entry.name:
            raise UsageError(f"{package} names {entry.name!r} in {group}, but its module is {entry.value}")
        found[entry.name] = entry.value
    return found


def import_plugin(module: str) -> Any:
    """Imports a variant's or an evaluation's module. UsageError for one of another package that cannot be."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        if module.startswith(("sae_variants.", "eval_runners.")):
            raise
        raise UsageError(f"the plugin {module} cannot be imported: {type(error).__name__}: {error}") from error


def read_summary(module: str) -> str:
    """Return the first line of a module's docstring without its full stop; the module is parsed, not imported."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        return "its package cannot be imported"
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    first_line = (doc.splitlines() or [""])[0]
    return first_line.removeprefix(f"{module.rpartition('.')[2]}: ").removesuffix(".")
