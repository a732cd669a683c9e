"""The command of an evaluation: where its results go, when they are reused, and what they say of their origin."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny
from huggingface_hub.errors import EntryNotFoundError
from sae_bench.evals.core.eval_output import CoreEvalOutput
from safetensors.torch import load_file, save_file

import eval_runners
from eval_runners.commands import evaluate as eval_command
from eval_runners.store.result import package_commit
from sae_variants.training.plan import make_plan

FLAGS = [
    "--batch-size-prompts",
    "4",
    "--n-eval-reconstruction-batches",
    "2",
    "--n-eval-sparsity-variance-batches",
    "3",
    "--context-size",
    "32",
]


def arguments(target, trained: Path, output: Path, model_folder: Path, text_file: Path, *names: str) -> list[str]:
    words = [word for name in names for word in ("--sae", name)]
    where = ["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)]
    settings = {key: value for name in names for key, value in tiny(name).items()}
    train = [word for key, value in settings.items() for word in (f"--train.{key.replace('_', '-')}", str(value))]
    return [*words, *where, "--trained", str(trained), "--output", str(output), *FLAGS, *train]


@pytest.fixture
def argv(target, trained, tmp_path, model_folder, text_file):
    return lambda *names: arguments(target, trained, tmp_path / "out", model_folder, text_file, *names)


def test_the_command_writes_valid_results_and_reuses_them(argv, tmp_path, capsys):
    code = eval_command.main("core", argv("temporal", "stock:batchtopk", "random"))
    assert code in (0, 1)  # a tiny SAE may be worse than the mean
    files = sorted((tmp_path / "out").rglob("*.json"))
    assert [file.parent.name for file in files] == ["random", "stock_batchtopk", "temporal"]
    for file in files:
        result = json.loads(file.read_text())
        CoreEvalOutput(**result)
        ours = result["eval_result_unstructured"]
        assert ours["provenance"]["weight_hash"]
        assert set(ours["provenance"]["versions"]) >= {"sae-lens", "sae-bench", "transformer-lens", "torch"}
        assert result["sae_bench_commit_hash"].startswith("sae-bench ")
        assert ours["trained"] is not (file.parent.name == "random")
        assert not list(file.parent.glob("*.partial"))
    before = {file: file.stat().st_mtime_ns for file in files}
    capsys.readouterr()
    eval_command.main("core", argv("temporal"))
    shown = capsys.readouterr().out
    assert "reused" in shown
    assert "stock:batchtopk" in shown, "the table shows the baselines that exist"
    assert {file: file.stat().st_mtime_ns for file in files} == before
    eval_command.main("core", [*argv("temporal"), "--force"])
    assert files[2].stat().st_mtime_ns > before[files[2]]


def test_other_weights_make_another_result(argv, tmp_path):
    eval_command.main("core", argv("temporal"))
    eval_command.main("core", [*argv("temporal"), "--seeds", "1"])
    assert len(list((tmp_path / "out").rglob("temporal/*.json"))) == 2


def test_other_settings_make_another_result(argv, tmp_path):
    eval_command.main("core", argv("temporal"))
    eval_command.main("core", [*argv("temporal"), "--n-eval-reconstruction-batches", "1"])
    assert len(list((tmp_path / "out").rglob("temporal/*.json"))) == 2


def test_a_folder_is_an_sae_too(target, trained, argv, tmp_path):
    folder = make_plan("temporal", target, tiny("temporal"), trained).folder
    words = argv("temporal")
    words[1] = str(folder)
    words = without_train(words)
    eval_command.main("core", words)
    (result,) = (tmp_path / "out").rglob("*.json")
    assert result.parent.name == f"temporal-{folder.name}"


def without_train(words: list[str]) -> list[str]:
    return [w for i, w in enumerate(words) if not (w.startswith("--train.") or words[i - 1].startswith("--train."))]


def test_weights_that_are_not_numbers_are_a_verdict_not_a_crash(target, trained, argv, tmp_path):
    folder = tmp_path / "sick"
    shutil.copytree(make_plan("temporal", target, tiny("temporal"), trained).folder, folder)
    state = load_file(folder / "sae_weights.safetensors")
    state["W_dec"][0] = float("nan")
    save_file(state, folder / "sae_weights.safetensors")
    assert eval_command.main("core", ["--sae", str(folder), *without_train(argv("temporal")[2:])]) == 1
    (result,) = (tmp_path / "out").rglob("*.json")
    ours = json.loads(result.read_text())["eval_result_unstructured"]
    assert ours["trained"] is False
    assert ours["explained_variance_corrected"] is None
    assert "explained_variance_corrected" in ours["not_a_number"]


def test_two_folders_of_one_name_stay_two(target, trained, argv, tmp_path):
    for place, name in (("a", "temporal"), ("b", "stock:batchtopk")):
        shutil.copytree(make_plan(name, target, tiny(name), trained).folder, tmp_path / place / "sae")
        (tmp_path / place / "sae" / "training.json").unlink()
    words = ["--sae", str(tmp_path / "a" / "sae"), "--sae", str(tmp_path / "b" / "sae")]
    eval_command.main("core", [*words, *without_train(argv("temporal")[2:])])
    files = list((tmp_path / "out").rglob("*.json"))
    assert len({file.parent.name for file in files}) == 2


def test_a_folder_does_not_hide_a_variant(argv, tmp_path, monkeypatch):
    (tmp_path / "temporal").mkdir()
    monkeypatch.chdir(tmp_path)
    eval_command.main("core", argv("temporal"))
    assert list((tmp_path / "out").rglob("temporal/*.json"))


@pytest.mark.slow
def test_a_stranger_s_evaluation_is_one_new_file(argv, tmp_path):
    shutil.copytree(Path(eval_runners.__file__).parent, tmp_path / "copy" / "eval_runners")
    core_file = tmp_path / "copy" / "eval_runners" / "core.py"
    core_file.with_name("mine.py").write_text(core_file.read_text())
    words = [sys.executable, "-m", "eval_runners.mine", *argv("random")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path / "copy", check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("mine/random/*.json"))) == 1


def test_an_sae_on_the_hub_is_named_user_repo_id(target, trained, argv, tmp_path, monkeypatch):
    repo = tmp_path / "snapshot"
    shutil.copytree(make_plan("temporal", target, tiny("temporal"), trained).folder, repo / "layer_1")
    asked = set()

    def download(name, file, revision=None):
        asked.add((name, file))
        if not (repo / file).exists():
            raise EntryNotFoundError(file)
        return str(repo / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    words = argv("temporal")[2:]
    words = without_train(words)
    eval_command.main("core", ["--sae", "someone/saes:layer_1", *words])
    assert {("someone/saes", f"layer_1/{name}") for name in ("cfg.json", "sae_weights.safetensors")} <= asked
    assert all(file.startswith("layer_1/") for _, file in asked)
    (result,) = (tmp_path / "out").rglob("*.json")
    assert result.parent.name == "someone_saes_layer_1"
    assert json.loads(result.read_text())["sae_lens_id"] == "someone/saes:layer_1"


def test_provenance_names_the_package_s_own_commit():
    root = Path(eval_command.__file__).parent.parent
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert package_commit().rstrip("+") == head.stdout.strip()
