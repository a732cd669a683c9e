"""The harness: names become SAEs, SAEs become results, and what cannot work is refused before anything is trained."""

from __future__ import annotations

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from weakref import WeakKeyDictionary

import pytest
import torch
from conftest import evaluate, identity, tiny, zero
from pydantic import TypeAdapter

from eval_runners.__main__ import main
from eval_runners.contract.contract import CannotDo, Evaluation, Untrained
from eval_runners.contract.registry import load_evaluator
from eval_runners.core import Core
from eval_runners.core import Settings as CoreSettings
from eval_runners.data.labelled import register_task_file
from eval_runners.harness import find_sae, score_many
from eval_runners.harness.cells import cells_of
from eval_runners.harness.evaluations import leave_out_unsupported
from eval_runners.harness.find_sae import SAERequest, locate_all, locate_requests, resolve_requests
from eval_runners.harness.saebench_api import make_run_eval
from eval_runners.harness.score import check_supported, prepare_scoring
from eval_runners.harness.score_many import score_all
from eval_runners.n2g import N2G
from eval_runners.n2g import Settings as N2GSettings
from eval_runners.saebench import memo
from eval_runners.store.envelope import make_output, output_class
from sae_variants.common.errors import UsageError
from sae_variants.common.files import claimed
from sae_variants.common.worker import LAUNCH, WORKER
from sae_variants.training.plan import make_plan

CORE = {
    "batch_size_prompts": 4,
    "n_eval_reconstruction_batches": 1,
    "n_eval_sparsity_variance_batches": 1,
    "context_size": 32,
}


def where(target, model_folder, text_file, trained) -> list[str]:
    target_options = ["--model", str(model_folder), "--hook-name", target.hook_name, "--dataset", str(text_file)]
    return [*target_options, "--trained", str(trained)]


def test_a_variant_is_a_request_for_each_grid_point_and_seed(target, trained, tmp_path):
    folder = make_plan("temporal", target, tiny("temporal"), trained).folder
    names = ["temporal", str(folder), "someone/saes:layer_1"]
    requests = resolve_requests(names, target, grid_points=[{"k": 2}, {"k": 4}], seeds=[0, 1], trained=tmp_path)
    assert [request.name for request in requests] == ["temporal"] * 4 + names[1:]
    assert [(plan.values["k"], plan.settings.seed) for request in requests if (plan := request.plan)] == [
        (2, 0),
        (2, 1),
        (4, 0),
        (4, 1),
    ]
    assert len({request.key for request in requests}) == len(requests)
    assert requests[0].key == resolve_requests(["temporal"], target, {"k": 2}, trained=tmp_path)[0].key
    assert not list(tmp_path.iterdir()), "nothing is trained"


def test_sae_requests_are_located_in_their_order(target, trained):
    plan = make_plan("temporal", target, tiny("temporal"), trained)
    located, failures = locate_requests([SAERequest(str(plan.folder)), SAERequest("temporal", plan)], "cpu", ["k"])
    assert failures == []
    assert [sae.folder for sae in located] == [plan.sae_folder] * 2
    assert [sae.plan for sae in located] == [None, plan]
    assert located[1].grid_point == {"k": plan.values["k"]}
    assert located[1].training_tokens == tiny("temporal")["training_tokens"]


def test_an_sae_that_cannot_be_trained_is_a_failure_or_an_error(target, trained, tmp_path, monkeypatch):
    good = make_plan("temporal", target, tiny("temporal"), trained)
    bad = make_plan("temporal", target, tiny("temporal"), tmp_path)
    monkeypatch.setattr(find_sae, "train_missing", lambda *_: {bad.folder: "temporal diverged"})
    requests = [SAERequest("temporal", bad), SAERequest("temporal", good)]
    located, failures = locate_requests(requests, "cpu")
    assert ([sae.plan for sae in located], failures) == ([good], ["temporal diverged"])
    with pytest.raises(UsageError, match="temporal diverged"):
        locate_all(requests, "cpu")


@pytest.fixture
def scoring(target, tmp_path):
    return prepare_scoring("core", target, CORE, tmp_path / "out", ["python"])


@pytest.fixture
def two_saes(target, trained):
    requests = resolve_requests(["temporal", "random"], target, tiny("temporal"), trained=trained)
    return locate_all(requests, "cpu")


ERRORS = [(UsageError("too short"), "too short"), (RuntimeError("out of luck\nat length"), "RuntimeError: out of luck")]


@pytest.mark.parametrize(("error", "line"), ERRORS, ids=["usage", "other"])
def test_an_error_stops_the_scoring_unless_it_keeps_going(scoring, two_saes, model, monkeypatch, error, line):
    original = Core.evaluate

    def fails_for_the_first(self, sae, target, settings, context):
        if context.located.label.startswith("temporal"):
            raise error
        return original(self, sae, target, settings, context)

    monkeypatch.setattr(Core, "evaluate", fails_for_the_first)
    with pytest.raises(type(error)):
        score_all([scoring], two_saes, lambda: model, "cpu", force=False)
    scored, failures, _ = score_all([scoring], two_saes, lambda: model, "cpu", force=False, keep_going=True)
    assert [sae.label for sae, _ in scored] == [two_saes[1].label]
    assert failures == [f"core of [1/2] {two_saes[0].label}: {line}"]
    assert [path.parent.name for path in scoring.location.root.rglob("*.json")] == ["random"]


def test_an_untrained_sae_stops_nothing(scoring, two_saes, model, monkeypatch):
    def untrained(self, sae, target, settings, context):
        raise Untrained("no weights")

    monkeypatch.setattr(Core, "evaluate", untrained)
    scored, failures, _ = score_all([scoring], two_saes, lambda: model, "cpu", force=False)
    assert scored == []
    assert failures == [
        f"[{number}/2] {sae.label}: untrained: no weights; there is no result"
        for number, sae in enumerate(two_saes, start=1)
    ]


def test_a_finished_result_is_reused_without_the_language_model(scoring, two_saes, model):
    first, *_ = score_all([scoring], two_saes, lambda: model, "cpu", force=False)
    again, *_ = score_all([scoring], two_saes, lambda: pytest.fail("loaded the model"), "cpu", force=False)
    assert [result for _, result in again] == [result for _, result in first]


def test_what_another_process_evaluates_comes_last_and_is_waited_for(scoring, two_saes, model, capsys):
    first, second = (scoring.location.path(sae) for sae in two_saes)
    with ThreadPoolExecutor() as pool, claimed(first):
        scoring_all = pool.submit(score_all, [scoring], two_saes, lambda: model, "cpu", force=False)
        shown = ""
        while "waiting for it" not in shown:
            assert not scoring_all.done()
            shown += capsys.readouterr().out
            time.sleep(0.01)
        assert second.exists()
        assert not first.exists()
        assert f"[1/2] {two_saes[0].label}: {socket.gethostname()} (process {os.getpid()}) evaluates core" in shown
    scored, failures, _ = scoring_all.result(timeout=60)
    assert [sae for sae, _ in scored] == two_saes
    assert failures == []


@pytest.fixture
def six_saes(two_saes):
    return [replace(two_saes[0], label=f"sae{number}") for number in range(6)]


def follow(monkeypatch, scoring, located, model, workers: int) -> tuple[dict[str, list[str]], list[int]]:
    """Let one of several workers score SAEs, all of which fail.

    Returns:
        By label, the SAEs that it was told of when it evaluated one; how many results it had claimed then.
    """
    following, claims = {}, []

    def evaluate(self, sae, target, settings, context):
        following[context.located.label] = [sae.label for sae in context.following]
        claims.append(len(list(scoring.location.root.rglob("*.claim"))))
        raise Untrained("no work")

    monkeypatch.setattr(Core, "evaluate", evaluate)
    monkeypatch.setenv(WORKER, str(workers))
    monkeypatch.setenv(LAUNCH, str(scoring.location.root.parent / "launch"))
    score_all([scoring], located, lambda: model, "cpu", force=False)
    return following, claims


def test_a_worker_claims_its_share_of_the_saes_and_is_told_of_no_others(scoring, six_saes, model, monkeypatch):
    following, claims = follow(monkeypatch, scoring, six_saes, model, workers=2)
    # half of six; of the three that are left two; one
    shares = [["sae1", "sae2"], ["sae2"], [], ["sae4"], [], []]
    assert following == {f"sae{number}": share for number, share in enumerate(shares)}
    assert claims == [3, 2, 1, 2, 1, 1]
    assert not list(scoring.location.root.rglob("*.claim"))


def test_a_worker_s_share_is_of_what_is_missing_and_does_not_hold_what_others_claimed(
    scoring, six_saes, model, monkeypatch
):
    with claimed(scoring.location.path(six_saes[0])), claimed(scoring.location.path(six_saes[2])):
        following, _ = follow(monkeypatch, scoring, six_saes, model, workers=2)
    assert following == {"sae1": ["sae3", "sae4"], "sae3": ["sae4"], "sae4": [], "sae5": []}


def test_claims_at_once_are_few(scoring, six_saes, model, monkeypatch):
    monkeypatch.setattr(score_many, "MOST_CLAIMS", 2)
    following, claims = follow(monkeypatch, scoring, six_saes, model, workers=1)
    assert list(following.values()) == [["sae1"], [], ["sae3"], [], ["sae5"], []]
    assert max(claims) == 2


def test_a_worker_takes_one_sae_at_a_time_where_evaluations_share_nothing(scoring, six_saes, model, monkeypatch):
    monkeypatch.setattr(Core, "uses_following", False)
    following, claims = follow(monkeypatch, scoring, six_saes, model, workers=1)
    assert following == {sae.label: [] for sae in six_saes}
    assert claims == [1] * 6


def test_a_worker_compares_its_saes_with_the_clean_predictions_at_once_and_no_number_changes(
    scoring, two_saes, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(memo, "free_memory", lambda device: 1e7 / memo.SHARE)
    monkeypatch.setattr(memo, "LARGEST", 4 * 4 * 32 * model.cfg.d_vocab / 1e7)  # less than the clean predictions

    def score(root: str, worker: str) -> tuple[list, int]:
        runs, forward = [], model.forward
        monkeypatch.setattr(memo, "_memories", WeakKeyDictionary())
        with monkeypatch.context() as patch:
            patch.setenv(WORKER, worker)
            patch.setattr(model, "forward", lambda *a, **k: (runs.append(k.get("start_at_layer")), forward(*a, **k))[1])
            elsewhere = replace(scoring, location=replace(scoring.location, root=tmp_path / root))
            scored, failures, _ = score_all([elsewhere], two_saes, lambda: model, "cpu", force=False)
        assert failures == []
        return [result["eval_result_metrics"] for _, result in scored], sum(run is not None for run in runs)

    alone, runs = score("alone", "")
    # one batch: each SAE's own run, the ablated run and the clean run
    assert runs == 2 + 1 + 1
    assert score("one", "1") == (alone, runs)
    assert score("two", "2") == (alone, runs + 1)  # of whom each takes one SAE


def test_an_error_releases_what_a_worker_has_claimed(scoring, six_saes, model, monkeypatch):
    claims = []

    def fail(self, *_):
        claims.extend(scoring.location.root.rglob("*.claim"))
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Core, "evaluate", fail)
    monkeypatch.setenv(WORKER, "1")
    with pytest.raises(RuntimeError, match="out of luck"):
        score_all([scoring], six_saes, lambda: model, "cpu", force=False)
    assert len(claims) == 6
    assert not list(scoring.location.root.rglob("*.claim"))


def test_what_the_model_cannot_do_is_known_to_all_processes_of_a_launch(scoring, two_saes, model, monkeypatch):
    scoring = replace(scoring, is_optional=True)
    tries = []

    def cannot(self, *_):
        tries.append(0)
        raise CannotDo("knows no letters")

    monkeypatch.setattr(Core, "evaluate", cannot)
    requests = [SAERequest("temporal", sae.plan) for sae in two_saes]
    cells = cells_of([scoring], [requests])
    assert sum(cell.is_left for cell in cells()) == 2
    monkeypatch.setenv(LAUNCH, str(scoring.location.root.parent / "launch"))
    for workers in ("1", "1", ""):  # two workers, and the command that waits for them
        monkeypatch.setenv(WORKER, workers)
        outcome = score_all([scoring], two_saes, lambda: model, "cpu", force=False, keep_going=True)
        assert outcome == ([], [], {"core": "knows no letters"})
    assert tries == [0]
    assert not any(cell.is_left for cell in cells())


def refuse_temporal(self, plan, settings) -> str:
    return "is not for N2G" if plan.name == "temporal" else ""


@pytest.mark.parametrize("command", ["suite", "evaluation"])
def test_an_unsupported_variant_is_refused_before_any_training(
    target, tmp_path, model_folder, text_file, monkeypatch, command
):
    monkeypatch.setattr(N2G, "why_unsupported", refuse_temporal)
    monkeypatch.setattr(find_sae, "train_missing", lambda *_: pytest.fail("trained"))
    argv = ["--sae", "random", "--sae", "temporal", *where(target, model_folder, text_file, tmp_path / "trained")]
    argv += ["--output", str(tmp_path / "out")]
    begin = {"suite": ["suite", "--evals", "core,n2g"], "evaluation": ["n2g"]}
    with pytest.raises(UsageError, match=r"temporal.*: is not for N2G"):
        main([*begin[command], *argv])
    assert not list(tmp_path.iterdir())


def test_of_a_group_an_evaluation_that_does_not_support_an_sae_is_left_out(
    scoring, target, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(N2G, "why_unsupported", refuse_temporal)
    n2g = replace(prepare_scoring("n2g", target, {}, tmp_path, []), is_optional=True)
    requests = [SAERequest("temporal", make_plan("temporal", target, tiny("temporal"), tmp_path))]
    left_out = {}
    assert leave_out_unsupported([scoring, n2g], requests, left_out) == [scoring]
    assert list(left_out) == ["n2g"]
    assert "left out: n2g: temporal" in capsys.readouterr().out
    with pytest.raises(UsageError, match="none of the evaluations supports all of the SAEs"):
        leave_out_unsupported([n2g], requests, {})


def test_a_folder_is_not_asked_whether_it_is_supported(scoring):
    check_supported([scoring], [SAERequest("a/folder")])


def test_values_that_no_metric_declares_are_an_error(target, model, monkeypatch):
    evaluator, sae = load_evaluator("n2g"), identity(target)
    settings = evaluator.settings_class()
    metrics = make_output(evaluator, settings, {"firing.f1": float("nan")}, sae, target)["eval_result_metrics"]
    assert metrics["firing"]["f1"] is None
    with pytest.raises(KeyError, match=r"n2g declares no metric firing\.f2"):
        make_output(evaluator, settings, {"firing.f1": 1.0, "firing.f2": 0.5}, sae, target)
    monkeypatch.setattr(N2G, "evaluate", lambda *_: Evaluation({"all.surprise": 1.0}))
    with pytest.raises(KeyError, match=r"all\.surprise"):
        evaluate("n2g", sae, target, model)


SMALL_N2G = {"n_contexts": 16, "context_size": 32, "n_latents": 3, "n_min": 2, "examples": 2, "longest": 4}


def test_saebench_s_scripts_can_call_ours(target, model, tmp_path, capsys):
    sae, output = identity(target), tmp_path / "eval_results"
    sae.W_dec.data *= 2
    weights = sae.W_dec.detach().clone()
    run_eval = make_run_eval("n2g", target)
    results = run_eval(SMALL_N2G, [("me/whole", sae), ("none", zero(target))], "cpu", str(output))
    assert list(results) == ["me/whole_custom_sae", "none_custom_sae"]
    assert torch.equal(sae.W_dec, weights), "the caller's SAE stays as it is"
    files = {path.name: path for path in output.iterdir()}
    assert set(files) == {"me_whole_custom_sae_eval_results.json", "none_custom_sae_eval_results.json"}
    for result in results.values():
        TypeAdapter(output_class(load_evaluator("n2g"))).validate_python(result)
    written = json.loads(files["me_whole_custom_sae_eval_results.json"].read_text())
    assert written == results["me/whole_custom_sae"]
    assert (written["sae_lens_release_id"], written["sae_lens_id"]) == ("me/whole", "custom_sae")
    unstructured = written["eval_result_unstructured"]
    assert unstructured["trained"] is True
    assert unstructured["provenance"]["weight_hash"] is None
    assert results["none_custom_sae"]["eval_result_unstructured"]["trained"] is False

    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert run_eval(N2GSettings(**SMALL_N2G), [("none", zero(target))], "cpu", str(output)) == {}
    assert "Skipping none_custom_sae as results already exist" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    again = run_eval(N2GSettings(**SMALL_N2G), [("none", zero(target))], "cpu", str(output), force_rerun=True)
    assert again["none_custom_sae"]["eval_result_metrics"] == results["none_custom_sae"]["eval_result_metrics"]


def test_the_file_of_a_result_is_the_one_that_saebench_writes():
    from sae_bench.sae_bench_utils.general_utils import get_results_filepath

    from eval_runners.harness.saebench_api import result_path

    assert str(result_path("out", "me/saes", "layer/1")) == get_results_filepath("out", "me/saes", "layer/1")


def test_saebench_s_own_evaluation_has_the_same_numbers_by_either_way(target, model, tmp_path):
    run_eval = make_run_eval("core", target)
    results = run_eval(CoreSettings(**CORE), [("whole", identity(target))], "cpu", str(tmp_path))
    expected = evaluate("core", identity(target), target, model, **asdict(CoreSettings(**CORE)))
    assert results["whole_custom_sae"]["eval_result_metrics"] == expected.metrics


def test_what_does_not_fit_is_refused_by_run_eval_too(target, tmp_path):
    elsewhere = identity(target)
    elsewhere.cfg.metadata.hook_name = "blocks.0.hook_resid_pre"
    with pytest.raises(UsageError, match=r"x was trained at blocks\.0\.hook_resid_pre"):
        make_run_eval("core", target)(CORE, [("x", elsewhere)], "cpu", str(tmp_path))
    with pytest.raises(UsageError, match="did you mean 'core'"):
        make_run_eval("corr", target)(CORE, [], "cpu", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "option"), [("autointerp", "llm_context_size"), ("tpp", "context_length"), ("mdl", "context_size")]
)
def test_a_context_longer_than_the_model_is_refused_before_anything_else(name, option, target, tmp_path, tasks_file):
    given = {option: 100_000}
    if name == "tpp":
        given |= {"dataset_names": (register_task_file(str(tasks_file)),), "train_set_size": 40, "test_set_size": 20}
    long = prepare_scoring(name, target, given, tmp_path, [])
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} 100000 exceeds the model's 128 positions"):
        check_supported([long], [])
