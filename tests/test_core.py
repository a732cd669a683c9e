"""SAEBench's core evaluation through our runner: its numbers untouched, its faults answered."""

from __future__ import annotations

import copy
import shutil
import subprocess
from dataclasses import asdict

import pytest
import torch
from conftest import evaluate, identity, tiny, zero

from eval_runners.contract.contract import Context
from eval_runners.contract.registry import load_evaluator
from eval_runners.core import Settings
from eval_runners.harness.fit import load_for_target
from eval_runners.saebench.shared import serving_text
from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import heldout_text_name, read_contexts
from sae_variants.language_model.hooks import hook_activations
from sae_variants.training.plan import make_plan

SMALL = Settings(
    batch_size_prompts=4, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=3, context_size=32
)


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


def test_a_hook_that_the_predictions_do_not_depend_on_is_refused(target, model):
    model = copy.deepcopy(model)
    model.unembed.W_U.data.zero_()
    with pytest.raises(
        UsageError, match=r"KL and CE scores on .* divide by zero.*blocks\.1\.hook_resid_post is zeroed"
    ):
        score(identity(target), target, model)


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
    # an SAE needs two batches to reconstruct, of the layers before, the clean, the ablated and its own run; three to encode
    assert (all_runs.count("activations"), runs.count("activations")) == (9, 3)
    assert all_runs.count("forward") == 3 * (2 * 4 + 3)
    assert runs.count("forward") == 2 * 4 + 3 + 2 * 2


def test_the_next_saes_are_compared_with_the_same_predictions_and_no_number_changes(
    target, model, trained, tmp_path, monkeypatch
):
    from weakref import WeakKeyDictionary

    from eval_runners.contract.located import LocatedSAE
    from eval_runners.saebench import memo

    names = ("temporal", "stock:batchtopk")
    located = [LocatedSAE(name, make_plan(name, target, tiny(name), trained).folder) for name in names]
    identity(target).save_model(tmp_path / "identity")
    located.append(LocatedSAE("identity", tmp_path / "identity"))
    broken = LocatedSAE("broken", shutil.copytree(located[0].folder, tmp_path / "broken"))
    (broken.folder / "cfg.json").write_text("{}")
    loads, load = [], LocatedSAE.load
    monkeypatch.setattr(LocatedSAE, "load", lambda sae, device: (loads.append(sae.label), load(sae, device))[1])

    def scored(following: bool) -> tuple[list, int]:
        # too little for the predictions of the clean model
        monkeypatch.setattr(memo, "LARGEST", 4 * 4 * 32 * model.cfg.d_vocab / 1e7)
        monkeypatch.setattr(memo, "free_memory", lambda device: 1e7 / memo.SHARE)
        monkeypatch.setattr(memo, "_memories", WeakKeyDictionary())
        runs, found, forward = [], [], model.forward
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", lambda *a, **k: (runs.append(k.get("start_at_layer")), forward(*a, **k))[1])
            for number, sae in enumerate(located):
                context = Context(model, "cpu", sae, following=[*located[number + 1 :], broken] if following else [])
                loaded = load_for_target(sae, target, model, "cpu")
                found.append(load_evaluator("core").evaluate(loaded, target, SMALL, context))
        return [evaluation.host_output["eval_result_metrics"] for evaluation in found], sum(
            run is not None for run in runs
        )

    apart, runs_apart = scored(False)
    together, runs_together = scored(True)
    assert together == apart
    # two batches: each SAE's own run, the ablated run, and the clean run for every SAE, or for all of them
    assert (runs_apart, runs_together) == (2 * (3 + 1 + 3), 2 * (3 + 1 + 1))
    assert loads.count("broken") == 1


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


def test_same_seed_same_numbers(target, model, trained):
    first, second = (score(_train_sae(target, trained), target, model).values for _ in range(2))
    assert first == second


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


def test_the_config_is_saebench_s_comparable_one():
    config = asdict(Settings())
    assert config == {
        "batch_size_prompts": 16,
        "n_eval_reconstruction_batches": 200,
        "n_eval_sparsity_variance_batches": 2000,
        "context_size": 128,
        "exclude_special_tokens_from_reconstruction": True,
    }


def test_latents_that_do_not_fit_in_memory_are_refused(monkeypatch):
    import eval_runners.core as core

    monkeypatch.setattr(core, "free_memory", lambda device: 1e9)
    settings = core.Settings(batch_size_prompts=16, context_size=128)
    core._check_memory(40_000, settings, "cpu")
    with pytest.raises(
        UsageError, match=r"at least 25.8 GB, and 1.0 GB of memory are free: give --batch-size-prompts 1,"
    ):
        core._check_memory(2**20, settings, "cpu")
    with pytest.raises(UsageError, match="give --batch-size-prompts 9,"):
        core._check_memory(2**16, settings, "cpu")
