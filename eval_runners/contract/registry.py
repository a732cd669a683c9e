"""Discovery of evaluators: modules directly in `eval_runners/`, and those that other packages register."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from eval_runners.contract.contract import Evaluator
from sae_variants.common.errors import UsageError, check_name
from sae_variants.registry.plugins import import_plugin, merge_plugins

USUAL_EVALUATIONS = ("core", "sparse_probing", "positional_consistency")
"""Run, and shown first, where a command names no evaluations."""


GROUPS = {
    "scr_and_tpp": ("scr", "tpp"),
    "saebench": (
        "core",
        "sparse_probing",
        "sae_probes",
        "absorption",
        "autointerp",
        "scr",
        "tpp",
        "meta_structure",
        "mdl",
        "ravel",
        "unlearning",
    ),
}
"""Names that stand for several evaluations: SAEBench's module of two, and all of SAEBench's."""


def evaluator_modules() -> dict[str, str]:
    """Name -> module of every evaluator: files directly in `eval_runners/`, and those of other packages.

    Another package names its own in the entry-point group `eval_runners`. Imports nothing.
    """
    return merge_plugins("eval_runners", {stem: f"eval_runners.{stem}" for stem in _own_stems()})


@cache
def _own_stems() -> list[str]:
    return sorted(
        path.stem
        for path in Path(__file__).parents[1].glob("*.py")
        if not path.stem.startswith("_") and path.stem not in GROUPS
    )


def evaluator_names() -> list[str]:
    """Names of all evaluators, ours first."""
    return list(evaluator_modules())


def load_evaluator(name: str) -> Evaluator[Any]:
    """Import the module of an evaluator and return the evaluator.

    Raises:
        UsageError: no evaluator has that name, or its module cannot be imported or defines none.
    """
    check_name("evaluation", name, evaluator_names())
    return _evaluator_of(evaluator_modules()[name])


@cache
def _evaluator_of(module: str) -> Evaluator[Any]:
    defined = vars(import_plugin(module)).values()
    classes = [one for one in defined if isinstance(one, type) and issubclass(one, Evaluator)]
    own = [one for one in classes if one.__module__ == module]
    if len(own) != 1:
        raise UsageError(f"{module} must define one subclass of eval_runners.Evaluator, not {len(own)}")
    return own[0]()


def evaluator_of_type(eval_type_id: str) -> Evaluator[Any] | None:
    """The evaluator whose results have that `eval_type_id`, or None."""
    for name in evaluator_names():
        evaluator = load_evaluator(name)
        if evaluator.result_type == eval_type_id:
            return evaluator
    return None
