"""SAEBench's core evaluation through our runner: its numbers untouched, its faults answered."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import evaluate, identity, tiny, zero
from sae_bench.evals.core.eval_output import CoreEvalOutput
from safetensors.torch import load_file, save_file

import eval_runners
from eval_runners.commands import evaluate as eval_command
from eval_runners.core import Settings
from eval_runners.saebench.shared import serving_text
from eval_runners.store.paths import without_paths
from eval_runners.store.result import package_commit
from sae_variants.language_model.contexts import heldout_text_name, read_contexts
from sae_variants.language_model.hooks import hook_activations
from sae_variants.training.plan import make_plan

SMALL = Settings(
    batch_size_prompts=4, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=3, context_size=32
)
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


def score(sae, target, model):
    return evaluate("core", sae, target, model, **asdict(SMALL))


def test_the_identity_is_perfect(target, model):
    evaluation = score(identity(target), target, model)
    found = evaluation.values
    assert found["explained_variance_corrected"] == pytest.approx(1, abs=1e-6)
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-4)
    assert found["kl_div_score"] == pytest.approx(1, abs=1e-4)
    assert found["cossim"] == pytest.approx(1, abs=1e-5)
    assert found["l0"] == pytest.approx(32, abs=0.5)
    assert evaluation.failures == []


def test_all_zero_weights_are_the_floor_and_called_untrained(target, model):
    evaluation = score(zero(target), target, model)
    found = evaluation.values
    assert found["ce_loss_score"] == pytest.approx(0, abs=1e-5)
    assert found["kl_div_score"] == pytest.approx(0, abs=1e-5)
    assert found["explained_variance_corrected"] <= 0
    assert "L0 is 0: no latent ever fires" in evaluation.failures
    # SAEBench writes NaN as -1, which looks like a score; it is named
    assert found["cossim"] == -1
    assert "reconstruction_quality.cossim" in evaluation.unstructured["not_a_number"]


def test_the_mean_activation_explains_nothing(target, model):
    sae = zero(target)
    sae.b_dec.data = activations(target, model).mean(0)
    assert score(sae, target, model).values["explained_variance_corrected"] == pytest.approx(0, abs=1e-4)


def activations(target, model) -> torch.Tensor:
    """The ordinary tokens' activations that the sparsity phase sees: its text follows that of the first phase."""
    contexts = read_contexts(target, model, SMALL.context_size, "heldout")
    batches = [torch.stack([next(contexts) for _ in range(SMALL.batch_size_prompts)]) for _ in range(5)]
    tokens = torch.cat(batches[SMALL.n_eval_reconstruction_batches :])
    acts = hook_activations(model, target.hook_name)(tokens)
    return acts[tokens != 0]


def test_corrected_explained_variance_is_the_textbook_one(target, model, trained):
    sae = _train_sae(target, trained)
    x = activations(target, model)
    error = x - sae.decode(sae.encode(x))
    expected = 1 - (error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
    assert score(sae, target, model).values["explained_variance_corrected"] == pytest.approx(expected, abs=1e-5)


def _train_sae(target, trained, name="temporal"):
    import sae_variants

    return sae_variants.load(make_plan(name, target, tiny(name), trained).folder)


def test_saebench_own_explained_variance_is_still_wrong(target, model):
    # should this fail, SAEBench has mended the formula and the corrected field can go
    assert score(identity(target), target, model).values["explained_variance"] == pytest.approx(1, abs=1e-6)
    sae = zero(target)
    sae.b_dec.data = activations(target, model).mean(0)
    assert abs(score(sae, target, model).values["explained_variance"]) > 1e-3


def test_watching_changes_no_number_of_saebench(target, model, trained):
    from sae_bench.evals.core import main as saebench

    ours = score(_train_sae(target, trained), target, model).output["eval_result_metrics"]
    with serving_text(target, heldout_text_name(target)):
        raw = saebench.multiple_evals(
            [("x", _train_sae(target, trained))],
            2,
            3,
            4,
            True,
            True,
            True,
            heldout_text_name(target),
            32,
            output_folder=str(trained / "raw"),
            device="cpu",
            verbose=False,
        )
    for group, values in raw[0]["metrics"].items():
        for name, value in values.items():
            assert ours[group][name] == value, f"{group}.{name}"


def test_what_does_not_depend_on_the_sae_is_computed_once_and_changes_no_number(target, model, monkeypatch):
    from weakref import WeakKeyDictionary

    from eval_runners.saebench import memo

    def scored(share):
        monkeypatch.setattr(memo, "SHARE", share)
        monkeypatch.setattr(memo, "_memories", WeakKeyDictionary())
        runs = []
        with_cache, forward = model.run_with_cache, model.forward
        monkeypatch.setattr(
            model, "run_with_cache", lambda *a, **k: (runs.append("activations"), with_cache(*a, **k))[1]
        )
        monkeypatch.setattr(model, "forward", lambda *a, **k: (runs.append("forward"), forward(*a, **k))[1])
        found = [score(make(target), target, model) for make in (identity, zero, identity)]
        monkeypatch.setattr(model, "run_with_cache", with_cache)
        monkeypatch.setattr(model, "forward", forward)
        for evaluation in found:
            for changing in ("eval_id", "datetime_epoch_millis"):
                del evaluation.output[changing]
        return [evaluation.output for evaluation in found], runs

    plain, all_runs = scored(0)
    remembered, runs = scored(1)
    assert remembered == plain
    # of three SAEs with two batches to reconstruct and three to encode, one needs all, the others their own two
    assert (all_runs.count("activations"), runs.count("activations")) == (9, 3)
    assert all_runs.count("forward") - runs.count("forward") == 2 * (2 + 2 + 3)


def test_a_failing_sae_stops_the_run_with_its_error(target, model):
    sae = identity(target)
    sae.decode = lambda acts: (_ for _ in ()).throw(RuntimeError("decoder is broken"))
    with pytest.raises(RuntimeError, match="decoder is broken"):
        score(sae, target, model)


def test_saebench_still_swallows_errors(target, model, tmp_path):
    # should this fail, `catching_errors` can go
    from sae_bench.evals.core import main as saebench

    sae = identity(target)
    sae.decode = lambda acts: (_ for _ in ()).throw(RuntimeError("decoder is broken"))
    with serving_text(target, heldout_text_name(target)):
        assert (
            saebench.multiple_evals(
                [("x", sae)],
                1,
                1,
                4,
                True,
                True,
                True,
                heldout_text_name(target),
                32,
                output_folder=str(tmp_path),
                device="cpu",
            )
            == []
        )


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


def test_same_seed_same_numbers(target, model, trained):
    first, second = (score(_train_sae(target, trained), target, model).values for _ in range(2))
    assert first == second


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


def test_a_stranger_s_evaluation_is_one_new_file(argv, tmp_path):
    shutil.copytree(Path(eval_runners.__file__).parent, tmp_path / "copy" / "eval_runners")
    core_file = tmp_path / "copy" / "eval_runners" / "core.py"
    core_file.with_name("mine.py").write_text(core_file.read_text())
    words = [sys.executable, "-m", "eval_runners.mine", *argv("random")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path / "copy", check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").rglob("mine/random/*.json"))) == 1


def test_saebench_still_takes_its_commit_from_the_current_folder(tmp_path, monkeypatch):
    # should this fail, the commit hash need not be replaced
    from sae_bench.sae_bench_utils import get_sae_bench_version

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    monkeypatch.chdir(tmp_path)
    assert get_sae_bench_version() == head.stdout.strip()


def test_saebench_still_leaves_decoder_norms_of_objects_alone(target):
    # should this fail, `LocatedSAE.load` need not fold
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    sae = identity(target)
    sae.W_dec.data *= 2
    _, formatted, _ = load_and_format_sae("x", sae, "cpu")
    assert formatted.W_dec.detach().norm(dim=-1).max() == pytest.approx(2)


def test_an_sae_on_the_hub_is_named_user_repo_id(target, trained, argv, tmp_path, monkeypatch):
    repo = tmp_path / "snapshot"
    shutil.copytree(make_plan("temporal", target, tiny("temporal"), trained).folder, repo / "layer_1")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kw: asked.append((name, kw)) or str(repo))
    words = argv("temporal")[2:]
    words = without_train(words)
    eval_command.main("core", ["--sae", "someone/saes:layer_1", *words])
    assert asked == [("someone/saes", {"allow_patterns": ["layer_1/*"]})]
    (result,) = (tmp_path / "out").rglob("*.json")
    assert result.parent.name == "someone_saes_layer_1"
    assert json.loads(result.read_text())["sae_lens_id"] == "someone/saes:layer_1"


def test_provenance_holds_no_path_of_this_machine():
    argv = ["--model", "/home/me/model/", "--dataset=~/texts/a.txt", "--sae", "temporal", "--output", "../out"]
    assert without_paths(argv) == [
        "--model",
        "model",
        "--dataset=a.txt",
        "--sae",
        "temporal",
        "--output",
        "out",
    ]


def test_provenance_names_the_package_s_own_commit():
    root = Path(eval_command.__file__).parent.parent
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert package_commit().rstrip("+") == head.stdout.strip()


def test_the_config_is_saebench_s_comparable_one():
    config = asdict(Settings())
    assert config == {
        "batch_size_prompts": 16,
        "n_eval_reconstruction_batches": 200,
        "n_eval_sparsity_variance_batches": 2000,
        "context_size": 128,
        "exclude_special_tokens_from_reconstruction": True,
    }
