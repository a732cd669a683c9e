"""The rules of the house, by reading imports and by running the commands that the README shows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VARIANTS, RUNNERS = ROOT / "sae_variants", ROOT / "eval_runners"
SOURCES = sorted([*VARIANTS.rglob("*.py"), *RUNNERS.rglob("*.py")])


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


RANKS = {
    "sae_variants": (
        ("common",),
        ("ops", "sandbox", "synthetic"),
        ("registry", "language_model"),
        ("refinement",),
        ("formats",),
        ("two_level",),
        ("gated",),
        ("training", "cli"),
        ("launch", "sharded"),
        ("variants",),  # modules at the package's root
        ("commands",),
    ),
    "eval_runners": (
        ("contract",),
        ("store",),
        ("data", "leaderboard"),
        ("measures", "saebench"),
        ("harness", "views"),
        ("commands",),
        ("evaluators",),  # modules at the package's root
    ),
}
CONTENT = {"sae_variants": "variants", "eval_runners": "evaluators"}
RANK_OF = {
    (package, room): (number, rank)
    for number, package in enumerate(RANKS)
    for rank, rooms in enumerate(RANKS[package])
    for room in rooms
}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}
MOST_ARROWS = 129
"""Fewer than half of the 259 arrows between boxes that the flat layout had."""


def room_of(module: str) -> tuple[str, str] | None:
    """Package and room of a module; None for a package itself and its __main__."""
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    if not first or first.startswith("__"):
        return None
    return (package, first) if (package, first) in RANK_OF else (package, CONTENT[package])


def arrows() -> set[tuple[str, str]]:
    """(module, module that it imports) of both packages."""
    found = set()
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in imports(path):
            if name in MODULES:
                found.add((module, name))
    return found


def test_a_module_imports_its_room_or_a_lower_rank_and_nobody_imports_content():
    wrong = []
    for module, imported_module in sorted(arrows()):
        here, there = room_of(module), room_of(imported_module)
        if here is None or there is None:
            continue
        is_content = there[1] in CONTENT.values()
        if is_content or (here != there and RANK_OF[there] >= RANK_OF[here]):
            wrong.append(f"{module} imports {imported_module}")
    assert not wrong


def test_few_arrows_join_rooms():
    rooms = {(room_of(a), room_of(b)) for a, b in arrows()}
    assert len({(a, b) for a, b in rooms if a and b and a != b}) <= MOST_ARROWS


def test_there_is_no_module_with_an_underscore_and_every_folder_is_a_room():
    for package, levels in RANKS.items():
        rooms = {room for level in levels for room in level} - set(CONTENT.values())
        folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir()} - {"__pycache__", "targets"}
        assert folders == rooms
    assert not [module for module in MODULES for part in module.split(".") if part.startswith("_") and part[:2] != "__"]


@pytest.mark.parametrize("path", sorted(VARIANTS.rglob("*.py")), ids=lambda p: p.name)
def test_variants_know_nothing_of_what_is_on_their_right(path):
    for package in ("eval_runners", "sae_bench"):
        assert not imported(path, package)


def test_only_the_store_writes_results_and_only_the_harness_asks_it_to():
    """By calls, not by strings: `write_result` is called where results are made, and nothing else writes JSON trees."""
    callers = set()
    for path in RUNNERS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "write_result":
                callers.add(str(path.relative_to(RUNNERS)))
    assert callers == {"harness/score.py", "harness/saebench_api.py", "commands/human_study/score.py"}
    for path in sorted(RUNNERS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            assert name not in ("write_text", "write_bytes", "open", "write_atomically", "write_result"), path.name


def test_no_pickle():
    for path in SOURCES:
        assert not imported(path, "pickle")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), path.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_a_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= 250
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


REFUSED = [
    "variants train tpok",
    "variants train tree foo",
    "variants train stock:abstopk",
    "variants train topk --target nowhere",
    "variants train topk --d-sae 0",
    "variants train topk --seeds 0,-1",
    "variants train topk --grid d_sae=64,0",
    "variants train topk --grid k=1,2 --k 3",
    "variants train topk --train.kk 3",
    "variants train topk --shards 2",
    "variants options tpok",
    "variants convert nowhere/x new",
    "runners core --sae tpok",
    "runners core --sae nowhere/x",
    "runners core --sae topk --target nowhere",
    "runners core --sae topk --train.d-sae 0",
    "runners core --sae topk --context-size 0",
    "runners core --sae topk --baseline nowhere",
    "runners absorption --sae tpok",
    "runners suite --evals cor --sae topk",
    "runners suite --sae topk --seeds x",
    "runners suite --sae topk --l0 x",
    "runners suite --sae topk --train.d-sae 0",
    "runners reliability --sae tpok",
    "runners leaderboard --results nowhere",
    "runners report --results nowhere",
    "runners case-study --sae tpok",
    "runners human-study make --sae tpok",
    "runners export neuronpedia --sae tpok new",
]
"""Commands that no variant's class is needed to refuse."""


def test_what_needs_no_variant_is_refused_before_anything_heavy_is_imported(tmp_path):
    script = f"""
import sys
from eval_runners.__main__ import main as runners
from sae_variants.__main__ import main as variants
from sae_variants.common.console import run_command
for words in {[row.split() for row in REFUSED]!r}:
    try: run_command(lambda: globals()[words[0]](words[1:]))
    except SystemExit as ended: assert ended.code == 2, words
    heavy = {{'torch', 'sae_lens', 'sae_bench', 'transformers', 'datasets', 'pandas'}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["error:"] * len(REFUSED), done.stderr


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("sae_variants.two_level.saved", "sae_variants.hierarchical")
    ],
)
def test_a_module_that_imports_sae_lens_may_be_imported_first(module):
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def test_list_names_everything():
    done = subprocess.run([sys.executable, "-m", "eval_runners", "list"], capture_output=True, text=True, check=True)
    for name in ("core", "temporal", "random", "sandbox", "gemma-2-2b-l12", "pythia-160m-l8"):
        assert f"  {name} " in done.stdout


def test_the_ci_runs_exactly_the_readme_s_test_command():
    readme = [line.partition("#")[0].strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.slow
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
