"""The command of sparse probing: tasks of the user's own, several seeds, SAEs and results that are damaged."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import tiny
from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput

from eval_runners.commands import evaluate as eval_command


@pytest.fixture
def argv(target, trained, tmp_path, model_folder, text_file, tasks_file):
    where = ["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)]
    train = [
        word for key, value in tiny("temporal").items() for word in (f"--train.{key.replace('_', '-')}", str(value))
    ]
    where += ["--trained", str(trained), "--output", str(tmp_path / "out"), "--context-length", "32", *train]
    return lambda *names: [w for n in names for w in ("--sae", n)] + ["--tasks", str(tasks_file), *where]


def test_a_user_s_own_tasks_are_one_command(argv, tmp_path, capsys):
    assert eval_command.main("sparse_probing", [*argv("temporal", "random"), "--k-values", "1,5", "--details"]) == 0
    shown = capsys.readouterr().out
    assert "SAE F1, k = 5" in shown
    assert "k = 2 " not in shown
    for word in ("red", "rain", "walls"):
        assert shown.partition("┏")[2].count(f" {word} ") == 2, "a row per task and SAE"
    files = sorted((tmp_path / "out").rglob("*.json"))
    assert [file.parent.name for file in files] == ["random", "temporal"]
    for file in files:
        result = json.loads(file.read_text())
        SparseProbingEvalOutput(**result)
        ours = result["eval_result_unstructured"]
        assert "warm" in ours["protocol"]
        assert ours["tasks"] == 3
        (name,) = result["eval_config"]["dataset_names"]
        assert name.startswith("local/words-")
        assert str(tmp_path) not in file.read_text()
    eval_command.main("sparse_probing", [*argv("temporal"), "--k-values", "1,5"])
    assert "reused" in capsys.readouterr().out


def test_several_seeds_are_several_files_and_one_column(argv, tmp_path, capsys):
    assert eval_command.main("sparse_probing", [*argv("temporal"), "--k-values", "1", "--seeds", "0,1"]) == 0
    shown = capsys.readouterr().out
    results = [json.loads(file.read_text()) for file in (tmp_path / "out").rglob("*.json")]
    assert sorted(r["eval_result_unstructured"]["provenance"]["seed"] for r in results) == [0, 1]
    values = [r["eval_result_metrics"]["sae"]["sae_top_1_test_accuracy"] for r in results]
    mean, half = sum(values) / 2, 12.7062 * abs(values[0] - values[1]) / 2
    assert f"{mean:.4g} ± {half:.2g}" in shown
    assert "seeds" in shown  # a long head is folded


def test_weights_that_are_not_numbers_are_untrained_and_the_others_are_scored(target, argv, trained, tmp_path, capsys):

    from safetensors.torch import load_file, save_file

    from sae_variants.training.plan import make_plan

    folder = tmp_path / "sick"
    shutil.copytree(make_plan("temporal", target, tiny("temporal"), trained).folder, folder)
    state = load_file(folder / "sae_weights.safetensors")
    state["W_enc"][0] = float("nan")
    save_file(state, folder / "sae_weights.safetensors")
    words = ["--sae", str(folder), *argv("temporal"), "--k-values", "1"]
    assert eval_command.main("sparse_probing", words) == 1
    assert "untrained: W_enc has values that are not finite" in capsys.readouterr().out
    assert [file.parent.name for file in (tmp_path / "out").rglob("*.json")] == ["temporal"]


def test_a_damaged_result_is_made_again(argv, tmp_path, capsys):
    words = [*argv("temporal"), "--k-values", "1"]
    eval_command.main("sparse_probing", words)
    (file,) = (tmp_path / "out").rglob("*.json")
    whole = json.loads(file.read_text())
    file.write_text(file.read_text()[:100])
    eval_command.main("sparse_probing", words)
    assert "it is evaluated again" in capsys.readouterr().err
    assert json.loads(file.read_text())["eval_result_metrics"] == whole["eval_result_metrics"]
