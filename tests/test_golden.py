"""What earlier versions wrote stays valid: trained SAEs are found again, results are reused and keep their boards."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
TRAINED_WITH = ["--train.d-sae", "8", "--train.k", "2", "--train.training-tokens", "65536"]
TRAINED_WITH += ["--train.batch-tokens", "4096", "--train.buffer-contexts", "256"]
TRAINED_WITH += ["--train.dead-after-tokens", "131072"]
SCORED_WITH = ["--n-eval-reconstruction-batches", "1", "--n-eval-sparsity-variance-batches", "2"]
SCORED_WITH += ["--batch-size-prompts", "4", "--context-size", "64"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("temporal", ["--train.slow", "first", "--train.slow-fraction", "0.1", "--train.refine", "0"]),
        pytest.param(
            "hierarchical",
            [
                *(
                    "--train.expansion",
                    "2",
                    "--train.refine",
                    "0",
                    "--train.separate",
                    "false",
                    "--train.start",
                    "copies",
                ),
                *("--train.cosine-coefficient", "3", "--train.group-coefficient", "0.1"),
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_trained_sae_and_its_result_are_found_again(name, more, tmp_path):
    shutil.copytree(GOLDEN / "trained", tmp_path / "trained")
    shutil.copytree(GOLDEN / "runs", tmp_path / "runs")
    before = contents(tmp_path)
    folders = ["--trained", str(tmp_path / "trained"), "--output", str(tmp_path / "runs")]
    words = ["-m", "eval_runners.core", "--sae", name, *folders, *TRAINED_WITH, *more, *SCORED_WITH]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert "reused: same weights, same settings" in done.stdout, done.stdout + done.stderr
    assert "training it first" not in done.stdout
    assert contents(tmp_path) == before


def contents(folder):
    """All files, without the name of the SAE in results: it says what differs from today's defaults."""
    files = {path: path.read_text("latin1") for path in folder.rglob("*") if path.is_file()}
    return {path: re.sub(r'"sae_lens_id": .*', "", text) for path, text in files.items()}


def test_every_published_result_stands_on_the_board_where_it_stood(tmp_path):
    words = ["leaderboard", "--results", "results/published", "--results", "results/baselines"]
    command = [sys.executable, "-m", "eval_runners", *words, "--json", str(tmp_path / "boards.json")]
    subprocess.run(command, check=True, cwd=GOLDEN.parent.parent)
    found = []
    for board in json.loads((tmp_path / "boards.json").read_text()):
        rows = []
        for row in board["rows"]:
            known = {name: number["value"] for name, number in row["metrics"].items() if number["value"] is not None}
            digest = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=4).hexdigest()
            rows.append([row["sae"], row["d_sae"], row["training_tokens"], len(row["seeds"]), len(known), digest])
        of = {name: board["rows"][0][name] for name in ("model", "hook_name")}
        found.append({**of, "evaluations": sorted(board["conditions"]), "rows": sorted(rows, key=str)})
    assert found == json.loads((GOLDEN / "boards.json").read_text())
