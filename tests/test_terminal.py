"""Tables on terminals of any width and encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys

from eval_runners.contract.registry import load_evaluator
from eval_runners.leaderboard.terminal import print_metrics, split_columns
from sae_variants.common import console


def test_columns_are_split_where_they_do_not_fit():
    assert split_columns([10, 10, 10], 1000) == [range(0, 3)]
    assert split_columns([10, 10, 10], 26) == [range(0, 2), range(2, 3)]
    assert split_columns([10, 10], 5) == [range(0, 1), range(1, 2)]


def result(number: float) -> dict:
    metrics = {"sparsity": {"l0": number}}
    return {"eval_result_metrics": metrics, "eval_result_unstructured": {"trained": True}}


def test_many_saes_stay_readable(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    labels = [f"trainer_{number}-abc" for number in range(14)]
    print_metrics(load_evaluator("core").metrics, {label: [result(20.0 + i)] for i, label in enumerate(labels)})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for label in labels:
        assert sum(label in line for line in lines) == 2  # as a column, and as a row of the last table
    numbers = [cell.strip() for line in lines for cell in line.split("│")]
    assert all(str(20 + number) in numbers for number in range(14))
    last = [line for line in lines if "trainer_3-abc" in line][-1]
    assert [cell.strip() for cell in last.strip("│").split("│")] == ["trainer_3-abc", "23"]


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch):
    for encoding in ("ascii", "cp1252"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        console.replace_unprintable()
        print("α 模型 ±")
        sys.stdout.flush()
        assert raw.getvalue().decode(encoding).startswith("?")


def test_a_command_prints_in_ascii():
    done = subprocess.run(
        [sys.executable, "-m", "sae_variants", "list"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
