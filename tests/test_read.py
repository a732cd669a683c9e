"""Reading results: what loads, what may be compared, means over seeds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from eval_runners.commands.evaluate import _baseline
from eval_runners.contract.contract import Metric
from eval_runners.contract.registry import load_evaluator
from eval_runners.harness.score import prepare_scoring
from eval_runners.sparse_probing import METRICS, Settings
from eval_runners.store.read import conditions_of, describe_differences, load_result, mean_and_interval, metric_value
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import load_target

BASELINES = Path(__file__).parent.parent / "results" / "baselines"
ACCURACY = next(metric for metric in METRICS if metric.name == "sae_top_1_test_accuracy")


@pytest.mark.parametrize("path", sorted(BASELINES.glob("*.json")), ids=lambda path: path.stem)
def test_every_baseline_loads_and_is_named_in_the_readme(path):
    result = load_result(path)
    evaluator = load_evaluator(result["eval_type_id"])
    found = {m.name: metric_value(m, result) for m in evaluator.metrics}
    assert sum(v is not None for v in found.values()) >= 5
    assert path.name in (BASELINES.parent / "README.md").read_text()


def result(**values):
    return {"eval_result_metrics": {"a": values}}


def test_mean_and_interval_by_hand():
    metric = Metric("a", "x", "x", "higher")
    results = [result(x=value) for value in (1.0, 2.0, 6.0)]
    mean, half = mean_and_interval(metric, results)
    assert mean == 3
    assert half == pytest.approx(4.302653 * (7 / 3) ** 0.5)  # variance 7, of three
    assert mean_and_interval(metric, results[:1]) == (1.0, None)
    assert mean_and_interval(metric, results[:1] * 3) == (1.0, 0.0)
    assert mean_and_interval(metric, [result(x=0.1)] * 3) == pytest.approx((0.1, 0), abs=1e-15)
    assert metric_value(metric, result(x="high")) is None
    assert mean_and_interval(metric, [*results, result()]) is None


def test_what_stands_for_not_a_number_is_none():
    metric = Metric("a", "cossim", "x", "higher")
    named = {**result(cossim=-1), "eval_result_unstructured": {"not_a_number": ["a.cossim"]}}
    assert metric_value(metric, named) is None


GEMMA = {
    "evaluation": "sparse_probing",
    "model_name": "google/gemma-2-2b",
    "hook_name": "blocks.5.hook_resid_post",
    "llm_dtype": "bfloat16",
    **asdict(Settings(probe_train_set_size=4000, probe_test_set_size=1000)),
}


def separate(**changes) -> list[str]:
    baseline = load_result(BASELINES / "sparse_probing_gemma-2-2b_layer_5.json")
    return describe_differences({**GEMMA, **changes}, conditions_of(baseline))


def test_equal_conditions_are_compared():
    assert separate() == []
    assert separate(model_name="gemma-2-2b", sae_batch_size=7, llm_batch_size=1, random_seed=3) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": "gpt2"},
        {"hook_name": "blocks.6.hook_resid_post"},
        {"k_values": (1, 2)},
        {"context_length": 64},
        {"dataset_names": ("sandbox/code",)},
        {"probe_train_set_size": 400},
        {"probe_test_set_size": 100},
        {"llm_dtype": "float32"},
        {"evaluation": "core"},
    ],
    ids=str,
)
def test_what_matters_separates_and_is_named(changes):
    (name,) = changes
    (line,) = separate(**changes)
    assert line.startswith(f"{name} is ")


def test_the_gemma_targets_are_compared_with_the_baselines_out_of_the_box():
    for target_name, evaluation in (("gemma-2-2b-l5", "sparse_probing"), ("gemma-2-2b-l19", "core")):
        target = load_target(target_name)
        (file,) = BASELINES.glob(f"{evaluation}_*.json")
        scoring = prepare_scoring(evaluation, target, {}, Path("x"), [])
        assert _baseline(str(file), scoring)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not JSON"), ("[]", "not a result"), ('{"eval_type_id": "core"}', "no eval_config")]
)
def test_files_that_are_no_results(tmp_path, text, says):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        load_result(path)
