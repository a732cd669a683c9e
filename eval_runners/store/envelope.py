"""SAEBench's envelope for evaluations that SAEBench does not have: the class of the results, and a whole result."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from types import new_class
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import RESULT_METRICS, Evaluator, Result
from sae_variants.common.values import finite_or_none
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE


@cache
def output_class(evaluator: Evaluator[Any]) -> type:
    """The class that an evaluator's results validate against: SAEBench's, or one that follows from its metrics.

    The latter is a subclass of SAEBench's `BaseEvalOutput` with every metric name, a number or null, in every category.
    """
    if host := evaluator.host_output_class():
        return host
    from pydantic import Field
    from pydantic.dataclasses import dataclass
    from sae_bench.evals import base_eval_output as base

    def make_class(name: str, parent: Any, types: dict[str, Any], **defaults: Any) -> Any:
        body = {"__annotations__": types, "__module__": __name__, **defaults}
        return dataclass(new_class(name, (parent,), exec_body=lambda namespace: namespace.update(body)))

    categories, names = _categories_and_names(evaluator)
    settings = {f.name: Any for f in fields(evaluator.settings_class)} | {"model_name": str, "llm_dtype": str}
    config = make_class("Config", base.BaseEvalConfig, settings)
    values = make_class("Metrics", base.BaseMetrics, dict.fromkeys(names, float | None), **dict.fromkeys(names))
    by_category = make_class("Categories", base.BaseMetricCategories, dict.fromkeys(categories, values))
    types = {"eval_type_id": str, "eval_config": config, "eval_result_metrics": by_category}
    default = Field(default=evaluator.result_type)
    return make_class(f"{evaluator.name}_output", base.BaseEvalOutput, types, eval_type_id=default)


def make_output(
    evaluator: Evaluator[Any], settings: Any, values: Mapping[str, float | None], sae: SAE[Any], target: Target
) -> Result:
    """Put the values of an evaluation that SAEBench does not have into SAEBench's envelope.

    Args:
        evaluator: declares the metrics.
        settings: an instance of its `settings_class`.
        values: `category.name` -> number. Metrics that are absent or not finite become null.
        sae: the SAE that was evaluated.
        target: names the language model and its data type.

    Raises:
        KeyError: a value that is no metric of the evaluator.
    """
    ids = _value_ids(evaluator)
    if unknown := values.keys() - ids:
        raise KeyError(f"{evaluator.name} declares no metric {', '.join(sorted(unknown))}")
    metrics: dict[str, dict[str, float | None]] = {}
    for value_id in ids:
        category, _, name = value_id.partition(".")
        metrics.setdefault(category, {})[name] = finite_or_none(values.get(value_id))
    return {
        "eval_type_id": evaluator.result_type,
        "eval_config": {**asdict(settings), "model_name": target.model_name, "llm_dtype": target.dtype},
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        RESULT_METRICS: metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": sae_bench_release(),
        "sae_lens_id": None,
        "sae_lens_release_id": None,
        "sae_lens_version": version("sae-lens"),
        "sae_cfg_dict": sae.cfg.to_dict(),
    }


def _value_ids(evaluator: Evaluator[Any]) -> list[str]:
    """Ids of the metrics in SAEBench's section, and of the values that they refer to."""
    metrics = [metric for metric in evaluator.metrics if metric.section == RESULT_METRICS]
    references = [reference for metric in metrics for _, reference in metric.references]
    return list(dict.fromkeys([*(metric.id for metric in metrics), *references]))


def _categories_and_names(evaluator: Evaluator[Any]) -> tuple[list[str], list[str]]:
    parts = [value_id.partition(".") for value_id in _value_ids(evaluator)]
    return list(dict.fromkeys(category for category, _, _ in parts)), list(dict.fromkeys(name for _, _, name in parts))


def sae_bench_release() -> str:
    """Value of `sae_bench_commit_hash`, where SAEBench writes the HEAD of the repository that it is started in."""
    return f"sae-bench {version('sae-bench')}"
