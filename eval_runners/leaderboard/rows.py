"""A row of the leaderboard: one kind of SAE, its results of every evaluation over its seeds, and what they say.

Pure: imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from eval_runners.contract.contract import Metric
from eval_runners.contract.registry import USUAL_EVALUATIONS, evaluator_of_type
from eval_runners.store.read import Result, mean_and_error, provenance_of, weight_hash_of, why_missing

Number = tuple[float, float | None]
Column = tuple[str, Metric]
"""Evaluation and metric."""
OLDER = " #"
"""Parts the label of an older kind of SAE from its number."""
MATCHED_BY = {"k", "l1_coefficient", "l0_coefficient", "d_sae"}
"""Fields of which a comparison needs several values, and which make no other recipe."""
NOT_THE_KIND = {
    "metadata", "device", "dtype", "sae_lens_training_version", "neuronpedia_id", "dataset_path", "model_name",
}  # fmt: skip
"""What the config of an SAE says beside what kind of SAE it is."""


@dataclass(frozen=True, eq=False)
class Row:
    label: str
    d_sae: int | None
    training_tokens: int | None
    results: dict[str, list[Result]] = field(default_factory=dict)
    """Evaluation -> its results, one per seed."""
    numbers: dict[str, Number] = field(default_factory=dict)
    """Of a row that is no SAE: column -> number."""
    _known: dict[str, Number | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.label.partition("[")[0].partition(OLDER)[0]

    @property
    def fields(self) -> str:
        """What differs from the target's recipe: `k=16 window=4`."""
        return self.label.partition("[")[2].partition("]")[0]

    @property
    def changed_kind(self) -> bool:
        """Whether it differs from its target's recipe in more than what sets L0 and width."""
        return bool({word.partition("=")[0] for word in self.fields.split(" ") if "=" in word} - MATCHED_BY)

    def number(self, column: Column) -> Number | None:
        name = column_key(column)
        if not self.results:
            return self.numbers.get(name)
        if name not in self._known:
            self._known[name] = mean_and_error(column[1], self.results.get(column[0], []))
        return self._known[name]

    def why_not(self, column: Column) -> str:
        """Why there is no number."""
        evaluation, metric = column
        results = self.results.get(evaluation, [])
        if not results:
            return "no SAE" if not self.results else f"{evaluation} was not run"
        reasons = dict.fromkeys(filter(None, (why_missing(metric, result) for result in results)))
        return "; ".join(reasons) or "not among its numbers"

    @cached_property
    def all_results(self) -> list[Result]:
        return [result for results in self.results.values() for result in results]

    @property
    def weight_hashes(self) -> set[str]:
        """Of the SAEs whose results these are, where they are ours."""
        return {found for result in self.all_results if (found := weight_hash_of(result))}

    @cached_property
    def l0(self) -> float | None:
        for evaluation, results in sorted(self.results.items(), key=lambda of: of[0] not in USUAL_EVALUATIONS[:1]):
            for metric in metrics_of(evaluation):
                if metric.key in ("l0", "all.l0") and (found := mean_and_error(metric, results)):
                    return found[0]
        return None

    @property
    def seeds(self) -> list[int]:
        """Those of all its evaluations together."""
        found = {provenance_of(result).get("seed") for result in self.all_results}
        return sorted(seed for seed in found if seed is not None)

    @property
    def n_seeds(self) -> str:
        """`3`, or `1-3` where evaluations have more or fewer."""
        counts = {len(results) for results in self.results.values()} if self.seeds else set()
        return "-".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else "-"

    @cached_property
    def untrained(self) -> list[str]:
        """Why it counts as untrained; nothing if it does not."""
        reasons: list[str] = []
        for evaluation, results in self.results.items():
            for result in results:
                ours = result.get("eval_result_unstructured") or {}
                said = ours.get("not_trained_because") or []
                reasons += said or (["its result says so"] if ours.get("trained") is False else [])
                if evaluator := evaluator_of_type(evaluation):
                    reasons += evaluator.untrained_reasons(result)
                if result.get("training_steps") == 0:
                    reasons.append("0 training steps")
        return list(dict.fromkeys(reasons))

    def said(self, what: str) -> list[str]:
        """What the results say of their origin, such as their `command` and `commit`."""
        found = (provenance_of(result).get(what) for result in self.all_results)
        return list(dict.fromkeys(str(one) for one in found if one is not None))

    @cached_property
    def source(self) -> str | None:
        """Where numbers of others come from."""
        return next((result["source"] for result in self.all_results if result.get("source")), None)


@cache
def metrics_of(eval_type: str) -> tuple[Metric, ...]:
    """Metrics of the evaluator whose results have that type. None where no evaluator is known."""
    evaluator = evaluator_of_type(eval_type)
    return evaluator.metrics if evaluator else ()


def column_key(column: Column) -> str:
    return f"{column[0]}.{column[1].key}"


def sae_identity(result: Result) -> tuple[Any, ...]:
    """What two results of one kind of SAE agree on: all but seed and weights."""
    provenance, cfg = provenance_of(result), result.get("sae_cfg_dict") or {}
    metadata = _metadata(cfg)
    label = str(result.get("sae_lens_id") or "unnamed")
    if not provenance:
        label = f"{result.get('sae_lens_release_id')}/{label}"
    tokens = provenance.get("training_tokens", cfg.get("training_tokens"))
    details = {k: v for k, v in cfg.items() if k not in NOT_THE_KIND} | {
        "trained_as": metadata.get("training_architecture_details"),
        "as": metadata.get("training_architecture"),
    }
    kind = provenance.get("kind") or to_sorted_json(details)
    known_tokens = tokens if isinstance(tokens, int) and tokens >= 0 else None  # SAEBench writes -100000 for unknown
    return label, cfg.get("d_sae"), known_tokens, kind


def _metadata(cfg: dict[str, Any]) -> dict[str, Any]:
    metadata = cfg.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def training_fields(result: Result) -> dict[str, Any]:
    """The fields of the config that the SAE of a result was trained with, where it says so."""
    return _metadata(result.get("sae_cfg_dict") or {}).get("training_architecture_details") or {}


def to_sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def written_at(result: Result) -> float:
    return result.get("datetime_epoch_millis") or 0
