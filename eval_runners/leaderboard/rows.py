"""A row of the leaderboard: one kind of SAE, its results of every evaluation over its seeds, and what they say.

Pure: imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

from eval_runners.contract.contract import Metric
from eval_runners.contract.registry import USUAL_EVALUATIONS, evaluator_of_type
from eval_runners.store.read import (
    Result,
    mean_and_interval,
    metric_value,
    provenance_of,
    weight_hash_of,
    why_missing,
)

Number = tuple[float, float | None]
"""Mean, and half of its 95 % interval over seeds where there are several."""
OLDER = " #"
"""Separates the label of an older kind of SAE from its number."""
SWEPT_FIELDS = {"k", "l1_coefficient", "l0_coefficient", "max_iterations", "d_sae"}
"""Config fields that are swept to match L0 or width; changing them does not make a different recipe."""
NOT_THE_KIND = {
    "metadata",
    "device",
    "dtype",
    "sae_lens_training_version",
    "neuronpedia_id",
    "dataset_path",
    "model_name",
}
"""Fields of an SAE's config that say nothing about what kind of SAE it is."""


class Column(NamedTuple):
    """A metric of an evaluation."""

    evaluation: str
    """`eval_type_id` of the results that hold it."""
    metric: Metric

    @property
    def key(self) -> str:
        """Name of the column in CSV and JSON files: `evaluation.metric`."""
        return f"{self.evaluation}.{self.metric.key}"

    @property
    def head(self) -> str:
        """Text above the column, without the arrow."""
        return self.metric.head


@dataclass(frozen=True, eq=False)
class Row:
    """One kind of SAE, or a reference that is no SAE, such as the residual stream."""

    label: str
    """Name in tables, such as `temporal[k=16]`."""
    d_sae: int | None
    training_tokens: int | None
    results: dict[str, list[Result]] = field(default_factory=dict)
    """Evaluation -> its results, one per seed. Empty for a reference."""
    reference_numbers: dict[str, Number] = field(default_factory=dict)
    """Column key -> number of a reference."""
    _numbers: dict[str, Number | None] = field(default_factory=dict, init=False, repr=False)
    _by_seed: dict[str, dict[int, float]] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """The label without the fields in brackets."""
        return self.label.partition("[")[0].partition(OLDER)[0]

    @property
    def fields(self) -> str:
        """Fields that differ from the target's recipe: `k=16 window=4`."""
        return self.label.partition("[")[2].partition("]")[0]

    @property
    def has_other_recipe(self) -> bool:
        """Whether it differs from its target's recipe in more than `SWEPT_FIELDS`, or is of an older recipe."""
        changed = {word.partition("=")[0] for word in self.fields.split(" ") if "=" in word}
        return OLDER in self.label or bool(changed - SWEPT_FIELDS)

    def number(self, column: Column) -> Number | None:
        """Mean over seeds and half of its 95 % interval, or None where a seed has no number."""
        if not self.results:
            return self.reference_numbers.get(column.key)
        if column.key not in self._numbers:
            self._numbers[column.key] = mean_and_interval(column.metric, self.results.get(column.evaluation, []))
        return self._numbers[column.key]

    def by_seed(self, column: Column) -> dict[int, float]:
        """Seed -> number; empty where a seed has no number, or the SAE has no seeds."""
        if column.key not in self._by_seed:
            results = self.results.get(column.evaluation, [])
            numbers = {provenance_of(result).get("seed"): metric_value(column.metric, result) for result in results}
            known = {seed: number for seed, number in numbers.items() if seed is not None and number is not None}
            self._by_seed[column.key] = known if len(known) == len(results) else {}
        return self._by_seed[column.key]

    def why_missing(self, column: Column) -> str:
        """Reason why there is no number."""
        results = self.results.get(column.evaluation, [])
        if not results:
            return f"{column.evaluation} was not run" if self.results else "no SAE"
        reasons = dict.fromkeys(filter(None, (why_missing(column.metric, result) for result in results)))
        return "; ".join(reasons) or "not among its numbers"

    @cached_property
    def all_results(self) -> list[Result]:
        """Results of every evaluation and seed."""
        return [result for results in self.results.values() for result in results]

    @property
    def weight_hashes(self) -> set[str]:
        """Hashes of the weights of the SAEs, where the results are ours."""
        return {digest for result in self.all_results if (digest := weight_hash_of(result))}

    @cached_property
    def l0(self) -> float | None:
        """Mean number of latents that fire on a token, from `core` where it was run."""
        for evaluation, results in sorted(self.results.items(), key=lambda item: item[0] not in USUAL_EVALUATIONS[:1]):
            for metric in metrics_of(evaluation):
                if metric.key in ("l0", "all.l0") and (number := mean_and_interval(metric, results)):
                    return number[0]
        return None

    @property
    def seeds(self) -> list[int]:
        """Seeds of all its evaluations together."""
        seeds = {provenance_of(result).get("seed") for result in self.all_results}
        return sorted(seed for seed in seeds if seed is not None)

    def n_seeds(self, evaluations: Iterable[str]) -> str:
        """Seeds of these evaluations: `3`, or `1-3` where they differ in their number of seeds."""
        counts = {len(self.results[name]) for name in evaluations if name in self.results} if self.seeds else set()
        return "-".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else "-"

    @cached_property
    def untrained(self) -> list[str]:
        """Reasons to treat it as untrained. Empty if it is trained."""
        reasons: list[str] = []
        for evaluation, results in self.results.items():
            for result in results:
                unstructured = result.get("eval_result_unstructured") or {}
                stated = unstructured.get("not_trained_because") or []
                reasons += stated or (["its result says so"] if unstructured.get("trained") is False else [])
                if evaluator := evaluator_of_type(evaluation):
                    reasons += evaluator.untrained_reasons(result)
                if result.get("training_steps") == 0:
                    reasons.append("0 training steps")
        return list(dict.fromkeys(reasons))

    def provenance(self, key: str) -> list[str]:
        """Distinct values of a provenance key of its results, such as `command` or `commit`."""
        values = (provenance_of(result).get(key) for result in self.all_results)
        return list(dict.fromkeys(str(value) for value in values if value is not None))

    @cached_property
    def source(self) -> str | None:
        """Publication that the numbers come from, where they are not ours."""
        return next((result["source"] for result in self.all_results if result.get("source")), None)


@cache
def metrics_of(eval_type: str) -> tuple[Metric, ...]:
    """Metrics of the evaluator whose results have that type. Empty where no evaluator is known."""
    evaluator = evaluator_of_type(eval_type)
    return evaluator.metrics if evaluator else ()


def sae_identity(result: Result) -> tuple[Any, ...]:
    """What two results of one kind of SAE agree on: everything but seed and weights."""
    provenance, cfg = provenance_of(result), result.get("sae_cfg_dict") or {}
    metadata = _metadata(cfg)
    label = str(result.get("sae_lens_id") or "unnamed")
    if not provenance:
        label = f"{result.get('sae_lens_release_id')}/{label}"
    tokens = provenance.get("training_tokens", cfg.get("training_tokens"))
    details = {key: value for key, value in cfg.items() if key not in NOT_THE_KIND} | {
        "trained_as": metadata.get("training_architecture_details"),
        "as": metadata.get("training_architecture"),
    }
    # A folder may be a copy of an SAE whose cfg.json was changed after the training that its record describes.
    kind = f"{provenance.get('kind') or to_sorted_json(details)} {cfg.get('architecture')} {cfg.get('k')}"
    if provenance.get("seed") is None and provenance.get("kind") is None:
        kind += str(weight_hash_of(result))  # there are no seeds to average: other weights are another SAE
    known_tokens = tokens if isinstance(tokens, int) and tokens >= 0 else None  # SAEBench writes -100000 for unknown
    return label, cfg.get("d_sae"), known_tokens, kind


def _metadata(cfg: dict[str, Any]) -> dict[str, Any]:
    metadata = cfg.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def training_fields(result: Result) -> dict[str, Any]:
    """Config fields that the SAE of a result was trained with. Empty where the result does not say."""
    return _metadata(result.get("sae_cfg_dict") or {}).get("training_architecture_details") or {}


def to_sorted_json(value: Any) -> str:
    """JSON with sorted keys: equal values give equal texts."""
    return json.dumps(value, sort_keys=True, default=str)


def written_at(result: Result) -> float:
    """Milliseconds since 1970 at which a result was written, or 0."""
    return result.get("datetime_epoch_millis") or 0
