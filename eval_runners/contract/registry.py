"""Discovery of evaluators: modules directly in `eval_runners/`, and those that other packages register."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_variants.common.errors import check_name
from sae_variants.registry.plugins import import_plugin, merge_plugins


def evaluator_modules() -> dict[str, str]:
    """Every evaluation with its module: the files beside this one without an underscore, and those of other packages.

    Another package names its own in the entry-point group `eval_runners`. Imports nothing.
    """
    files = sorted(path.stem for path in Path(__file__).parents[1].glob("*.py") if not path.stem.startswith("_"))
    return merge_plugins("eval_runners", {stem: f"eval_runners.{stem}" for stem in files})


def evaluator_names() -> list[str]:
    return list(evaluator_modules())


def load_evaluator(name: str) -> Any:
    """The module of an evaluation. UsageError for a name that is none, or a module that cannot be imported."""
    check_name("evaluation", name, evaluator_names())
    return import_plugin(evaluator_modules()[name])


def evaluator_name_of_type(eval_type_id: str) -> str:
    """The name of the evaluation whose results call themselves so; the same word where there is none."""
    return next(
        (name for name in evaluator_names() if eval_type_of(load_evaluator(name)) == eval_type_id), eval_type_id
    )


def eval_type_of(module: Any) -> str:
    """What results of an evaluation call themselves: its name, where the module does not say otherwise."""
    return getattr(module, "EVAL_TYPE", module.__name__.rpartition(".")[2])
