"""The rules of the house, by reading imports and by running the commands that the README shows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VARIANTS, RUNNERS = ROOT / "sae_variants", ROOT / "eval_runners"
MACHINERY_AND_CONTENT = sorted([*VARIANTS.rglob("*.py"), *RUNNERS.rglob("*.py")])


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported(path: Path, package: str, **kwargs) -> set[str]:
    return {name for name in imports(path, **kwargs) if name == package or name.startswith(package + ".")}


@pytest.mark.parametrize("path", sorted(VARIANTS.rglob("*.py")), ids=lambda p: p.name)
def test_variants_know_nothing_of_what_is_on_their_right(path):
    for package in ("eval_runners", "sae_bench"):
        assert not imported(path, package)


@pytest.mark.parametrize("path", sorted(p for p in RUNNERS.glob("*.py") if p.stem[0] != "_"), ids=lambda p: p.name)
def test_an_evaluator_imports_machinery_only(path):
    ours = imported(path, "eval_runners") | imported(path, "sae_variants")
    content = {p.stem for p in RUNNERS.glob("*.py")} | {p.stem for p in VARIANTS.glob("*.py")}
    for name in ours - {"eval_runners", "sae_variants"}:
        assert name.split(".")[1] not in content, name


def test_only_run_writes_results():
    for path in RUNNERS.glob("*.py"):
        if path.stem not in ("evaluate", "leaderboard"):
            assert "results/runs" not in path.read_text().replace('"""', ""), path.name


def test_no_pickle():
    for path in MACHINERY_AND_CONTENT:
        assert not imported(path, "pickle")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), path.name


@pytest.mark.parametrize("path", MACHINERY_AND_CONTENT, ids=lambda p: p.name)
def test_a_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= 331
    if path.read_text():
        assert ast.get_docstring(ast.parse(path.read_text())), "a file opens with its thesis"


COMMANDS = [
    ["-m", "eval_runners", "list"],
    ["-m", "eval_runners", "--help"],
    ["-m", "eval_runners.core", "--help"],
    ["-m", "sae_variants", "list"],
    ["-m", "sae_variants", "train", "--help"],
    ["-c", "import eval_runners, sae_variants"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(words):
    if words[0] == "-m":
        script = (
            f"import runpy, sys; sys.argv = {words[1:]!r}\n"
            f"try: runpy.run_module({words[1]!r}, run_name='__main__', alter_sys=True)\n"
            "except SystemExit: pass\n"
        )
    else:
        script = words[1] + "\nimport sys\n"
    script += "heavy = {'torch', 'sae_lens', 'sae_bench', 'transformers', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_names_everything():
    done = subprocess.run([sys.executable, "-m", "eval_runners", "list"], capture_output=True, text=True, check=True)
    for name in ("core", "temporal", "random", "sandbox", "gemma-2-2b-l12", "pythia-160m-l8"):
        assert f"  {name} " in done.stdout


def test_the_ci_runs_exactly_the_readme_s_test_command():
    readme = [line.partition("#")[0].strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_a_stranger_s_variant_is_one_new_file(tmp_path):
    """Copies the package, drops a file beside the others, and finds it everywhere, in a fresh process."""
    import shutil

    shutil.copytree(VARIANTS, tmp_path / "sae_variants")
    new = (VARIANTS / "random.py").read_text()
    new = new.replace("random_baseline", "stranger_arch").replace("random:", "stranger:")
    (tmp_path / "sae_variants" / "stranger.py").write_text(new)
    script = (
        f"import sae_variants; assert sae_variants.__file__.startswith({str(tmp_path)!r})\n"
        "assert 'stranger' in sae_variants.names(); sae_variants.build('stranger', d_in=4, d_sae=8, k=2)\n"
        "from sae_lens.registry import get_sae_training_class; get_sae_training_class('stranger_arch')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_wheel_holds_the_two_packages_and_their_data(tmp_path):
    import zipfile

    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(words, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sae_variants", "eval_runners"}
    for name in ("sandbox/model.safetensors", "sandbox/tokenizer.json", "sandbox/config.json", "targets/sandbox.toml"):
        assert f"sae_variants/{name}" in names
    assert {"eval_runners/views/templates/report.html", "eval_runners/views/templates/card.md"} <= set(names)
