"""Settings of an evaluation from Python: a mapping, the evaluator's own class, or a config of SAEBench."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from eval_runners.contract.contract import Evaluator
from eval_runners.harness.fit import is_model_of
from sae_variants.common.errors import UsageError, check_name
from sae_variants.common.values import check_type
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OF_FILES = (
    "verbose", "lower_vram_usage", "results_path", "model_cache_path", "artifact_dir", "force_dataset_recompute",
    "save_metrics",
)  # fmt: skip
"""Fields of SAEBench's configs that change no number."""
ALWAYS = (
    "compute_kl", "compute_ce_loss", "compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics",
    "compute_featurewise_density_statistics", "compute_featurewise_weight_based_metrics",
)  # fmt: skip
"""Fields of SAEBench's `CoreEvalConfig` that `core` always has as True."""


def settings_of(
    evaluator: Evaluator[Any], target: Target, config: DataclassInstance | Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that a config gives, by field.

    Args:
        evaluator: the evaluation.
        target: sets the language model, its data type, the text, and every setting that is not given.
        config: a mapping from fields to values; an instance of the evaluator's settings, all of whose fields are given;
            or a config of SAEBench, of which those fields are given that differ from SAEBench's defaults.

    Raises:
        UsageError: a field that the evaluation does not have, a value of another type, or another language model.
    """
    if isinstance(config, Mapping):
        return _checked(evaluator, "config", config)
    if isinstance(config, evaluator.settings_class):
        return {f.name: getattr(config, f.name) for f in fields(config)}
    return _checked(evaluator, type(config).__name__, _changed(evaluator, target, config))


def _checked(evaluator: Evaluator[Any], what: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the types of the settings: tuples in place of lists, floats in place of ints."""
    hints = get_type_hints(evaluator.settings_class)
    checked: dict[str, Any] = {}
    for name, value in given.items():
        check_name(f"field in the {what} of {evaluator.name}", name, hints)
        whole = tuple(value) if isinstance(value, list) else value
        checked[name] = check_type(f"{name} in the {what} of {evaluator.name}", whole, hints[name])
    return checked


def _changed(evaluator: Evaluator[Any], target: Target, config: DataclassInstance) -> dict[str, Any]:
    """The fields of a config of SAEBench that differ from its defaults, without those that the target sets."""
    kind = type(config).__name__
    is_scr = getattr(evaluator, "perform_scr", None)  # SCR and TPP have one config
    if is_scr is not None and getattr(config, "perform_scr", is_scr) is not is_scr:
        raise UsageError(f"perform_scr of {kind} must be {is_scr} for {evaluator.name}")
    try:
        default = type(config)()
    except TypeError:
        default = None  # a field without a default
    missing = object()
    given = {f.name: getattr(config, f.name) for f in fields(config)}
    changed = {name: value for name, value in given.items() if value != getattr(default, name, missing)}
    for name in (*OF_FILES, "perform_scr"):
        changed.pop(name, None)
    for name in ALWAYS:
        if changed.get(name) is True:
            del changed[name]
    for name, ours in _of_target(target).items():
        theirs = changed.pop(name, "") or ours
        if theirs != ours and not (name == "model_name" and is_model_of(theirs, target)):
            raise UsageError(f"{name} of {kind} is {theirs!r}, but the target {target.name} has {ours!r}")
    taken = ", ".join(f"{name}={value!r}" for name, value in changed.items()) or "nothing"
    print(f"{evaluator.name} takes {taken} from {kind}; the target {target.name} and our defaults set the rest")
    return changed


def _of_target(target: Target) -> dict[str, str]:
    """Fields of SAEBench's configs that say what the target says."""
    return {
        "model_name": target.model_name,
        "llm_dtype": target.dtype,
        "dtype": target.dtype,
        "dataset": target.dataset,
        "dataset_name": target.dataset,
    }
