"""SAEBench's other evaluations give, bit for bit, what SAEBench alone gives, and the faults that we answer are still there."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import re
from dataclasses import asdict, replace
from functools import partial
from string import ascii_lowercase
from unittest import mock

import pytest
import torch
from conftest import evaluate, tiny

from eval_runners.contract.registry import GROUPS, evaluator_names, load_evaluator
from eval_runners.data import judges
from eval_runners.data.labelled import register_task_file
from eval_runners.data.labelled_pairs import FIRST, PAIRED, PAIRS, SECOND, TEXT, paired_texts
from eval_runners.harness.evaluations import expand_groups, split_names
from eval_runners.saebench import absorption, scr_and_tpp
from eval_runners.saebench.shared import Preloaded, serving_text
from eval_runners.saebench.sparse_probing import serving_tasks
from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import heldout_text_name, text_dataset
from sae_variants.registry.build import load
from sae_variants.training.plan import make_plan

ABLATIONS = {
    "train_set_size": 40, "test_set_size": 20, "n_values": (2, 5), "probe_epochs": 3, "context_length": 32,
}  # fmt: skip


@pytest.fixture
def sae(target, trained):
    return load(make_plan("stock:batchtopk", target, tiny("stock:batchtopk"), trained).folder)


def alone(main, config, sae, model, folder, **options):
    """What SAEBench's own `run_eval` writes, with the model that is loaded already, after the seed of its command line."""
    (folder / "alone").mkdir(exist_ok=True)
    random.seed(42)
    torch.manual_seed(42)
    has_gradients = torch.is_grad_enabled()
    with contextlib.chdir(folder), mock.patch.object(main, "HookedTransformer", Preloaded(model), create=True):
        where = {"device": "cpu", "output_path": str(folder / "alone")}
        main.run_eval(config, [("x", sae)], **where, force_rerun=True, **options)
    torch.set_grad_enabled(has_gradients)
    (file,) = (folder / "alone").rglob("*.json")
    return json.loads(file.read_text())["eval_result_metrics"]


def ours(name, sae, target, model, **settings):
    return evaluate(name, sae, target, model, prepare=True, **settings).output["eval_result_metrics"]


def test_meta_structure(target, model, sae, tmp_path):
    from sae_bench.evals.meta_structure import main
    from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig

    small = {"train_steps": 30, "train_batch_size": 32}
    expected = alone(main, MetaStructureEvalConfig(**small), sae, model, tmp_path)["meta_structure"]
    found = ours("meta_structure", sae, target, model, **small)["meta_structure"]
    for name in ("decoder_fraction_variance_explained", "final_reconstruction_mse"):
        assert found[name] == expected[name]


@pytest.mark.parametrize("name", ["tpp", "scr"])
def test_scr_and_tpp(name, target, model, sae, tasks_file, tmp_path, monkeypatch):
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    monkeypatch.setattr(scr_and_tpp, "LEAST_ACCURACY", 0.0)
    names = (PAIRED,) if name == "scr" else (register_task_file(str(tasks_file)),)
    found = ours(name, sae, target, model, dataset_names=names, **ABLATIONS)
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in ABLATIONS.items()}
    model_fields = {"model_name": target.model_name, "llm_dtype": target.dtype, "llm_batch_size": 32}
    config = ScrAndTppEvalConfig(dataset_names=list(names), perform_scr=name == "scr", **fields, **model_fields)
    config.column1_vals_lookup = {PAIRED: list(PAIRS)}
    with serving_tasks(), scr_and_tpp.serving_pairs():
        alone(main, config, sae, model, tmp_path)  # makes its files
        expected = alone(main, config, sae, model, tmp_path)  # and reads them
    assert found == expected
    if name == "tpp":
        assert any(value for value in found["tpp_metrics"].values())
    assert ours(name, sae, target, model, dataset_names=names, **ABLATIONS) == expected  # whatever came before


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_mdl(target, model, sae, monkeypatch):
    from sae_bench.evals.mdl import main
    from sae_bench.evals.mdl.eval_config import MDLEvalConfig

    small = {"num_bins_values": [4, 8], "sae_batch_size": 2}
    text = heldout_text_name(target)
    config = MDLEvalConfig(k_values=[None], mse_epsilon_threshold=0.2, dataset_name=text, **small)
    sae.cfg.metadata.context_size = 32
    with serving_text(target, text, model.tokenizer):
        with pytest.raises(NameError, match="config"):  # it reads a variable of its command line
            main.run_eval_single_sae(config, sae, model, "cpu", text)
        monkeypatch.setattr(main, "config", config, raising=False)
        if not torch.cuda.is_available():
            with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):  # and needs CUDA
                main.run_eval_single_sae(config, sae, model, "cpu", text)
        monkeypatch.setattr(torch.Tensor, "cuda", lambda values: values)
        expected = main.run_eval_single_sae(config, sae, model, "cpu", text)
        torch.set_grad_enabled(True)
    monkeypatch.delattr(main, "config")
    evaluation = evaluate("mdl", sae, target, model, num_bins_values=(4, 8), batches=2, context_size=32)
    assert evaluation.unstructured["of_bins"] == expected


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_absorption(target, model, sae, tmp_path, monkeypatch):
    from sae_bench.evals.absorption import common, feature_absorption, main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    with pytest.raises(
        UsageError, match=r"absorption needs 10 words of the tokenizer for each first letter, and . begin"
    ):
        ours("absorption", sae, target, model)
    letters = list(ascii_lowercase) * 12  # the tiny tokenizer has few whole words
    for module in (common, feature_absorption):
        monkeypatch.setattr(module, "get_alpha_tokens", lambda *_: letters)
    small = {"max_k_value": 2, "k_sparse_probe_num_epochs": 2, "min_GT_probe_f1": -1.0, "min_feats_for_eval": 1}
    prompt = {"prompt_template": "first:{word}", "prompt_token_pos": -1, "llm_batch_size": 32}
    found = ours("absorption", sae, target, model, **small, **prompt)
    assert found == ours("absorption", sae, target, model, **small, **prompt)
    for name in (
        "run_k_sparse_probing_experiment",
        "run_feature_absortion_experiment",
    ):  # it would write into its package
        where = {"experiment_dir": tmp_path / "probing", "probes_dir": tmp_path / "probes"}
        if "absortion" in name:
            where |= {"experiment_dir": tmp_path / "absorption", "sparse_probing_experiment_dir": tmp_path / "probing"}
        monkeypatch.setattr(main, name, partial(getattr(main, name), **where))
    config = AbsorptionEvalConfig(**small, **prompt, model_name=target.model_name, llm_dtype=target.dtype)
    alone(main, config, sae, model, tmp_path)  # makes the probes
    assert found == alone(main, config, sae, model, tmp_path)
    with pytest.raises(UsageError, match=r"cannot do the task: .* find 0 of 26 first letters with an F1 above 1.5"):
        ours("absorption", sae, target, model, **small | {"min_GT_probe_f1": 1.5}, **prompt)


def test_autointerp(target, model, sae, tmp_path, monkeypatch):
    from sae_bench.evals.autointerp import main
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
    from sae_bench.sae_bench_utils import dataset_utils

    small = {"n_latents": 6, "total_tokens": 1000, "llm_context_size": 32, "dead_latent_threshold": 1.0}
    found = ours("autointerp", sae, target, model, **small)
    assert 0 < found["autointerp"]["autointerp_score"] <= 1
    judge = judges.WordsJudge()
    monkeypatch.setattr(main.AutoInterp, "get_api_response", lambda _, *args: ([judge.answer(*args)], ""))
    texts = [row["text"] for row in text_dataset(target, "heldout")]
    monkeypatch.setattr(dataset_utils, "get_dataset_list_of_strs", lambda *_: texts)
    config = AutoInterpEvalConfig(**small, llm_batch_size=32, model_name=target.model_name, llm_dtype=target.dtype)
    assert found == alone(main, config, sae, model, tmp_path, api_key="")
    with pytest.raises(UsageError, match="has fewer than 90000000 tokens: lower --total-tokens"):
        ours("autointerp", sae, target, model, **small | {"total_tokens": 90_000_000})


EXAMPLES = "Here are the examples:\n\n1. the cat sat\n2. a category of birds\n3. rain"


def test_the_judge_by_words_finds_the_words_that_it_gave_as_an_explanation():
    judge = judges.WordsJudge()
    marked = [{"role": "user", "content": "1. the << cat>> sat\n2. <<Cat>> and\n3. old << river>>"}]
    explanation = judge.answer(marked, 30)
    assert explanation == "This neuron activates on «cat» «river»"
    question = [{"role": "user", "content": f"this neuron fires on {explanation}.\n\n{EXAMPLES}"}]
    assert judge.answer(question, 30) == "1"
    nothing = [{"role": "user", "content": f"this neuron fires on «wall».\n\n{EXAMPLES}"}]
    assert judge.answer(nothing, 30) == "None"


def test_a_language_model_as_judge_is_asked_nothing_twice(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "ask", lambda url, model, messages, **_: asked.append(messages) or "1, 2")
    question = [{"role": "user", "content": "x" * 400}]
    for _ in range(2):
        judge = judges.EndpointJudge("http://localhost:1/v1", "m")
        assert judge.answer(question, 10) == "1, 2"
    assert len(asked) == judge.reused == 1
    other = judges.EndpointJudge("http://localhost:1/v1", "another")
    other.answer(question, 10)
    assert (other.reused, other.tokens) == (0, 110)

    def refuse(*_, **__):
        raise judges.Refused("no such model")

    monkeypatch.setattr(judges, "ask", refuse)
    judge = judges.EndpointJudge("http://localhost:2/v1", "m")
    assert [judge.answer(question, tokens) for tokens in (10, 11)] == [judges.REFUSED] * 2
    with pytest.raises(UsageError, match="no such model: check --model-name"):
        judge.answer(question, 12)


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"reply": null}'])
def test_a_reply_that_is_damaged_on_disk_is_asked_for_again(damaged, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "ask", lambda *_, **__: asked.append(1) or "1, 2")
    question = [{"role": "user", "content": "x"}]
    judges.EndpointJudge("http://localhost:1/v1", "m").answer(question, 10)
    (kept,) = (tmp_path / "made-answers").rglob("*.json")
    kept.write_text(damaged)
    assert judges.EndpointJudge("http://localhost:1/v1/", "m").answer(question, 10) == "1, 2"
    assert len(asked) == 2


def test_an_endpoint_that_refuses_a_trial_is_refused_before_anything_is_trained(target, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "require_reachable", lambda url: None)

    def refuse(*_, **__):
        raise judges.Refused("http://localhost:1/v1/chat/completions answers HTTP 400: no such model")

    monkeypatch.setattr(judges, "ask", refuse)
    evaluator = load_evaluator("autointerp")
    with pytest.raises(UsageError, match="no such model: check --model-name and --url"):
        evaluator.prepare(target, evaluator.settings_class(url="http://localhost:1/v1", model_name="m"))


def test_replies_that_hold_no_answers_are_no_score(target, model, sae, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "require_reachable", lambda url: None)
    monkeypatch.setattr(judges, "ask", lambda *_, **__: "banana banana")
    small = {"n_latents": 6, "total_tokens": 1000, "llm_context_size": 32, "dead_latent_threshold": 1.0}
    with pytest.raises(UsageError, match="the replies of m hold no answers to any question: check --model-name"):
        ours("autointerp", sae, target, model, **small, url="http://localhost:1/v1", model_name="m")


def test_an_endpoint_that_does_not_answer_ends_with_one_line(target, model, sae, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise UsageError("cannot reach http://localhost:1/v1")

    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "ask", fail)
    monkeypatch.setattr(judges, "check_judge", lambda *_: None)
    small = {"n_latents": 6, "total_tokens": 1000, "llm_context_size": 32, "dead_latent_threshold": 1.0}
    with pytest.raises(UsageError, match="cannot reach http://localhost:1/v1"):
        ours("autointerp", sae, target, model, **small, url="http://localhost:1/v1", model_name="m")
    gc.collect()
    assert not caplog.records  # no "Task exception was never retrieved" of each thread


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://localhost:1/v1"}, "--url and --model-name belong together"),
        ({"url": "http://localhost:1/v1", "model_name": "m"}, "cannot reach --url http://localhost:1/v1"),
        ({"url": "ftp://x", "model_name": "m"}, "--url must begin with http:// or https://, not 'ftp://x'"),
        (
            {"url": "http://x/v1", "model_name": "m", "budget": 10},
            "100 latents take about 140000 tokens, more than --budget 10",
        ),
    ],
)
def test_an_endpoint_that_cannot_be_right_is_refused_beforehand(target, settings, message, monkeypatch):
    if settings["url"] == "http://x/v1":
        monkeypatch.setattr(judges, "require_reachable", lambda url: None)
    evaluator = load_evaluator("autointerp")
    with pytest.raises(UsageError, match=re.escape(message)):
        evaluator.prepare(target, evaluator.settings_class(**settings))


def test_texts_with_two_labels_have_all_pairs_and_share_nothing():
    train, test = paired_texts(PAIRED)
    for part, least in ((train, 400), (test, 100)):
        counts = part.groupby([FIRST, SECOND]).size()
        assert len(counts) == 8
        assert counts.min() > least
    assert not set(train[TEXT]) & set(test[TEXT])


def test_a_group_stands_for_its_evaluations():
    assert expand_groups(split_names("scr_and_tpp,tpp,core")) == ["scr", "tpp", "core"]
    assert set(expand_groups(split_names("saebench"))) <= set(evaluator_names())
    assert "scr_and_tpp" not in evaluator_names()
    assert all(load_evaluator(name) for group in GROUPS.values() for name in group)


def test_what_cannot_be_done_is_refused(target, model, sae):
    with pytest.raises(UsageError, match=r"absorption reads blocks\.N\.hook_resid_post only"):
        load_evaluator("absorption").prepare(replace(target, hook_name="blocks.1.mlp.hook_post"), None)
    with pytest.raises(UsageError, match="--n-values may hold 2, 5, 10, 20, 50, 100, 500, not 3"):
        ours("tpp", sae, target, model, **ABLATIONS | {"n_values": (3,), "dataset_names": ("sandbox/ag_news",)})


def test_the_position_of_the_word_is_that_of_the_tokenizer(model):
    assert absorption.token_position(model, "{word}") == -1
    assert absorption.token_position(model, "{word} has") < -1


def test_the_configs_that_are_kept_are_saebench_s(target):
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    host = ScrAndTppEvalConfig()
    for name, value in asdict(load_evaluator("tpp").settings_class()).items():
        expected = getattr(host, name)
        if name != "llm_batch_size":  # which SAEBench's command line sets
            assert value == (tuple(expected) if isinstance(expected, list) else expected), name


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("scr", {"train_set_size": 6}, "--train-set-size must be a multiple of 4"),
        ("scr", {"train_set_size": 4000}, f"--train-set-size 4000 is too large for {PAIRED}: at most"),
        ("absorption", {"prompt_token_pos": 6}, "--prompt-token-pos counts from the end: below 0, not 6"),
        ("autointerp", {"n_latents": 1}, "--n-latents must be at least 2"),
    ],
)
def test_numbers_that_cannot_work_are_refused_before_anything_is_trained(target, name, settings, message):
    evaluator = load_evaluator(name)
    small = {"dataset_names": (PAIRED,), "test_set_size": 40, "n_values": (2,)} if name == "scr" else {}
    with pytest.raises(UsageError, match=re.escape(message)):
        evaluator.prepare(target, evaluator.settings_class(**small | settings))


def test_where_no_latent_is_alive_the_score_is_no_number_and_the_sae_untrained(target, model, sae):
    small = {"n_latents": 6, "total_tokens": 1000, "llm_context_size": 32, "dead_latent_threshold": 1e9}
    evaluation = evaluate("autointerp", sae, target, model, prepare=True, **small)
    assert evaluation.failures == ["no latent fires often enough to be explained"]
    assert evaluation.output["eval_result_metrics"]["autointerp"]["autointerp_score"] == -1


def test_scores_of_different_judges_are_not_compared(target, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "require_reachable", lambda url: None)
    monkeypatch.setattr(judges, "ask", lambda *_, **__: "yes")
    evaluator = load_evaluator("autointerp")
    named = {"url": "http://localhost:1/v1", "model_name": "m"}
    versions = [evaluator.prepare(target, evaluator.settings_class(**given))[1] for given in ({}, named)]
    assert versions == [{"judge": "words"}, {"judge": "m"}]


def test_a_latent_whose_question_is_refused_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(judges, "ask", lambda *_, **__: "an explanation")
    judge = judges.EndpointJudge("http://localhost:1/v1", "m")
    judge.answer([{"role": "user", "content": "one"}], 10)

    def refuse(*_, **__):
        raise judges.Refused("too long")

    monkeypatch.setattr(judges, "ask", refuse)
    assert judge.answer([{"role": "user", "content": "two"}], 10) == judges.REFUSED
    assert judge.answer([{"role": "user", "content": f"fires on {judges.REFUSED}"}], 10) == judges.REFUSED
    assert len(judge.refused) == 1
