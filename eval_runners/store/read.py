"""Result files -> rows and differences, of what may be compared. Pure: imports no torch, writes nothing."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from eval_runners.contract.contract import Metric, value_at
from sae_variants.common.errors import UsageError

Result = dict[str, Any]
PUBLISHED, BASELINES, RUNS = (Path("results") / name for name in ("published", "baselines", "runs"))

HUGE = 1e308
IMMATERIAL = {
    "llm_batch_size", "sae_batch_size", "lower_vram_usage", "verbose", "random_seed", "results_path",
    "model_cache_path", "compute_featurewise_density_statistics", "compute_featurewise_weight_based_metrics",
}  # fmt: skip
"""Settings of SAEBench's that may differ between two results that are compared."""


_OURS, _TEXT, _NUMBER = "eval_result_unstructured", (str, type(None)), (int, float, type(None))
SHAPES: dict[str, tuple[type, ...]] = {
    "eval_type_id": (str,), "datetime_epoch_millis": _NUMBER, "sae_cfg_dict.d_sae": (int, type(None)),
    "sae_cfg_dict.hook_name": _TEXT, "source": _TEXT,
    f"{_OURS}.not_trained_because": (list, type(None)), f"{_OURS}.not_a_number": (list, type(None)),
    f"{_OURS}.densities": (dict, type(None)), f"{_OURS}.provenance": (dict, type(None)),
    f"{_OURS}.provenance.seed": (int, type(None)), f"{_OURS}.provenance.training_tokens": (int, type(None)),
    **{f"{_OURS}.provenance.{name}": _TEXT for name in ("command", "commit", "target", "weight_hash", "kind")},
    **{f"{_OURS}.densities.{name}": _NUMBER for name in ("log10_from", "bins_per_decade", "never")},
}  # fmt: skip
"""Place in a result -> what may stand there; beside the metrics, all that the leaderboard reads."""


def load_result(path: Path) -> Result:
    """A result of SAEBench, of any version, or of ours. UsageError if the file is none."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read the result {path}: {reason}") from error
    return parse_result(text, str(path))


def parse_result(text: str, path: str) -> Result:
    """The same of the text of one result, at a place to be named in errors."""
    try:
        result = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the result {path}: it is not JSON: {error}") from error
    needed = ("eval_type_id", "eval_config", "eval_result_metrics")
    missing = [key for key in needed if not isinstance(result, dict) or key not in result]
    if missing:
        raise UsageError(f"{path} is not a result of SAEBench: it has no {', '.join(missing)}")
    for key in ("eval_config", "eval_result_metrics", "sae_cfg_dict", "eval_result_unstructured"):
        if not isinstance(result.get(key) or {}, dict):
            raise UsageError(f"{path} is not a result of SAEBench: its {key} holds no names")
    for place, kinds in SHAPES.items():
        found = value_at(result, place)
        if not isinstance(found, kinds) or (isinstance(found, list) and not all(isinstance(x, str) for x in found)):
            raise UsageError(f"{path} is not a result of SAEBench: its {place} is {str(found)[:40]!r}")
    return result


def read_results(folders: list[Path]) -> tuple[list[Result], list[str]]:
    """Every result in the folders, from .json files and the lines of .jsonl files; of those that are none, why."""
    results: list[Result] = []
    broken: list[str] = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*.json*"))):
        texts = {str(path): None}
        if path.suffix == ".jsonl":
            try:
                lines = path.read_text().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                broken.append(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}")
                continue
            texts = {f"{path}, line {number}": line for number, line in enumerate(lines, start=1) if line.strip()}
        elif path.suffix != ".json":
            continue
        for place, text in texts.items():
            try:
                results.append(load_result(path) if text is None else parse_result(text, place))
            except UsageError as error:
                broken.append(str(error))
    return results, broken


def weight_hash_of(result: Result) -> str | None:
    """Of the SAE that a result of ours belongs to."""
    return provenance_of(result).get("weight_hash")


def metric_value(metric: Metric, result: Result) -> float | None:
    """The metric's number in a result; None where it is absent or stands for "not a number"."""
    return None if why_missing(metric, result) else value_at(result, metric.path)


def why_missing(metric: Metric, result: Result) -> str | None:
    """Why a result has no number for a metric; None if it has one."""
    ours = result.get("eval_result_unstructured") or {}
    found = value_at(result, metric.path)
    if any(metric.path.endswith("." + name) for name in ours.get("not_a_number", [])):
        return "not a number"
    if found is None:
        return "not among its numbers"
    if isinstance(found, bool) or not isinstance(found, int | float) or not -HUGE < found < HUGE:
        return "not a number"
    if found == -1 and not provenance_of(result):
        return "-1, SAEBench's sign for not a number"
    return None


def provenance_of(result: Result) -> dict[str, Any]:
    """Where a result of ours comes from; empty for those of others."""
    found = (result.get("eval_result_unstructured") or {}).get("provenance")
    return found if isinstance(found, dict) else {}


def mean_and_error(metric: Metric, results: list[Result]) -> tuple[float, float | None] | None:
    """Mean and standard error over the seeds; no error for one seed, nothing if one has no number."""
    values = [metric_value(metric, result) for result in results]
    numbers = [v for v in values if v is not None]
    if not numbers or len(numbers) < len(values):
        return None
    if len(numbers) == 1:
        return numbers[0], None
    mean = fmean(numbers)
    return mean, sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1) / len(numbers))


def conditions_of(result: Result) -> dict[str, Any]:
    """What must be equal in two results whose numbers are subtracted or ranked."""
    found = {key: value for key, value in (result["eval_config"] or {}).items() if key not in IMMATERIAL}
    cfg = result.get("sae_cfg_dict") or {}
    metadata = cfg.get("metadata")  # SAEBench's sae-probes writes it as a text
    hook_name = cfg.get("hook_name") or (metadata.get("hook_name") if isinstance(metadata, dict) else None)
    documents = provenance_of(result).get("read") or None
    said = {name: provenance_of(result).get(name) for name in ("text", "text_version")}
    return {"evaluation": result["eval_type_id"], "hook_name": hook_name, "documents": documents, **said, **found}


def _plain(key: str, value: Any) -> Any:
    """`google/gemma-2-2b` and `gemma-2-2b` are one model, and the order of datasets or of k counts for nothing."""
    if key == "model_name":
        return str(value).rpartition("/")[2]
    return sorted(value, key=str) if isinstance(value, list | tuple) else value


def describe_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What separates two sets of conditions, in words; a condition that either does not name separates nothing."""
    return [
        f"{key} is {one[key]!r} here and {other[key]!r} there"
        for key in one
        if one[key] is not None and other.get(key) is not None and _plain(key, one[key]) != _plain(key, other[key])
    ]
