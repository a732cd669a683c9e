"""A stranger's package with one variant and one evaluation: nothing here is changed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from conftest import tiny

from sae_variants.common.errors import UsageError
from sae_variants.registry import plugins
from sae_variants.registry.variants import import_variants, variant_modules, variant_summaries

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What pip leaves of the package, in a folder of its own."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, root / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(root / "site"), str(root / "source")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return root / "site"


def run(installed, *words):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env=env, timeout=300, check=False
    )


def test_it_is_listed(installed):
    said = run(installed, "eval_runners", "list").stdout
    assert "  firing                       How many latents fire on a token of held-out text?" in said
    assert "  gentle                       TopK with k latents per token" in said


def test_the_readme_shows_it():
    readme = (PLUGIN.parent.parent / "README.md").read_text()
    for path in PLUGIN.rglob("*.py"):
        code = path.read_text()
        assert code in readme, path.name
        assert sum(bool(line.strip()) for line in code.splitlines()) < 20


@pytest.mark.slow
def test_it_trains_is_scored_and_stands_on_the_leaderboard(installed, tmp_path, model_folder, text_file):
    where = ["--model", str(model_folder), "--hook-name", "blocks.0.hook_resid_post", "--dataset", str(text_file)]
    train = [f"--train.{key}={value}" for key, value in tiny("stock:topk").items()]
    folders = ["--trained", str(tmp_path / "trained"), "--output", str(tmp_path / "runs")]
    done = run(installed, "eval_runners", "firing", "--sae", "gentle", *where, *train, *folders)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "runs").rglob("*.json")
    result = json.loads(file.read_text())
    assert result["eval_type_id"] == "firing"
    assert result["eval_result_metrics"]["all"]["l0"] == pytest.approx(tiny("stock:topk")["k"])
    said = run(installed, "eval_runners", "leaderboard", "--results", str(tmp_path / "runs"))
    assert "gentle" in said.stdout
    assert "firing" in said.stdout
    wrong = run(installed, "eval_runners", "firing", "--sae", "gentle", "--n-contexts", "0", *where, *train, *folders)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --n-contexts must be at least 1, not 0\n"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (("temporal", "theirs.temporal"), "names 'temporal' in sae_variants, which is sae_variants.temporal already"),
        (("one", "theirs.other"), "names 'one' in sae_variants, but its module is theirs.other"),
    ],
)
def test_a_name_that_is_taken_or_is_not_the_modules(monkeypatch, entry, says):
    monkeypatch.setattr(plugins, "find_entry_points", lambda group: [EntryPoint(*entry, group)])
    with pytest.raises(UsageError, match=says):
        variant_modules()


def test_a_plugin_that_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(plugins, "find_entry_points", lambda group: [EntryPoint("gone", "no_such_package.gone", group)])
    with pytest.raises(UsageError, match=r"the plugin no_such_package\.gone cannot be imported"):
        import_variants()
    assert variant_summaries()["gone"] == "its package cannot be imported"
