"""The contract, for every evaluation that discovery finds."""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

import eval_runners
from eval_runners import _contract
from sae_variants import _cli, _targets


@pytest.fixture(params=_contract.names())
def name(request) -> str:
    return request.param


@pytest.fixture
def module(name):
    return import_module(f"eval_runners.{name}")


def test_its_docstring_begins_with_its_name(name):
    doc = ast.get_docstring(ast.parse((Path(eval_runners.__file__).parent / f"{name}.py").read_text()))
    assert doc.startswith(f"{name}: ")


def test_every_setting_is_documented_and_has_a_default(module):
    assert is_dataclass(module.EvalConfig)
    module.EvalConfig()
    docs = _cli.field_docs(module.EvalConfig)
    assert {f.name for f in fields(module.EvalConfig)} == set(docs)


def test_every_metric_has_a_name_a_title_and_a_direction(module):
    names = [metric.name for metric in module.METRICS]
    assert len(names) == len(set(names)) > 0
    for metric in module.METRICS:
        assert metric.title
        assert metric.better in _contract.ARROWS


def test_targets_set_only_settings_that_exist(name, module):
    for target_name in _targets.names():
        module.EvalConfig(**_targets.load(target_name).evaluations.get(name, {}))
