"""SAEBench's sparse probing through our runner: its numbers untouched, F1 of its own probes, its faults answered."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from conftest import evaluate, identity, linear_sae, make_model, make_tasks, zero
from sae_bench.evals.sparse_probing import main as saebench
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from eval_runners.contract.registry import load_evaluator
from eval_runners.data.labelled import register_task_file
from eval_runners.saebench.shared import hide_output
from eval_runners.saebench.sparse_probing import serving_tasks
from eval_runners.sparse_probing import Settings
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import choose_target, load_target

KS = (1, 2, 5)


@pytest.fixture(scope="module")
def other_tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "other.csv"
    rows = [f"{text},{label}" for label, texts in make_tasks(("cat", "river")).items() for text in texts]
    path.write_text("\n".join(["text,label", *rows]))
    return path


@pytest.fixture(scope="module")
def config(target, tasks_file, other_tasks):
    """Two datasets of three and two classes."""
    names = [register_task_file(str(path)) for path in (tasks_file, other_tasks)]
    given = Settings(
        dataset_names=tuple(names), k_values=KS, probe_train_set_size=60, probe_test_set_size=30, context_length=32
    )
    settled, _ = load_evaluator("sparse_probing").prepare(target, given)
    return settled


def score(sae, target, config, model):
    return evaluate("sparse_probing", sae, target, model, **asdict(config))


def numbers(evaluation):
    return {**evaluation.output["eval_result_metrics"]["sae"], **evaluation.unstructured["f1"]}


class Same(StandardSAE):
    """Encodes x as x: every latent is a channel."""

    def encode(self, x):
        return x


def same(target):
    sae = Same(StandardSAEConfig(d_in=32, d_sae=32, apply_b_dec_to_input=False))
    sae.W_enc.data, sae.W_dec.data = torch.eye(32), torch.eye(32)
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = target.model_name, target.hook_name
    return sae


def test_latents_that_are_the_channels_score_as_the_channels_do(target, config, model):
    evaluation = score(same(target), target, config, model)
    # the first dataset: SAEBench draws the same documents for both, so every number is the same
    first = evaluation.output["eval_result_details"][0]
    f1 = evaluation.unstructured["f1_by_task"][config.dataset_names[0]]
    for part in ("", *(f"top_{k}_" for k in KS)):
        assert first[f"sae_{part}test_accuracy"] == first[f"llm_{part}test_accuracy"]
        assert f1[f"sae_{part}test_f1"] == f1[f"llm_{part}test_f1"]
    # the second: to within the noise of its random negatives
    second = evaluation.output["eval_result_details"][1]
    for k in KS:
        assert second[f"sae_top_{k}_test_accuracy"] == pytest.approx(second[f"llm_top_{k}_test_accuracy"], abs=0.15)
    assert evaluation.failures == []


def test_all_zero_weights_are_at_chance_and_called_untrained(target, config, model):
    evaluation = score(zero(target), target, config, model)
    for name, value in evaluation.output["eval_result_metrics"]["sae"].items():
        assert value in (None, 0.5), name
    # a probe that knows nothing says yes to all, F1 2/3, or no to all, F1 0
    for scores in evaluation.unstructured["f1_by_task"].values():
        for name, by_class in scores.items():
            if name.startswith("sae"):
                assert all(value == 0 or value == pytest.approx(2 / 3) for value in by_class.values())
    assert evaluation.failures == ["at chance: every SAE probe is within 0.02 of 0.5"]


def test_a_latent_per_class_is_perfect_at_k_1(model_folder, text_file, config, model):
    target = choose_target("sandbox", str(model_folder), "blocks.0.hook_resid_pre", str(text_file))
    words = torch.tensor(
        [model.tokenizer(f" {word}")["input_ids"][-1] for word in ("red", "rain", "walls", "cat", "river")]
    )
    embedded = model.W_E[words].detach()
    directions = torch.linalg.pinv(embedded)  # each answers 1 to its own word, 0 to the other four
    sae = linear_sae(target, directions, embedded)
    others = torch.tensor([i for i in range(model.cfg.d_vocab) if i not in words])
    sae.b_enc.data = -(model.W_E[others] @ directions).max(0).values.detach()
    assert (sae.b_enc > -0.95).all(), "the words' own directions stand out"
    evaluation = score(sae, target, replace(config, k_values=(1,)), model)
    assert numbers(evaluation)["sae_top_1_test_accuracy"] == 1
    assert numbers(evaluation)["sae_top_1_test_f1"] == 1
    assert evaluation.output["eval_result_metrics"]["llm"]["llm_top_1_test_accuracy"] < 1


def saebench_itself(target, model, config, folder, names, sae):
    """SAEBench's own function, given our texts; the one call that crashes (trap 2) without beartype's check."""
    own = SparseProbingEvalConfig(
        dataset_names=list(names),
        k_values=list(KS),
        probe_train_set_size=60,
        probe_test_set_size=30,
        context_length=32,
        llm_batch_size=32,
        llm_dtype="float32",
        model_name=target.model_name,
    )
    return saebench_run(own, sae, model, folder)


def saebench_run(own, sae, model, folder):
    _, sae, _ = saebench.general_utils.load_and_format_sae("x", sae, "cpu")
    with pytest.MonkeyPatch.context() as patch, serving_tasks(), hide_output():
        patch.setattr(probe_training, "train_sklearn_probe", probe_training.train_sklearn_probe.__wrapped__)
        return saebench.run_eval_single_sae(own, sae, model, "cpu", str(folder))


def test_watching_changes_no_number_of_saebench(target, config, model, tmp_path):
    ours = score(identity(target), target, config, model)
    for name in config.dataset_names:
        cold, _ = saebench_itself(target, model, config, tmp_path / name, [name], identity(target))
        details = {d["dataset_name"]: d for d in ours.output["eval_result_details"]}[f"{name}_results"]
        for metric, value in cold.items():
            if metric.startswith("llm"):
                assert details[metric] == value, metric
    saebench_itself(target, model, config, tmp_path / "both", config.dataset_names, identity(target))
    warm, by_class = saebench_itself(target, model, config, tmp_path / "both", config.dataset_names, identity(target))
    for metric, value in warm.items():
        if metric.startswith("sae"):
            assert ours.output["eval_result_metrics"]["sae"][metric] == value, metric
    for name in config.dataset_names:
        for metric, values in by_class[f"{name}_results"].items():
            if metric.startswith("sae"):
                assert ours.output["eval_result_unstructured"][f"{name}_results"][metric] == values


def test_saebench_still_scores_differently_with_a_cold_cache(target, config, model, tmp_path):
    # should this fail, activations need not be collected before SAEs are scored
    cold, warm = (
        saebench_itself(target, model, config, tmp_path, config.dataset_names, identity(target))[1] for _ in range(2)
    )
    assert cold != warm


def test_order_and_number_of_saes_count_for_nothing(target, config, model, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path))
    alone = numbers(score(identity(target), target, config, model))
    score(zero(target), target, config, model)
    assert numbers(score(identity(target), target, config, model)) == alone
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "again"))
    score(zero(target), target, config, model)
    assert numbers(score(identity(target), target, config, model)) == alone


def test_the_language_model_runs_once_for_all_saes(target, config, model, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path))
    calls = []
    forward = type(model).run_with_hooks
    monkeypatch.setattr(
        type(model), "run_with_hooks", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    )
    score(identity(target), target, config, model)
    once = len(calls)
    assert once > 0
    score(zero(target), target, config, model)
    assert len(calls) == once


@pytest.mark.slow
def test_another_model_meets_no_stale_activations(target, config, model, tmp_path, text_file, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path / "cache"))
    first = score(identity(target), target, config, model).output["eval_result_metrics"]["llm"]
    folder = make_model(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})
    other = choose_target("sandbox", str(folder), target.hook_name, str(text_file))
    loaded = load_model(other.model_name, "cpu", "float32")
    second = score(identity(other), other, config, loaded).output["eval_result_metrics"]["llm"]
    assert first != second


@pytest.mark.slow
def test_a_damaged_cache_is_rebuilt_to_the_same_numbers(target, config, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path))
    before = numbers(score(identity(target), target, config, model))
    for file in tmp_path.rglob("*.pt"):
        file.write_bytes(file.read_bytes()[:-100])
    assert numbers(score(identity(target), target, config, model)) == before
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_small_cap_on_the_cache_does_not_make_the_model_run_again(target, config, model, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_CACHE", str(tmp_path))
    monkeypatch.setenv("SAE_VARIANTS_CACHE_GB", "0.000001")
    score(identity(target), target, config, model)
    monkeypatch.setattr(type(model), "run_with_hooks", lambda *args, **kwargs: pytest.fail("ran again"))
    score(zero(target), target, config, model)


@pytest.mark.slow
def test_the_sandbox_s_own_numbers_are_saebench_s(tmp_path):
    import sae_variants

    target = load_target("sandbox")
    model = load_model("sandbox", "cpu", target.dtype)
    settings = {**target.evaluations["sparse_probing"], "dataset_names": ("sandbox/it_ticket",), "k_values": KS}

    def sae():
        made = sae_variants.build("stock:topk", d_in=192, d_sae=1024, k=30, seed=0)
        made.cfg.metadata.model_name, made.cfg.metadata.hook_name = target.model_name, target.hook_name
        return made

    ours = evaluate("sparse_probing", sae(), target, model, prepare=True, **settings).metrics
    own = SparseProbingEvalConfig(
        dataset_names=["sandbox/it_ticket"],
        k_values=list(KS),
        llm_batch_size=64,
        llm_dtype="float32",
        model_name="sandbox",
        probe_train_set_size=720,
        probe_test_set_size=180,
    )
    (cold, _), (warm, _) = (saebench_run(own, sae(), model, tmp_path) for _ in range(2))
    for name, value in ours["llm"].items():
        assert value is None or value == cold[name], name
    for name, value in ours["sae"].items():
        assert value is None or value == warm[name], name


def test_macro_f1_weighs_every_task_alike(target, config, model):
    evaluation = score(identity(target), target, config, model)
    by_task = evaluation.unstructured["f1_by_task"]
    values = [v for dataset in by_task.values() for v in dataset["sae_top_1_test_f1"].values()]
    assert evaluation.unstructured["tasks"] == len(values) == 5
    assert evaluation.unstructured["f1"]["sae_top_1_test_f1"] == pytest.approx(sum(values) / 5)
