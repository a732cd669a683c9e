"""Bad input: one line that names the input and the mend, exit code 2, no traceback, nothing written or lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import tiny
from safetensors.torch import load_file, save_file

import sae_variants
from eval_runners import __main__ as runners_main
from eval_runners.commands import evaluate as eval_command
from eval_runners.contract.registry import evaluator_names
from sae_variants import __main__ as variants_main
from sae_variants.common.console import run_command
from sae_variants.training.plan import make_plan


@pytest.fixture
def place(tmp_path, model_folder, text_file, target, trained, tasks_file) -> dict[str, Path]:
    """Folders and files, good and bad, by the name that the table uses."""
    folder = make_plan("temporal", target, tiny("temporal"), trained).folder
    bad = {
        name: tmp_path / name
        for name in ("empty_folder", "no_weights", "cut_weights", "bad_config", "elsewhere", "narrow")
    }
    models = {
        name: tmp_path / name for name in ("no_tokenizer", "bad_model_config", "cut_model", "zero_model", "nan_model")
    }
    bad["empty_folder"].mkdir()
    for name in ("no_weights", "cut_weights", "bad_config", "elsewhere"):
        shutil.copytree(folder, bad[name])
    (bad["no_weights"] / "sae_weights.safetensors").unlink()
    weights = bad["cut_weights"] / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (bad["bad_config"] / "cfg.json").write_text("{")
    config = json.loads((bad["elsewhere"] / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.0.hook_resid_pre"
    (bad["elsewhere"] / "cfg.json").write_text(json.dumps(config))
    sae_variants.build("stock:topk", d_in=16, d_sae=32, k=4).save_inference_model(bad["narrow"])
    for copy in models.values():
        shutil.copytree(model_folder, copy)
    for file in models["no_tokenizer"].glob("tokenizer*"):
        file.unlink()
    (models["bad_model_config"] / "config.json").write_text("{")
    weights = models["cut_model"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    for name, factor in (("zero_model", 0.0), ("nan_model", float("nan"))):
        state = load_file(models[name] / "model.safetensors")
        state = {key: factor * value if "layers.1.mlp.dense_4h_to_h" in key else value for key, value in state.items()}
        save_file(state, models[name] / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("\n\n".join(["one", "two", "three", "four", "five", "six", "seven", "eight"]))
    (tmp_path / "no_text.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "text.doc").write_text("text\nx\n")
    tables = {
        "one_label.csv": "text,label\n" + "".join(f"text {i},x\n" for i in range(9)),
        "few.csv": "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(9)),
        "no_label.csv": "text,label\na,1\nb,\n",
        "blank.csv": "text,label\na,1\n  ,2\n",
        "other.csv": "body,label\na,1\n",
        "empty.csv": "",
        "cut.parquet": "no parquet",
        "cut.json": '{"eval_type_id": "core", ',
        "no_result.json": "[1]",
        "no_title.toml": 'hook_name = "h"',
        "typo.toml": 'hook_nam = "h"',
        "broken.toml": "hook_name = ",
        "large_world.toml": "[synthetic]\nnum_features = 1000000000\nhidden_dim = 8\n[synthetic.firing_probability]\n"
        'generator_name = "constant"\nprobability = 0.1',
        "certain_world.toml": "[synthetic]\nnum_features = 10\nhidden_dim = 8\n[synthetic.firing_probability]\n"
        'generator_name = "constant"\nprobability = 1.5',
        "odd_world.toml": "[synthetic]\nnum_features = 10\nhidden_dim = 8\n[synthetic.firing_probability]\n"
        'generator_name = "odd"',
        "flat_world.toml": "[synthetic]\nnum_features = 10\nhidden_dim = 1\n[synthetic.firing_probability]\n",
        "empty_world.toml": "[synthetic]",
        "tree_world.toml": "[synthetic]\nnum_features = 10\nhidden_dim = 8\nhierarchy = 3\n"
        '[synthetic.firing_probability]\ngenerator_name = "constant"\nprobability = 0.1',
        "one_document.txt": "the cat sat on a mat while seven red birds sang of rain",
    }
    for table, content in tables.items():
        (tmp_path / table).write_text(content)
    file = tmp_path / "a_file"
    file.write_text("")
    return {
        **bad,
        **models,
        "good": folder,
        "tmp": tmp_path,
        "model": model_folder,
        "text": text_file,
        "file": file,
        "trained": trained,
        "tasks": tasks_file,
        "baselines": Path(__file__).parent.parent / "results" / "baselines",
        "out": tmp_path / "out",
        "gone": tmp_path / "gone",
    }


SHORTHANDS = {
    "{MODEL}": "--model {model} --hook-name blocks.1.hook_resid_post --dataset {text}",
    "{TRAIN}": "--training-tokens 512 --batch-tokens 256 --d-sae 64 --k 4 --context-size 33 --stream-window 4 --window 4"
    " --buffer-contexts 32",
    "{PROBING}": "sparse_probing --sae {good} {MODEL}",
    "{LONG}": "x" * 300,
    "{CORE}": "--n-eval-reconstruction-batches 1 --n-eval-sparsity-variance-batches 1 --context-size 32",
}
LONG_NAME = ("core --sae " + "x" * 300, "unknown SAE")


def read_table() -> list[tuple[str, str]]:
    """Commands, and what their error must say, from `bad_input.txt`."""
    lines = Path(__file__).with_name("bad_input.txt").read_text().splitlines()
    rows = [(command, says) for command, _, says in (line.partition(" => ") for line in lines)]
    return [*rows, LONG_NAME]


def expand(command: str, place: dict[str, Path]) -> list[str]:
    for name in ("{PROBING}", "{MODEL}", "{TRAIN}", "{CORE}", "{LONG}"):
        command = command.replace(name, SHORTHANDS[name])
    return [word.format(**place) for word in command.split()]


TABLE = read_table()
EVALUATIONS = evaluator_names()
RUNNERS = ("leaderboard", "reliability")


def run(words: list[str]) -> int:
    def command() -> int:
        if words[0] in EVALUATIONS:
            return eval_command.main(words[0], words[1:])
        return (runners_main if words[0] in RUNNERS else variants_main).main(words)

    with pytest.raises(SystemExit) as ended:
        run_command(command)
    return int(ended.value.code)


def snapshot(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("command", "says"), TABLE, ids=[f"{i}-{row[1][:30]}" for i, row in enumerate(TABLE)])
def test_one_clear_line(command, says, place, capsys, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_TRAINED", str(place["tmp"] / "trained_here"))
    words = expand(command, place)
    if words[0] in EVALUATIONS and "--output" not in words:
        words += ["--output", str(place["out"])]
    before, before_trained = snapshot(place["tmp"]), snapshot(place["trained"])
    code = run(words)
    error = capsys.readouterr().err
    line = [part for part in error.replace("\r", "\n").splitlines() if part.startswith("error: ")]
    assert code == 2, error
    assert len(line) == 1, error
    assert says in line[0]
    assert "Traceback" not in error
    assert snapshot(place["tmp"]) == before, "nothing written"
    assert snapshot(place["trained"]) == before_trained, "nothing lost"


def test_evaluators_list_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: runners_main.main(["lst"]))
    assert ended.value.code == 2
    assert "lst" in capsys.readouterr().err


def test_a_full_disk_is_one_line(capsys):
    def full() -> int:
        raise OSError(28, "No space left on device", "/x/y")

    with pytest.raises(SystemExit) as ended:
        run_command(full)
    assert ended.value.code == 2
    assert "No space left" in capsys.readouterr().err
