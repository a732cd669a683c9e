"""Bad input: one line that names the input and the mend, exit code 2, no traceback, nothing written or lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import tiny

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
    models = {name: tmp_path / name for name in ("no_tokenizer", "bad_model_config", "cut_model")}
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
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("\n\n".join(["one", "two", "three", "four", "five", "six", "seven", "eight"]))
    (tmp_path / "no_text.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "text.csv").write_text("text\nx\n")
    tables = {
        "one_label.csv": "text,label\n" + "".join(f"text {i},x\n" for i in range(9)),
        "few.csv": "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(9)),
        "no_label.csv": "text,label\na,1\nb,\n", "blank.csv": "text,label\na,1\n  ,2\n", "other.csv": "body,label\na,1\n",
        "empty.csv": "", "cut.parquet": "no parquet", "cut.json": '{"eval_type_id": "core", ', "no_result.json": "[1]",
    }  # fmt: skip
    for table, content in tables.items():
        (tmp_path / table).write_text(content)
    file = tmp_path / "a_file"
    file.write_text("")
    return {
        **bad, **models, "good": folder, "tmp": tmp_path, "model": model_folder, "text": text_file, "file": file, "trained": trained,
        "tasks": tasks_file, "baselines": Path(__file__).parent.parent / "results" / "baselines",
        "out": tmp_path / "out", "gone": tmp_path / "gone",
    }  # fmt: skip


MODEL = "--model {model} --hook-name blocks.1.hook_resid_post --dataset {text}"
TRAIN = "--training-tokens 512 --batch-tokens 256 --d-sae 64 --k 4 --context-size 33 --stream-window 4 --window 4 --buffer-contexts 32"
PROBING = f"sparse_probing --sae {{good}} {MODEL}"
CORE = "--n-eval-reconstruction-batches 1 --n-eval-sparsity-variance-batches 1 --context-size 32"

TABLE = [
    # command, what the line must say
    ("train temporl", "did you mean 'temporal'"),
    ("train stock:batchtopp", "did you mean 'stock:batchtopk'"),
    ("train temporal --target sandbax", "did you mean 'sandbox'"),
    ("train temporal --windov 4", "did you mean 'window'"),
    ("train stock:topk --window 4", "unknown option 'window'"),
    (f"train temporal {MODEL} {TRAIN} --window 1", "window must be at least 2"),
    (f"train temporal {MODEL} {TRAIN} --window 8", "does not divide"),
    (f"train temporal {MODEL} {TRAIN} --window 4.5", "window of temporal must be int, not 4.5"),
    (f"train temporal {MODEL} {TRAIN} --slow-fraction abc", "slow_fraction of temporal must be float, not 'abc'"),
    (f"train temporal {MODEL} {TRAIN} --k four", "k of temporal must be float, not 'four'"),
    (f"train temporal {MODEL} {TRAIN} --consistency contrastiv", "must be contrastive, variance, similarity"),
    ("train stock:topk --k 3.5", "k of stock:topk must be int, not 3.5"),
    ("train stock:standard --l0 5", "stock:standard has no k"),
    ("train temporal --l0 5 --k 3", "two spellings"),
    ("train temporal --seed 3 --seeds 0,1", "two spellings"),
    ("train temporal --seed -1", "seed must not be negative"),
    ("train temporal --decay-share 1.5", "decay_share"),
    (f"train stock:topk {MODEL} --d-sae 1000000000000 --k 4 --context-size 33", "cannot build stock:topk"),
    (f"train --d-sae 16 --k 17 temporal {MODEL}", "at most d_sae = 16, not 17"),
    ("train temporal --model {model} --hook-name blocks.0.ln1.hook_scale --dataset {text} --context-size 33", "single number"),
    ("train temporal --model {no_tokenizer} --hook-name h --dataset {text}", "holds no tokenizer"),
    ("train temporal --model {bad_model_config} --hook-name h --dataset {text}", "is not JSON"),
    ("train temporal --model {cut_model} --hook-name h --dataset {text}", "cannot load the model"),
    ("core --sae " + "x" * 300, "unknown SAE"),
    ("core --sae=", "unknown SAE ''"),
    (f"core --sae temporal {MODEL} --train.seed 3", "--train.seed is written --seeds"),
    (f"core --sae random {MODEL} --sae {{empty_folder}}", "no cfg.json"),
    (f"core --sae temporal {MODEL} --device meta", "device 'meta' cannot be used"),
    (f"core --sae {{good}} {MODEL} {CORE} --context-size 129", "exceeds the model's 128 positions"),
    (f"train temporal {MODEL} {TRAIN} --k 65", "at most d_sae = 64, not 65"),
    (f"train temporal {MODEL} {TRAIN} --k 0", "k must be above 0"),
    (f"train temporal {MODEL} {TRAIN} --d-sae 0", "d_sae must be at least 1"),
    (f"train temporal {MODEL} {TRAIN} --d-sae many", "'many' is not a whole number"),
    (f"train temporal {MODEL} {TRAIN} --training-tokens 100", "fewer than one batch"),
    (f"train temporal {MODEL} {TRAIN} --context-size 4000", "exceeds the model's 128 positions"),
    (f"train temporal {MODEL} {TRAIN} --learning-rate -1", "learning_rate must be positive"),
    (f"train temporal {MODEL} {TRAIN} --learning-rate fast", "'fast' is not a number"),
    (f"train temporal {MODEL} {TRAIN} --dtype float31", "dtype"),
    (f"train temporal {MODEL} {TRAIN} --device cuda:99", "device 'cuda:99' cannot be used"),
    (f"train temporal {MODEL} {TRAIN} --seeds 0,x", "whole numbers"),
    (f"train temporal {MODEL} {TRAIN} --output {{file}}/x", "a_file"),
    ("train temporal --model {model}", "given together"),
    ("train temporal --model {gone} --hook-name h --dataset {text}", "no model folder"),
    ("train temporal --model {empty_folder} --hook-name h --dataset {text}", "no config.json"),
    (f"train temporal --model {{model}} --hook-name blocks.1.hook_resid_pots --dataset {{text}} {TRAIN}", "blocks.1.hook_resid_post"),
    (f"train temporal --model {{model}} --hook-name blocks.9.hook_resid_post --dataset {{text}} {TRAIN}", "unknown hook"),
    ("train temporal --model {model} --hook-name h --dataset {gone}", "no text at"),
    ("train temporal --model {model} --hook-name h --dataset {tmp}/text.csv", "no .txt"),
    (f"train temporal --model {{model}} --hook-name blocks.1.hook_resid_post --dataset {{tmp}}/empty.txt {TRAIN}", "holds no text"),
    (f"train temporal --model {{model}} --hook-name blocks.1.hook_resid_post --dataset {{tmp}}/short.txt {TRAIN}", "shorter than one context"),
    (f"train temporal --model {{model}} --hook-name blocks.1.hook_resid_post --dataset {{tmp}}/no_text.jsonl {TRAIN}", "no column 'text', only body"),
    (f"train temporal --model {{model}} --hook-name blocks.1.hook_resid_post --dataset {{tmp}}/broken.jsonl {TRAIN}", "cannot read"),
    (f"train temporal --model {{model}} --hook-name blocks.1.hook_resid_post --dataset {{tmp}}/broken.parquet {TRAIN}", "cannot read"),
    ("train temporal --target gpt2-small-l8", "on the Hugging Face Hub"),
    ("train", "NAME"),
    ("frobnicate", "frobnicate"),
    ("options temporl", "did you mean 'temporal'"),
    ("core --sae temporl", "did you mean 'temporal'"),
    ("core", "--sae"),
    (f"core --sae {{gone}}/x {MODEL}", "no folder"),
    (f"core --sae {{empty_folder}} {MODEL} {CORE}", "no cfg.json"),
    (f"core --sae {{no_weights}} {MODEL} {CORE}", "no sae_weights.safetensors"),
    (f"core --sae {{cut_weights}} {MODEL} {CORE}", "cannot load the SAE"),
    (f"core --sae {{bad_config}} {MODEL} {CORE}", "cannot load the SAE"),
    (f"core --sae {{elsewhere}} {MODEL} {CORE}", "was trained at blocks.0.hook_resid_pre"),
    (f"core --sae {{narrow}} {MODEL} {CORE}", "has d_in = 16, but blocks.1.hook_resid_post"),
    (f"core --sae {{trained}} {MODEL} {CORE}", "no cfg.json"),
    ("core --sae nobody/nothing:sae", "on the Hugging Face Hub"),
    ("core --sae random --target pythia-70m-l3", "on the Hugging Face Hub"),
    ("core --sae temporal --seeds -1", "seeds must not be negative"),
    ("core --sae temporal --seeds 0,x", "whole numbers"),
    ("core --sae temporal --seeds 0,0", "names a seed twice"),
    (f"{PROBING} --tasks {{tasks}} --dataset-names sandbox/nope", "both say what to probe"),
    (f"{PROBING} --dataset-names 1", "unknown dataset '1'"),
    (f"{PROBING} --tasks {{tasks}} --k-values true", "'true' is not a whole number"),
    (f"{PROBING} --tasks {{tasks}} --k-values=", "at least one value"),
    (f"{PROBING} --tasks {{tasks}} --probe-test-set-size 1", "must be an even number"),
    (f"{PROBING} --tasks {{tasks}} --context-length 1", "a document without a token of its own"),
    (f"core --sae {{good}} {MODEL} --grid k", "is written FIELD=VALUE"),
    (f"core --sae random {MODEL} --grid windov=3", "unknown option 'windov'"),
    (f"positional_consistency --sae {{good}} {MODEL} --context-size 400", "exceeds the model's 128 positions"),
    (f"core --sae {{good}} {MODEL} --baseline {{gone}}", "cannot read the result"),
    (f"core --sae {{good}} {MODEL} --baseline {{tmp}}/cut.json", "it is not JSON"),
    (f"core --sae {{good}} {MODEL} --baseline {{tmp}}/no_result.json", "is not a result of SAEBench"),
    (f"core --sae {{good}} {MODEL} --baseline {{baselines}}/sparse_probing_gemma-2-2b_layer_5.json", "evaluation is 'core' here and 'sparse_probing' there"),
    (f"core --sae {{good}} {MODEL} --baseline {{baselines}}/core_gemma-2-2b_layer_19.json", "model_name is"),
    (f"{PROBING} --tasks {{gone}}", "no file of tasks"),
    (f"{PROBING} --tasks {{text}}", "no file of tasks"),
    (f"{PROBING} --tasks {{tmp}}/one_label.csv", "has one label, x: a probe needs two labels"),
    (f"{PROBING} --tasks {{tmp}}/few.csv", "distinct documents; at least 25 are needed"),
    (f"{PROBING} --tasks {{tmp}}/no_label.csv", "row 2 has an empty or missing label"),
    (f"{PROBING} --tasks {{tmp}}/blank.csv", "row 2 has an empty or missing text"),
    (f"{PROBING} --tasks {{tmp}}/other.csv", "has no column 'text' in row 1, only body, label"),
    (f"{PROBING} --tasks {{tmp}}/empty.csv", "has no rows"),
    (f"{PROBING} --tasks {{tmp}}/cut.parquet", "cannot read"),
    (f"{PROBING} --tasks {{tasks}} --probe-train-set-size 900", "distinct documents, fewer than 450 +"),
    (f"{PROBING} --tasks {{tasks}} --context-length 129", "exceeds the model's 128 positions"),
    (f"{PROBING} --tasks {{tasks}} --k-values 3", "--k-values may hold 1, 2, 5, 10, 20, 50, 100, not 3"),
    (f"{PROBING} --tasks {{tasks}} --k-values one", "'one' is not a whole number"),
    (f"{PROBING} --tasks {{tasks}} --k-values 1,100 --context-length 32", "asks for 100 of d_sae = 64"),
    (f"{PROBING} --tasks {{tasks}} --k-values 50 --context-length 32", "asks for 50 of d_in = 32"),
    (f"{PROBING} --dataset-names sandbox/ag_nwes", "did you mean 'sandbox/ag_news'"),
    (f"{PROBING} --dataset-names fancyzhx/ag_news --context-length 32", "the dataset fancyzhx/ag_news on the Hugging Face Hub"),
    (f"{PROBING} --probe-test-set-size 0", "--probe-test-set-size must be at least 1"),
    (f"{PROBING} --dataset-names sandbox/it_ticket --probe-test-set-size 9000", "fewer than"),
    ("sparse_probing --sae {good} --model {model} --hook-name hook_embed --dataset {text}", "needs a hook inside a layer"),
    (f"sae_probes --sae {{good}} {MODEL} --dataset-names 95_toxic", "did you mean '95_toxic_is'"),
    (f"sae_probes --sae {{good}} {MODEL} --ks 4", "--ks may hold"),
    (f"sae_probes --sae {{good}} {MODEL} --ks 100 --dataset-names 95_toxic_is", "asks for 100 of d_sae = 64"),
    (f"sae_probes --sae {{good}} {MODEL} --reg-type l3", "must be l1 or l2"),
    (f"sae_probes --sae {{good}} {MODEL} --all maybe", "'maybe' is neither true nor false"),
    (f"core --sae temporal {MODEL} --context-size 0", "--context-size must be at least 1"),
    (f"core --sae temporal {MODEL} --train.kk 3", "did you mean 'k'"),
    (f"core --sae temporal {MODEL} --kk 3", "unknown option"),
    (f"core --sae temporal {MODEL} --output {{file}}/out", "cannot write results"),
    (f"composition --sae stock:topk {MODEL}", "is for SAEs of two levels"),
    (f"composition --sae hierarchical:lower {MODEL}", "is for SAEs of two levels"),
    (f"alpha_dynamics --sae stock:topk {MODEL}", "is for SAEs with a balance"),
    (f"alpha_dynamics --sae learnable_dual {MODEL} --train.tracing false", "that were trained with tracing"),
    (f"alpha_dynamics --sae dual_adaptive --stress {MODEL}", "--stress is for SAEs whose balance is learned"),
    (f"ablation_sparsity --sae {{good}} {MODEL} --context-size 16", "--tokens-after 16 must be below --context-size 16"),
    (f"downstream_loss --sae {{good}} {MODEL} --curve {{gone}}", "cannot read --curve"),
    (f"downstream_loss --sae {{good}} {MODEL} --curve {{tmp}}/other.csv", "columns compute and loss"),
    (f"probe_loss --sae {{good}} {MODEL} --dataset-names sandbox/ag_nwes", "did you mean 'sandbox/ag_news'"),
    (f"probe_loss --sae {{good}} {MODEL} --ridge 0", "--ridge must be positive"),
    (f"n2g --sae {{good}} {MODEL} --n-contexts 4", "must be at least twice --n-min 5"),
    ("list --kk 3", "unrecognized arguments"),
]  # fmt: skip


EVALUATIONS = evaluator_names()


def run(words: list[str]) -> int:
    def command() -> int:
        if words[0] in EVALUATIONS:
            return eval_command.main(words[0], words[1:])
        return variants_main.main(words)

    with pytest.raises(SystemExit) as ended:
        run_command(command)
    return int(ended.value.code)


def snapshot(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("command", "says"), TABLE, ids=[f"{i}-{row[1][:30]}" for i, row in enumerate(TABLE)])
def test_one_clear_line(command, says, place, capsys, monkeypatch):
    monkeypatch.setenv("SAE_VARIANTS_TRAINED", str(place["tmp"] / "trained_here"))
    words = [word.format(**place) for word in command.split()]
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
