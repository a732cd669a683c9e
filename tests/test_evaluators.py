"""The contract, for every evaluator that discovery finds."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from string import ascii_lowercase

import pytest
from conftest import evaluate, identity, zero
from test_alpha_dynamics import write_trace
from test_hierarchy import tree
from test_ravel import SMALL as RAVEL
from test_ravel import answers_of, early_target, leave_garbage, write_prompts
from test_synthetic import SMALL as SYNTHETIC

from eval_runners.commands.evaluate import main
from eval_runners.contract.contract import Evaluator
from eval_runners.contract.registry import evaluator_names, evaluator_of_type, load_evaluator
from eval_runners.data.labelled import register_task_file
from eval_runners.leaderboard.render import ARROWS
from eval_runners.saebench import scr_and_tpp
from sae_variants.cli.fields import field_docs
from sae_variants.language_model.target import load_target, target_names
from sae_variants.synthetic.model import load_synthetic


@pytest.fixture(params=evaluator_names())
def name(request) -> str:
    return request.param


@pytest.fixture
def evaluator(name) -> Evaluator:
    return load_evaluator(name)


def test_its_name_is_its_file_s_and_its_results_lead_back_to_it(name, evaluator):
    assert evaluator.name == name
    assert evaluator_of_type(evaluator.result_type) is evaluator


def test_every_setting_is_documented_and_has_a_default(evaluator):
    assert is_dataclass(evaluator.settings_class)
    evaluator.settings_class()
    docs = field_docs(evaluator.settings_class)
    assert {f.name for f in fields(evaluator.settings_class)} == set(docs)


def test_its_command_knows_its_options(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(name, ["--help"])
    assert stopped.value.code == 0
    assert "--sae" in capsys.readouterr().out


def test_every_metric_has_a_name_a_title_and_a_direction(evaluator):
    for attribute in ("id", "key"):
        values = [getattr(metric, attribute) for metric in evaluator.metrics]
        assert len(values) == len(set(values)) > 0
    for metric in evaluator.metrics:
        assert metric.title
        assert metric.better in ARROWS


def test_targets_set_only_settings_that_exist(name, evaluator):
    for target_name in target_names():
        evaluator.settings_class(**load_target(target_name).evaluations.get(name, {}))


def test_the_defaults_of_the_optional_methods():
    class Least(Evaluator):
        settings_class = dict
        metrics = ()

    least = Least()
    assert least.name == "test_evaluators"
    assert least.result_type == least.name
    assert least.prepare(None, {"n": 1}) == ({"n": 1}, {})
    assert least.why_unsupported(None, {}) == ""
    assert least.snapshot_shares({}) == ()
    assert least.host_output_class() is None
    assert least.untrained_reasons({}) == least.summary_lines({}) == list(least.detail_rows({})) == []
    assert least.summarize_all([{}]) == ([], {})
    with pytest.raises(NotImplementedError):
        least.evaluate(None, None, {}, None)


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
    "ground_truth": {"n_contexts": 8, "probe_contexts": 4},
    "absorption": {
        "max_k_value": 2, "k_sparse_probe_num_epochs": 2, "min_GT_probe_f1": -1.0, "min_feats_for_eval": 1, "prompt_template": "first:{word}",
    },
    "autointerp": {"n_latents": 6, "total_tokens": 1000, "llm_context_size": 32, "dead_latent_threshold": 1.0},
    "mdl": {"num_bins_values": (4,), "batches": 1, "context_size": 32},
    "meta_structure": {"train_steps": 20, "train_batch_size": 64},
    "explanations": {
        "n_contexts": 32, "context_size": 32, "n_latents": 3, "n_min": 1, "excerpt_tokens": 2, "n_tests": 4, "n_examples": 4,
    },
    "ravel": RAVEL,
    "scr": {
        "dataset_names": ("sandbox/ag_news+yelp_sentiment",), "train_set_size": 80, "test_set_size": 40, "n_values": (2, 5, 10),
        "probe_epochs": 5, "context_length": 32,
    },
    "tpp": {"train_set_size": 40, "test_set_size": 20, "n_values": (2, 5, 10), "probe_epochs": 5, "context_length": 32},
    "probe_loss": {"train_documents": 40, "test_documents": 20, "context_size": 32},
}  # fmt: skip
"""Settings that make an evaluation short; one that is not named here runs with its defaults."""


def make_short(name, target, text_file, tasks_file, folder, monkeypatch):
    """Make an evaluation short, and let a language model with random weights do its task.

    Returns:
        The target that it runs on; its settings.
    """
    if load_evaluator(name).made_by:
        pytest.skip(f"{name} is made by {load_evaluator(name).made_by}")
    if name == "unlearning":
        pytest.skip("unlearning needs a Gemma that answers questions, and a Hub: tests/test_unlearning.py")
    settings = SMALL.get(name, {}) | ({"tasks": str(tasks_file)} if name == "sparse_probing" else {})
    if name == "concept_stability":
        identity(target).save_model(folder / "other")
        settings |= {"against": (str(folder / "other"),)}
    if name in ("semantics", "probe_loss", "tpp"):
        settings |= {"dataset_names": (register_task_file(str(tasks_file)),)}
    if name in ("scr", "tpp"):  # a model with random weights cannot do the task
        monkeypatch.setattr(scr_and_tpp, "LEAST_ACCURACY", 0.0)
    if name == "ravel":
        leave_garbage(monkeypatch)
        target = early_target(folder / "model", text_file)
        settings |= {"prompts": str(write_prompts(folder / "prompts", answers_of(target)))}
    if name == "absorption":  # nor has its tokenizer many words
        from sae_bench.evals.absorption import common, feature_absorption

        for module in (common, feature_absorption):
            monkeypatch.setattr(module, "get_alpha_tokens", lambda *_: list(ascii_lowercase) * 12)
    return target, settings


@pytest.fixture
def run(name, evaluator, target, model, text_file, tasks_file, tmp_path, monkeypatch):
    target, settings = make_short(name, target, text_file, tasks_file, tmp_path, monkeypatch)
    located = write_trace(tmp_path)
    truth = load_synthetic(SYNTHETIC, "cpu") if evaluator.needs_truth else None
    return lambda sae: evaluate(name, sae, target, model, located, prepare=True, truth=truth, **settings)


def test_an_sae_that_changes_nothing_passes_and_one_that_is_all_zero_does_not(name, run, target):
    passing = run(whole(name, target))
    assert passing.failures == []
    assert sum(value is not None for value in passing.values.values()) >= min(3, len(load_evaluator(name).metrics))
    assert run(nothing(name, target)).failures


def test_the_same_seed_gives_the_same_numbers(name, run, target):
    assert run(whole(name, target)).values == run(whole(name, target)).values


def test_details_are_rows_of_the_same_columns(name, evaluator, run, target):
    if not evaluator.detail:
        pytest.skip(f"{name} has no details")
    rows = list(evaluator.detail_rows(run(identity(target)).output))
    assert rows
    assert len({tuple(row) for row in rows}) == 1
