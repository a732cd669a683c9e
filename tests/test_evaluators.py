"""The contract, for every evaluation that discovery finds."""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
from conftest import identity, zero
from pydantic import TypeAdapter
from test_alpha_dynamics import write_trace
from test_hierarchy import tree

import eval_runners
from eval_runners.contract.contract import ARROWS, value_at
from eval_runners.contract.registry import evaluator_names
from eval_runners.data.labelled import register_task_file
from sae_variants.cli.fields import field_docs
from sae_variants.language_model.target import load_target, target_names


@pytest.fixture(params=evaluator_names())
def name(request) -> str:
    return request.param


@pytest.fixture
def module(name):
    return import_module(f"eval_runners.{name}")


def test_its_docstring_begins_with_its_name(name):
    doc = ast.get_docstring(ast.parse((Path(eval_runners.__file__).parent / f"{name}.py").read_text()))
    assert doc.startswith(f"{name}: ")


def test_every_setting_is_documented_and_has_a_default(module):
    assert is_dataclass(module.EvalConfig)
    module.EvalConfig()
    docs = field_docs(module.EvalConfig)
    assert {f.name for f in fields(module.EvalConfig)} == set(docs)


def test_its_command_knows_its_options(name, capsys):
    from eval_runners.commands import evaluate as eval_command

    with pytest.raises(SystemExit) as stopped:
        eval_command.main(name, ["--help"])
    assert stopped.value.code == 0
    assert "--sae" in capsys.readouterr().out


def test_every_metric_has_a_name_a_title_and_a_direction(module):
    names = [metric.name for metric in module.METRICS]
    assert len(names) == len(set(names)) > 0
    for metric in module.METRICS:
        assert metric.title
        assert metric.better in ARROWS


def test_targets_set_only_settings_that_exist(name, module):
    for target_name in target_names():
        module.EvalConfig(**load_target(target_name).evaluations.get(name, {}))


TWO_LEVELS = ("composition", "alpha_dynamics")
"""Evaluations of SAEs of two levels."""


def whole(name, target):
    return tree(target) if name in TWO_LEVELS else identity(target)


def nothing(name, target):
    if name not in TWO_LEVELS:
        return zero(target)
    sae = tree(target)
    for weights in sae.parameters():
        weights.data.zero_()
    return sae


SMALL = {
    "core": {
        "batch_size_prompts": 4, "n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 1, "context_size": 32,
    },
    "sparse_probing": {"k_values": (1,), "context_length": 32},
    "semantics": {"train_documents": 40, "test_documents": 20, "n_contexts": 8, "context_size": 32},
    "positional_consistency": {"n_contexts": 16, "context_size": 32, "n_min": 2},
    "sae_probes": {"dataset_names": ("95_toxic_is",), "ks": (1,)},
    "hierarchy": {"n_contexts": 16, "context_size": 32, "n_latents": 4, "contexts_per_latent": 2},
    "composition": {"n_contexts": 16, "context_size": 32, "n_min": 2},
    "concept_stability": {"n_contexts": 8, "context_size": 32, "n_min": 1},
    "ablation_sparsity": {"n_contexts": 16, "context_size": 32, "tokens_after": 4, "n_latents": 4, "places": 2},
    "downstream_loss": {"n_contexts": 8, "context_size": 32},
    "scaling": {"n_contexts": 8, "context_size": 32},
    "progressive": {"n_contexts": 8, "context_size": 32},
    "n2g": {"n_contexts": 16, "context_size": 32, "n_latents": 3, "n_min": 2, "examples": 2, "longest": 4},
    "probe_loss": {"train_documents": 40, "test_documents": 20, "context_size": 32},
}  # fmt: skip
"""Settings that make an evaluation short; one that is not named here runs with its defaults."""


@pytest.fixture
def evaluate(name, module, target, model, tasks_file, tmp_path):
    if hasattr(module, "MADE_BY"):
        pytest.skip(f"{name} is made by {module.MADE_BY}")
    settings = SMALL.get(name, {}) | ({"tasks": str(tasks_file)} if name == "sparse_probing" else {})
    if name == "concept_stability":
        identity(target).save_model(tmp_path / "other")
        settings |= {"against": (str(tmp_path / "other"),)}
    if name in ("semantics", "probe_loss"):
        settings |= {"dataset_names": (register_task_file(str(tasks_file)),)}
    config = module.EvalConfig(**settings)
    if hasattr(module, "prepare"):
        config, _ = module.prepare(target, config)

    has_found = "found" in signature(module.evaluate).parameters
    options = {"found": write_trace(tmp_path)} if has_found else {}

    def run(sae):
        evaluation = module.evaluate(sae, target, config, model=model, device="cpu", **options)
        TypeAdapter(module.output_class()).validate_python(evaluation.output)
        found = {**evaluation.output, "eval_result_unstructured": evaluation.ours}
        return evaluation, {metric.name: value_at(found, metric.path) for metric in module.METRICS}

    return run


def test_an_sae_that_changes_nothing_passes_and_one_that_is_all_zero_does_not(name, evaluate, target):
    passing, numbers = evaluate(whole(name, target))
    assert passing.failures == []
    assert sum(value is not None for value in numbers.values()) >= 3
    assert evaluate(nothing(name, target))[0].failures


def test_the_same_seed_gives_the_same_numbers(name, evaluate, target):
    assert evaluate(whole(name, target))[1] == evaluate(whole(name, target))[1]


def test_details_are_rows_of_the_same_columns(name, module, evaluate, target):
    if not hasattr(module, "details"):
        pytest.skip(f"{name} has no details")
    evaluation, _ = evaluate(identity(target))
    unstructured = {**(evaluation.output.get("eval_result_unstructured") or {}), **evaluation.ours}
    rows = list(module.details({**evaluation.output, "eval_result_unstructured": unstructured}))
    assert rows
    assert len({tuple(row) for row in rows}) == 1
