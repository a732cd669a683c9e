"""The envelope of SAEBench's results for evaluations that SAEBench does not have."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from types import new_class
from typing import Any

from sae_variants.language_model.target import Target


@cache
def make_output_class(
    evaluation: str, config_class: type, categories: tuple[str, ...], metrics: tuple[str, ...]
) -> type:
    """A `BaseEvalOutput` of SAEBench's with those metrics, numbers or null, in each of those categories."""
    from pydantic import Field
    from pydantic.dataclasses import dataclass
    from sae_bench.evals import base_eval_output as base

    def made(name: str, parent: Any, types: dict[str, Any], **defaults: Any) -> Any:
        body = {"__annotations__": types, "__module__": __name__, **defaults}
        return dataclass(new_class(name, (parent,), exec_body=lambda namespace: namespace.update(body)))

    settings = {f.name: Any for f in fields(config_class)} | {"model_name": str, "llm_dtype": str}
    config = made("Config", base.BaseEvalConfig, settings)
    values = made("Metrics", base.BaseMetrics, dict.fromkeys(metrics, float | None), **dict.fromkeys(metrics))
    by_category = made("Categories", base.BaseMetricCategories, dict.fromkeys(categories, values))
    types = {"eval_type_id": str, "eval_config": config, "eval_result_metrics": by_category}
    return made(f"{evaluation}_output", base.BaseEvalOutput, types, eval_type_id=Field(default=evaluation))


def make_output(
    evaluation: str, config: Any, metrics: dict[str, dict[str, float]], sae: Any, target: Target
) -> dict[str, Any]:
    """A result of an evaluation of ours: category -> metric -> value, in SAEBench's envelope."""
    return {
        "eval_type_id": evaluation,
        "eval_config": {**asdict(config), "model_name": target.model_name, "llm_dtype": target.dtype},
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": sae_bench_release(),
        "sae_lens_id": None,
        "sae_lens_release_id": None,
        "sae_lens_version": version("sae-lens"),
        "sae_cfg_dict": sae.cfg.to_dict(),
    }


def sae_bench_release() -> str:
    """For `sae_bench_commit_hash`, where SAEBench writes the HEAD of whatever repository it is started in."""
    return f"sae-bench {version('sae-bench')}"
