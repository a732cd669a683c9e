"""The log of a training: a line a report, without gaps over kills, and other libraries only when requested."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from test_train import Killed, killed_at

import sae_variants
from eval_runners.contract.located import LocatedSAE
from eval_runners.store.logs import read_logs
from sae_variants.commands import train as train_command
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import hook_activations
from sae_variants.training.log import LogSettings, TrainingLog, heldout_measure
from sae_variants.training.plan import make_plan
from sae_variants.training.train import TrainingFailed, train_plans


def read(plan):
    return [json.loads(line) for line in (plan.folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["temporal", "topk", "hierarchical"])
def test_a_line_a_report(target, tmp_path, model, name):
    plan = make_plan(name, target, tiny(name), tmp_path)
    train_plans([plan], log=LogSettings(heldout_every=256 * 16))
    lines = read(plan)
    assert [line["step"] for line in lines] == [1, 11, 21, 31, 32]
    assert [line["tokens"] for line in lines] == [256, 2816, 5376, 7936, 8192]
    for line in lines:
        assert {"loss", "l0", "explained_variance", "dead", "learning_rate", "tokens_per_second"} <= line.keys()
    assert ["heldout_l0" in line for line in lines] == [False, False, True, False, True]
    last = heldout_measure(plan, model)(sae_variants.load(plan.folder))
    assert {f"heldout_{key}": value for key, value in last.items()}.items() <= lines[-1].items()
    assert last["l0"] == pytest.approx(4, rel=0.1)
    assert not list(tmp_path.rglob("*.log.jsonl"))
    folders = [plan.folder, *(plan.folder / part for part in ("lower",) if name == "hierarchical")]
    assert read_logs(tmp_path) == {LocatedSAE(name, folder).weight_hash: lines for folder in folders}


def test_a_log_has_no_gap_over_kills(target, tmp_path, monkeypatch):
    plan, whole = (make_plan("temporal", target, tiny("temporal"), tmp_path / root) for root in ("broken", "whole"))
    train_plans([whole], log=LogSettings())
    log = LogSettings()
    train = train_plans
    monkeypatch.setattr(
        "test_train.train_plans",
        lambda plans, checkpoint_steps: train(plans, checkpoint_steps=checkpoint_steps, log=log),
    )
    killed_at(monkeypatch, 26, [plan], checkpoint_steps=15)
    path = plan.folder.with_name(f"{plan.folder.name}.log.jsonl")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 11, 21]
    path.write_text(path.read_text() + '{"step": 2')  # killed while a line was written
    train([plan], checkpoint_steps=15, log=log)
    assert [line["step"] for line in read(plan)] == [1, 11, 21, 31, 32]
    ours, theirs = (
        [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read(p)] for p in (plan, whole)
    )
    assert ours == theirs


def killed_log(target, root, monkeypatch, log):
    """The plan of a training that was killed at step 26, with a checkpoint at step 15, and where its log is."""
    plan = make_plan("temporal", target, tiny("temporal"), root)
    with monkeypatch.context() as patched:
        patched.setattr("test_train.train_plans", partial(train_plans, log=log))
        killed_at(patched, 26, [plan], checkpoint_steps=15)
    return plan, plan.folder.with_name(f"{plan.folder.name}.log.jsonl")


def test_a_log_that_was_begun_goes_on_whoever_resumes(target, tmp_path, monkeypatch, capsys):
    plan, path = killed_log(target, tmp_path, monkeypatch, LogSettings())
    train_plans([plan], checkpoint_steps=15)
    assert [line["step"] for line in read(plan)] == [1, 11, 21, 31, 32]
    assert not path.exists()
    train_plans([plan], snapshots=(0.5,))  # it is trained again, and keeps its log
    assert [line["step"] for line in read(plan)] == [1, 11, 21, 31, 32]
    assert "the log of" not in capsys.readouterr().err


def test_a_log_that_cannot_be_complete_says_so(target, tmp_path, monkeypatch, capsys):
    plan, _ = killed_log(target, tmp_path, monkeypatch, None)
    train_plans([plan], checkpoint_steps=15, log=LogSettings())
    assert [line["step"] for line in read(plan)] == [21, 31, 32]
    assert "lacks steps 1 to 15, which were trained without --log; --force" in capsys.readouterr().err
    train_plans([plan], force=True, log=LogSettings())
    assert [line["step"] for line in read(plan)] == [1, 11, 21, 31, 32]
    assert "lacks" not in capsys.readouterr().err


def test_a_kill_while_the_trained_sae_is_written_loses_no_log(target, tmp_path, monkeypatch):
    plan, path = make_plan("temporal", target, tiny("temporal"), tmp_path), None

    def dies(log, folder):
        nonlocal path
        copy_to(log, folder)
        path = log.path
        raise Killed

    copy_to = TrainingLog.copy_to
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLog, "copy_to", dies)
        with pytest.raises(Killed):
            train_plans([plan], checkpoint_steps=15, log=LogSettings())
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 11, 21, 31, 32]
    train_plans([plan])
    assert [line["step"] for line in read(plan)] == [1, 11, 21, 31, 32]


def test_the_log_of_a_training_that_diverges_is_named(target, tmp_path):
    plan = make_plan("stock:standard", target, tiny("stock:standard") | {"learning_rate": 1e30}, tmp_path)
    path = plan.folder.with_name(f"{plan.folder.name}.log.jsonl")
    with pytest.raises(TrainingFailed, match=f"diverged at step .*; its log until then is {path}$"):
        train_plans([plan], log=LogSettings())
    assert json.loads(path.read_text().splitlines()[0])["step"] == 1


def test_a_trained_sae_without_a_log_is_said_to_have_none(model_folder, text_file, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "trained")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in tiny("temporal").items()]
    place = ["--model", str(model_folder), "--hook-name", "blocks.1.hook_resid_post", "--dataset", str(text_file)]
    words = ["temporal", *place, *options, "--trained", str(tmp_path / "trained")]
    assert train_command.main(words) == 0
    assert capsys.readouterr().out.endswith(" (was trained)\n")
    assert train_command.main([*words, "--log"]) == 0
    assert capsys.readouterr().out.endswith(" (was trained without a log: --force trains it again with one)\n")
    assert train_command.main([*words, "--log", "--force"]) == 0
    assert train_command.main([*words, "--log"]) == 0
    assert capsys.readouterr().out.endswith(" (was trained)\n")


def test_nothing_is_written_or_sent_without_being_requested(target, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **options: pytest.fail("contacted"))
    plan = make_plan("topk", target, tiny("topk") | {"training_tokens": 512}, tmp_path)
    train_plans([plan])
    assert not (plan.folder / "log.jsonl").exists()


def fake_library(monkeypatch, library, init, mode="disabled", login=None):
    setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))  # noqa: E731
    fake = SimpleNamespace(init=init, setup=setup, login=login, __spec__=SimpleNamespace(name=library))
    monkeypatch.setitem(sys.modules, library, fake)


def test_wandb_without_a_key_is_one_line_before_any_work(monkeypatch):
    def login(**options):
        if answer := answers.pop():
            raise ValueError(answer)
        return False

    answers = ["WANDB_API_KEY invalid: it is short.", ""]
    fake_library(monkeypatch, "wandb", None, "online", login)
    with pytest.raises(UsageError, match=r"it has no API key; run `wandb login`, set WANDB_MODE=offline, or"):
        LogSettings("wandb")
    with pytest.raises(UsageError, match="WANDB_API_KEY invalid: it is short; run"):
        LogSettings("wandb")
    fake_library(monkeypatch, "wandb", None, "offline", login)
    assert LogSettings("wandb").library == "wandb"


def test_an_error_of_a_library_is_one_line(target, tmp_path, monkeypatch, capsys):
    def fails(*args, **options):
        raise RuntimeError("no\nconnection")

    plan = make_plan("topk", target, tiny("topk"), tmp_path)
    fake_library(monkeypatch, "trackio", fails)
    with pytest.raises(UsageError, match="--log trackio cannot be used: no connection; give --log alone for a file"):
        train_plans([plan], log=LogSettings("trackio"))
    assert not list(tmp_path.rglob("*.jsonl"))
    fake_library(monkeypatch, "trackio", lambda **options: SimpleNamespace(log=fails, finish=fails))
    train_plans([plan], log=LogSettings("trackio"))
    assert [line["step"] for line in read(plan)] == [1, 11, 21, 31, 32]
    assert capsys.readouterr().err.count("--log trackio failed at step 1, the log of topk") == 1


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_library_gets_the_same_numbers(target, tmp_path, monkeypatch, library):
    sent, ended = [], []

    def init(**options):
        return SimpleNamespace(log=lambda numbers, step: sent.append((step, numbers)), finish=lambda: ended.append(1))

    fake_library(monkeypatch, library, init)
    plan = make_plan("topk", target, tiny("topk"), tmp_path)
    train_plans([plan], log=LogSettings(library))
    assert [step for step, _ in sent] == [1, 11, 21, 31, 32]
    assert [numbers["loss"] for _, numbers in sent] == [line["loss"] for line in read(plan)]
    assert "heldout_ce_score" in sent[-1][1] or read(plan)[-1]["heldout_ce_score"] is None
    assert ended == [1]


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--log trackio needs a package .*sae-variants\[trackio\]"):
        LogSettings("trackio")


def test_no_two_threads_run_a_model_with_hooks_at_once(target, tmp_path, model, monkeypatch):
    """Hooks belong to the model: those of the stream's thread would fire in a measurement of the log."""
    plan, running, together = make_plan("topk", target, tiny("topk"), tmp_path), threading.Lock(), []
    measure, activations = heldout_measure(plan, model), hook_activations(model, target.hook_name)

    def watched(run):
        def watch(*args, **kwargs):
            together.append(not running.acquire(blocking=False))
            time.sleep(0.05)
            output = run(*args, **kwargs)
            running.release()
            return output

        return watch

    for name in ("run_with_cache", "run_with_hooks"):
        monkeypatch.setattr(model, name, watched(getattr(model, name)))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(activations, torch.zeros(300, 16, dtype=torch.long))
        measure(SimpleNamespace(encode=torch.relu, decode=torch.relu))
        reading.result()
    assert len(together) > 4
    assert not any(together)
