"""The log of a training: a line a report, without gaps over kills, and other libraries only when requested."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from conftest import tiny
from test_train import killed_at

import sae_variants
from eval_runners.contract.located import LocatedSAE
from eval_runners.store.logs import read_logs
from sae_variants.common.errors import UsageError
from sae_variants.training.log import LogSettings, heldout_measure
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans


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


def test_nothing_is_written_or_sent_without_being_requested(target, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **options: pytest.fail("contacted"))
    plan = make_plan("topk", target, tiny("topk") | {"training_tokens": 512}, tmp_path)
    train_plans([plan])
    assert not (plan.folder / "log.jsonl").exists()


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_library_gets_the_same_numbers(target, tmp_path, monkeypatch, library):
    sent, ended = [], []

    def init(**options):
        return SimpleNamespace(log=lambda numbers, step: sent.append((step, numbers)), finish=lambda: ended.append(1))

    monkeypatch.setitem(sys.modules, library, SimpleNamespace(init=init, __spec__=SimpleNamespace(name=library)))
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
