"""Reads result files, and describes the differences between the conditions of two results.

Imports no torch and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from eval_runners.contract.contract import RESULT_METRICS, UNSTRUCTURED, Metric, Result, value_at
from eval_runners.store.seeds import half_width
from sae_variants.common.errors import UsageError

PUBLISHED, BASELINES, RUNS = (Path("results") / name for name in ("published", "baselines", "runs"))

HUGE = 1e150
IMMATERIAL = {
    "llm_batch_size",
    "sae_batch_size",
    "lower_vram_usage",
    "verbose",
    "random_seed",
    "results_path",
    "model_cache_path",
    "compute_featurewise_density_statistics",
    "compute_featurewise_weight_based_metrics",
}
"""Settings of SAEBench's that may differ between two results that are compared."""

_TEXT, _COUNT, _NUMBER = (str, type(None)), (int, type(None)), (int, float, type(None))
TYPES: dict[str, tuple[type, ...]] = {
    "eval_type_id": (str,),
    "datetime_epoch_millis": _NUMBER,
    "sae_cfg_dict.d_sae": _COUNT,
    "sae_cfg_dict.hook_name": _TEXT,
    "source": _TEXT,
    f"{UNSTRUCTURED}.not_trained_because": (list, type(None)),
    f"{UNSTRUCTURED}.not_a_number": (list, type(None)),
    f"{UNSTRUCTURED}.densities": (dict, type(None)),
    f"{UNSTRUCTURED}.densities.log10_from": _NUMBER,
    f"{UNSTRUCTURED}.densities.bins_per_decade": _NUMBER,
    f"{UNSTRUCTURED}.densities.never": _NUMBER,
    f"{UNSTRUCTURED}.provenance": (dict, type(None)),
    f"{UNSTRUCTURED}.provenance.seed": _COUNT,
    f"{UNSTRUCTURED}.provenance.training_tokens": _COUNT,
    f"{UNSTRUCTURED}.provenance.evaluator_version": _COUNT,
    f"{UNSTRUCTURED}.provenance.eval_seed": _COUNT,
    f"{UNSTRUCTURED}.provenance.command": _TEXT,
    f"{UNSTRUCTURED}.provenance.commit": _TEXT,
    f"{UNSTRUCTURED}.provenance.target": _TEXT,
    f"{UNSTRUCTURED}.provenance.weight_hash": _TEXT,
    f"{UNSTRUCTURED}.provenance.kind": _TEXT,
}
"""Path in a result -> types of its value: everything that the leaderboard reads beside the metrics."""


def load_result(path: Path) -> Result:
    """Load a result of SAEBench, of any version, or of ours.

    Raises:
        UsageError: the file is no result.
    """
    return parse_result(_read_text(path), str(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read the result {path}: {reason}") from error


def parse_result(text: str, name: str) -> Result:
    """Parse the text of one result.

    Args:
        text: JSON.
        name: names the result in errors, such as by its path.

    Raises:
        UsageError: the text is no result.
    """
    try:
        result = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the result {name}: it is not JSON: {error}") from error
    needed = ("eval_type_id", "eval_config", RESULT_METRICS)
    missing = [key for key in needed if not isinstance(result, dict) or key not in result]
    if missing:
        raise UsageError(f"{name} is not a result of SAEBench: it has no {', '.join(missing)}")
    for key in ("eval_config", RESULT_METRICS, "sae_cfg_dict", UNSTRUCTURED):
        if not isinstance(result.get(key) or {}, dict):
            raise UsageError(f"{name} is not a result of SAEBench: its {key} holds no names")
    for path, types in TYPES.items():
        value = value_at(result, path)
        if not isinstance(value, types) or (isinstance(value, list) and not all(isinstance(x, str) for x in value)):
            raise UsageError(f"{name} is not a result of SAEBench: its {path} is {str(value)[:40]!r}")
    return result


def read_results(folders: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """Read every result in the folders, from .json files and from the lines of .jsonl files.

    Returns:
        The results; one line for each file, or line of a file, that is no result.
    """
    results: list[Result] = []
    broken: list[str] = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*.json*"))):
        if path.suffix not in (".json", ".jsonl"):
            continue
        try:
            texts = list(_texts(path))
        except UsageError as error:
            broken.append(str(error))
            continue
        for name, text in texts:
            try:
                results.append(parse_result(text, name))
            except UsageError as error:
                broken.append(str(error))
    return results, broken


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every result in a file."""
    text = _read_text(path)
    if path.suffix == ".json":
        yield str(path), text
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def weight_hash_of(result: Result) -> str | None:
    """Weight hash of the SAE of a result of ours."""
    return provenance_of(result).get("weight_hash")


def metric_value(metric: Metric, result: Result) -> float | None:
    """The metric's number in a result; None where it is absent or means "not a number"."""
    return None if why_missing(metric, result) else value_at(result, metric.path)


def why_missing(metric: Metric, result: Result) -> str | None:
    """Reason why a result has no number for a metric; None if it has one."""
    unstructured = result.get(UNSTRUCTURED) or {}
    value = value_at(result, metric.path)
    if any(metric.path.endswith("." + name) for name in unstructured.get("not_a_number", [])):
        return "not a number"
    if value is None:
        return "not among its numbers"
    if isinstance(value, bool) or not isinstance(value, int | float) or not -HUGE < value < HUGE:
        return "not a number"
    if value == -1 and not provenance_of(result):
        return "-1, SAEBench's sign for not a number"
    return None


def eval_seed_of(result: Result) -> int:
    """Evaluation seed of a result: 0, unless `reliability` made it for the spread between such seeds."""
    return provenance_of(result).get("eval_seed") or 0


def provenance_of(result: Result) -> dict[str, Any]:
    """Provenance of a result of ours; empty for results of others."""
    provenance = (result.get(UNSTRUCTURED) or {}).get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def mean_and_interval(metric: Metric, results: Sequence[Result]) -> tuple[float, float | None] | None:
    """Mean of a metric over results, one per seed, and half of its 95 % interval.

    Returns:
        The mean; half of the interval, None for one seed. None if a result has no number, or there is none.
    """
    values = [metric_value(metric, result) for result in results]
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) < len(values):
        return None
    return fmean(numbers), half_width(numbers)


def conditions_of(result: Result) -> dict[str, Any]:
    """Conditions that must be equal in two results whose numbers are subtracted or ranked."""
    settings = {key: value for key, value in (result["eval_config"] or {}).items() if key not in IMMATERIAL}
    cfg = result.get("sae_cfg_dict") or {}
    metadata = cfg.get("metadata")  # SAEBench's sae-probes writes it as a text
    hook_name, model_name = (
        cfg.get(name) or (metadata.get(name) if isinstance(metadata, dict) else None)
        for name in ("hook_name", "model_name")
    )
    provenance = provenance_of(result)
    return {
        "evaluation": result["eval_type_id"],
        "hook_name": hook_name,
        "model_name": model_name,  # where the evaluation reads weights only, and its config names no model
        "documents": provenance.get("read") or None,
        "text": provenance.get("text"),
        "text_version": provenance.get("text_version"),
        "evaluator_version": provenance.get("evaluator_version", 1) if provenance else None,
        "eval_seed": eval_seed_of(result),
        **settings,
    }


def _normalized(key: str, value: Any) -> Any:
    """A condition without what does not matter: the model's owner, and the order of datasets or of k."""
    if key == "model_name":
        return str(value).rpartition("/")[2]
    return sorted(value, key=str) if isinstance(value, list | tuple) else value


def describe_differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """One line for each condition that separates two results. A condition that either lacks separates nothing."""
    return [
        f"{key} is {value!r} here and {there[key]!r} there"
        for key, value in here.items()
        if value is not None and there.get(key) is not None and _normalized(key, value) != _normalized(key, there[key])
    ]
