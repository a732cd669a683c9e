"""SAEBench's probing on the sae-probes data through our runner, on three of its smallest datasets."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
from conftest import evaluate, identity, tiny, zero
from sae_bench.evals.sparse_probing_sae_probes.eval_output import SparseProbingSaeProbesEvalOutput

from eval_runners.commands import evaluate as eval_command
from eval_runners.contract.registry import load_evaluator
from eval_runners.sae_probes import Settings
from sae_variants.common.errors import UsageError

SMALL = ("95_toxic_is", "109_ball_ws", "130_temp_cat_Frequency")


@pytest.fixture(scope="module")
def names():
    from eval_runners.data.labelled import probe_dataset_names

    return tuple(name for name in SMALL if name in probe_dataset_names())


@pytest.fixture(scope="module")
def config(target, names):
    settled, _ = load_evaluator("sae_probes").prepare(target, Settings(dataset_names=names, ks=(1, 5), random_seed=7))
    return settled


def score(sae, target, config, model):
    return evaluate("sae_probes", sae, target, model, **asdict(config))


@pytest.fixture(scope="module")
def evaluation(target, config, model):
    return score(identity(target), target, config, model)


def test_every_dataset_has_accuracy_auc_and_f1(evaluation, names):
    details = {detail["dataset_name"]: detail for detail in evaluation.output["eval_result_details"]}
    assert set(details) == set(names)
    for detail in details.values():
        for key in (
            "sae_top_1_test_accuracy",
            "sae_top_5_test_auc",
            "sae_top_5_test_f1",
            "llm_test_accuracy",
            "llm_test_f1",
        ):
            assert 0 <= detail[key] <= 1
    assert evaluation.failures == []


def test_all_zero_weights_are_at_chance_and_called_untrained(target, config, model):
    found = score(zero(target), target, config, model)
    for name, value in found.output["eval_result_metrics"]["sae"].items():
        if value is not None and name.endswith(("accuracy", "auc")):
            assert value == pytest.approx(0.5, abs=0.01), name
    assert found.failures == ["at chance: every SAE probe is within 0.02 of 0.5"]


def test_the_language_model_is_read_once(target, config, model, evaluation, monkeypatch):
    monkeypatch.setattr(type(model), "run_with_cache", lambda *args, **kwargs: pytest.fail("read again"))
    assert (
        score(identity(target), target, config, model).output["eval_result_metrics"]
        == evaluation.output["eval_result_metrics"]
    )


def test_the_tokenizer_is_left_as_it_was(evaluation, model):
    assert (model.tokenizer.truncation_side, model.tokenizer.padding_side) == ("right", "right")


def test_numbers_are_those_of_the_package_itself(target, config, model, evaluation, names, tmp_path):
    from sae_probes import run_sae_evals

    name = names[0]
    with pytest.MonkeyPatch.context() as patch:
        import importlib

        from eval_runners.saebench.shared import hide_output

        generate = importlib.import_module("sae_probes.generate_model_activations")
        evals = importlib.import_module("sae_probes.run_sae_evals")
        ensure = generate.ensure_dataset_activations
        patch.setattr(evals, "ensure_dataset_activations", lambda **kw: ensure(**kw, model=model, max_seq_len=128))
        with hide_output(generate, evals):
            run_sae_evals(
                sae=identity(target),
                model_name=target.model_name,
                hook_name=target.hook_name,
                reg_type="l1",
                setting="normal",
                ks=[1, 5],
                results_path=tmp_path / "r",
                model_cache_path=tmp_path / "c",
                datasets=[name],
                device="cpu",
                seed=7,
            )
    model.tokenizer.truncation_side = "right"
    (file,) = (tmp_path / "r").rglob("*.json")
    theirs = {entry["k"]: entry for entry in json.loads(file.read_text())}
    (ours,) = [d for d in evaluation.output["eval_result_details"] if d["dataset_name"] == name]
    for k in (1, 5):
        for key, value in (("accuracy", "test_acc"), ("auc", "test_auc"), ("f1", "test_f1")):
            assert ours[f"sae_top_{k}_test_{key}"] == theirs[k][value]


def test_saebench_s_own_plots_read_the_result(
    target, trained, names, tmp_path, model_folder, text_file, capsys, recwarn
):
    from sae_bench.sae_bench_utils import graphing_utils

    train = [
        word for key, value in tiny("temporal").items() for word in (f"--train.{key.replace('_', '-')}", str(value))
    ]
    code = eval_command.main(
        "sae_probes",
        [
            "--sae",
            "temporal",
            "--model",
            str(model_folder),
            "--hook-name",
            target.hook_name,
            "--dataset",
            str(text_file),
            "--trained",
            str(trained),
            "--output",
            str(tmp_path / "out"),
            "--dataset-names",
            ",".join(names),
            "--ks",
            "1,5",
            "--details",
            *train,
        ],
    )
    assert code in (0, 1)
    assert names[0] in capsys.readouterr().out
    (file,) = (tmp_path / "out").rglob("*.json")
    result = json.loads(file.read_text())
    SparseProbingSaeProbesEvalOutput(**result)
    assert str(tmp_path) not in file.read_text()
    # SAEBench's plots tell evaluations apart by the path of a file
    theirs = tmp_path / "sparse_probing_sae_probes" / "sandbox_temporal_eval_results.json"
    theirs.parent.mkdir()
    shutil.copy(file, theirs)
    found = graphing_utils.get_eval_results([str(theirs)])["sandbox_temporal"]
    assert found["sae_top_1_test_accuracy"] == result["eval_result_metrics"]["sae"]["sae_top_1_test_accuracy"]
    assert found["sae_class"] == "refined"


def test_saebench_still_writes_a_config_that_its_plots_cannot_read(target):
    # should this fail, `sae_cfg_dict` need not be replaced
    from inspect import getsource

    from sae_bench.evals.sparse_probing_sae_probes import main

    assert "sae_cfg_dict=asdict(sae.cfg)" in getsource(main.run_eval)
    assert "architecture" not in asdict(identity(target).cfg)


def test_all_means_113(target):
    settled, versions = load_evaluator("sae_probes").prepare(target, Settings(all=True, dataset_names=("95_toxic_is",)))
    assert len(settled.dataset_names) == len(versions) == 113


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"ks": (3,)}, "--ks may hold"),
        ({"reg_type": "l3"}, "l1 or l2"),
        ({"dataset_names": ("95_toxic",)}, "did you mean '95_toxic_is'"),
    ],
)
def test_settings_that_cannot_be(target, setting, says):
    with pytest.raises(UsageError, match=says):
        load_evaluator("sae_probes").prepare(target, Settings(**setting))
