"""Variants and evaluators of other packages, which name their modules in an entry-point group."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from sae_variants.common.errors import UsageError


@cache
def find_entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group in all installed packages, sorted by name."""
    return tuple(sorted(entry_points(group=group), key=lambda entry: entry.name))


def merge_plugins(group: str, modules: dict[str, str]) -> dict[str, str]:
    """Return the modules by name: those of this package and those of an entry-point group.

    Args:
        group: Name of the entry-point group.
        modules: Modules of this package by name.

    Raises:
        UsageError: A name is taken, or differs from the name of its module.
    """
    modules = dict(modules)
    for entry in find_entry_points(group):
        package = entry.dist.name if entry.dist else "a package"
        if modules.get(entry.name, entry.value) != entry.value:
            raise UsageError(f"{package} names {entry.name!r} in {group}, which is {modules[entry.name]} already")
        if entry.value.rpartition(".")[2] != entry.name:
            raise UsageError(f"{package} names {entry.name!r} in {group}, but its module is {entry.value}")
        modules[entry.name] = entry.value
    return modules


def import_plugin(module: str) -> ModuleType:
    """Import a variant's or an evaluator's module; raise a UsageError if it belongs to another package and fails."""
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
