"""Publishing: what is written, what is refused, and the way to a server that speaks the Hub's API and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny
from hub import TOKEN, Hub, running_hub
from huggingface_hub import ModelCard
from test_leaderboard import made

import sae_variants
from eval_runners.__main__ import main
from eval_runners.commands import evaluate as eval_command
from eval_runners.leaderboard.rows import Row
from eval_runners.views.card import CardEntry, render_card
from sae_variants.common.errors import UsageError

CORE = [
    "--batch-size-prompts",
    "4",
    "--n-eval-reconstruction-batches",
    "1",
    "--n-eval-sparsity-variance-batches",
    "2",
    "--context-size",
    "32",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder, text_file):
    """A folder with an SAE that is trained and scored, and the words that find both."""
    root = tmp_path_factory.mktemp("published")
    where = ["--model", str(model_folder), "--hook-name", "blocks.0.hook_resid_post", "--dataset", str(text_file)]
    train = [f"--train.{key}={value}" for key, value in {**TINY, **tiny("temporal"), "refine": 0}.items()]
    words = [*where, "--trained", str(root / "trained"), "--sae", "temporal", *train]
    assert eval_command.main("core", [*words, *CORE, "--output", str(root / "runs")]) in (0, 1)
    return root, words


def publish(place, *more: str, repo: str = "me/saes", force: bool = True) -> int:
    root, words = place
    forced = ["--force"] if force else []
    return main(["publish", *words, "--results", str(root / "runs"), "--repo", repo, *forced, *more])


def test_a_dry_run_writes_sae_lens_layout_results_and_a_card(place, tmp_path, capsys):
    assert publish(place, "--dry-run", str(tmp_path / "dry")) == 0
    (folder,) = (path for path in (tmp_path / "dry").iterdir() if path.is_dir())
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
        "runner_cfg.json",
        "results/core.json",
    }
    said = capsys.readouterr().out
    assert "not uploaded" in said
    assert "repo_id: me/saes" in said
    card = ModelCard.load(tmp_path / "dry" / "README.md")
    assert card.data.library_name == "saelens"
    assert card.data.license == "mit"
    assert {"temporal", "saelens"} <= set(card.data.tags)
    assert not card.data.eval_results, "the text is in a local file, and the Hub's form names datasets on the Hub"
    assert f'SAE.from_pretrained("me/saes", "{folder.name}")' in card.text
    assert "| SAE | L0 |" in card.text
    assert "| 0 | SAELens (`jumprelu`) |" in card.text
    assert "import sae_variants" not in card.text


def test_the_card_of_a_mixed_repository_says_what_each_sae_needs():
    result = made("flat", ce=0.9)
    result["eval_config"]["dataset"] = "org/text:en@abc,split=test/heldout"
    row = Row("flat", 64, 1000, {"core": [result]})
    shared = {"model": "org/model", "hook_name": "blocks.0.hook_resid_post", "seed": 0, "weight_hash": None}
    flat = CardEntry("a", "flat", "flat", row=row, d_in=32, architecture="topk", is_stock=True, **shared)
    tree = CardEntry("b", "tree", "tree", row=Row("tree", 64, 1000), d_in=32, architecture="hierarchical", **shared)
    card = ModelCard(render_card("me/saes", [flat, tree], [], "mit", "", []))
    assert "| SAELens (`topk`) |" in card.text
    assert "| SAELens and sae-variants |" in card.text
    assert "import sae_variants  # registers its architectures" in card.text
    datasets = {(one.dataset_type, one.dataset_config, one.dataset_revision) for one in card.data.eval_results}
    assert datasets == {("org/text", "en", "abc")}
    assert all(one.metric_name.endswith(" of a") for one in card.data.eval_results)


def test_a_trace_goes_with_the_weights(tmp_path):
    from eval_runners.commands.publish.repository import copy_sae

    source, folder = tmp_path / "sae", tmp_path / "published"
    source.mkdir()
    for name in ("cfg.json", "sae_weights.safetensors", "trace.npz", "notes.txt"):
        (source / name).write_text("{}")
    copy_sae(source, folder, [])
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"cfg.json", "sae_weights.safetensors", "trace.npz"}


def test_no_path_of_this_machine_is_published(place, tmp_path):
    root, _ = place
    publish(place, "--dry-run", str(tmp_path / "dry"))
    own = [str(Path.home()), str(Path.cwd()), str(root), str(tmp_path), "/tmp/", "/root/"]
    for path in (tmp_path / "dry").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for word in own:
                assert word.encode() not in content, (path, word)


@pytest.mark.slow
def test_stock_sae_lens_loads_it_where_this_package_is_not(place, tmp_path):
    publish(place, "--dry-run", str(tmp_path / "dry"))
    (folder,) = (path for path in (tmp_path / "dry").iterdir() if path.is_dir())
    script = f"import sys; sys.modules['sae_variants'] = None\nfrom sae_lens import SAE\nprint(SAE.load_from_disk({str(folder)!r}).cfg.architecture())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "jumprelu", done.stderr


def test_what_has_no_results_or_is_untrained_is_refused_unless_forced(place, tmp_path):
    root, words = place
    nowhere = ["publish", *words, "--results", str(tmp_path), "--repo", "me/saes", "--dry-run", str(tmp_path / "dry")]
    with pytest.raises(
        UsageError, match=r"without any result; score it first, by python -m eval_runners suite .*; --force"
    ):
        main(nowhere)
    assert not (tmp_path / "dry").exists()
    assert main([*nowhere, "--force"]) == 0
    assert "without any result" in ModelCard.load(tmp_path / "dry" / "README.md").text.lstrip()[:200]
    (file,) = (root / "runs").rglob("*.json")
    result = json.loads(file.read_text())
    result["eval_result_unstructured"]["not_trained_because"] = ["L0 is 0"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "r.json").write_text(json.dumps(result))
    with pytest.raises(UsageError, match="is untrained: L0 is 0; --force"):
        main(
            [
                "publish",
                *words,
                "--results",
                str(tmp_path / "bad"),
                "--repo",
                "me/saes",
                "--dry-run",
                str(tmp_path / "x"),
            ]
        )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--repo", "saes"], "written user/name, not 'saes'"),
        (["--sae", "me/other:x"], "on the Hub already"),
        (["--sae", "tempora"], "did you mean 'temporal'"),
        (["--seeds", "7"], "is not trained with seed 7: train and score it first"),
        (["--repo", "me/a--b"], "--repo: "),
        (["--repo", "me/.."], "--repo: "),
        (["--repo", "me/" + "a" * 120], "--repo: "),
        (["--dry-run", "/proc/x"], "cannot write --dry-run /proc/x"),
    ],
)
def test_bad_options(place, more, says):
    with pytest.raises(UsageError, match=says):
        publish(place, *more)


def test_a_folder_that_is_not_empty_is_left_alone(place, tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        publish(place, "--dry-run", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch) as server:
        yield server


def at_hub(hub: Hub, tmp_path: Path, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """A fresh process that knows that server as the Hub."""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }
    env = {name: value for name, value in env.items() if value}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=300, check=False)


def published(place, hub: Hub, tmp_path: Path, *more: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    root, words = place
    command = ["-m", "eval_runners", "publish", *words, "--results", str(root / "runs"), "--repo", "me/saes", "--force"]
    return at_hub(hub, tmp_path, *command, *more, token=token)


@pytest.mark.slow
def test_there_and_back_to_the_last_bit(place, hub, tmp_path):
    hub.fails["/commit/"] = [409]  # the upload is cut off after the files, before the commit
    cut = published(place, hub, tmp_path)
    assert cut.returncode == 2
    assert (
        cut.stderr.strip().splitlines()[-1].startswith("error: cannot publish to me/saes: the repository has changed")
    )
    assert hub.repos["me/saes"] == {}
    hub.fails.clear()
    older = made("older one", ce=0.123)
    hub.repos["me/saes"] |= {"older/cfg.json": b"{}", "older/results/core.json": json.dumps(older).encode()}
    done = published(place, hub, tmp_path, "--private")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    sae_id = next(name.partition("/")[0] for name in hub.repos["me/saes"] if name.endswith("runner_cfg.json"))
    card = hub.repos["me/saes"]["README.md"].decode()
    assert "| [`older`](older) | `older one` |" in card
    assert "| `older one` | 30.0 |" in card
    root, words = place
    (weights,) = (root / "trained").rglob("sae_weights.safetensors")
    script = (
        "import sys, torch; sys.modules['sae_variants'] = None\nfrom sae_lens import SAE\n"
        f"sae = SAE.from_pretrained('me/saes', {sae_id!r})\ntorch.save(sae.state_dict(), {str(tmp_path / 'w.pt')!r})"
    )
    loaded = at_hub(hub, tmp_path, "-W", "ignore", "-c", script)
    assert loaded.returncode == 0, loaded.stderr
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    local = sae_variants.load(weights.parent).state_dict()
    assert state.keys() == local.keys()
    assert all(torch.equal(state[name], local[name]) for name in local)
    where = words[: words.index("--sae")]
    scored = at_hub(
        hub,
        tmp_path,
        "-m",
        "eval_runners.core",
        *where,
        "--sae",
        f"me/saes:{sae_id}",
        *CORE,
        "--output",
        str(tmp_path / "runs"),
    )
    (result,) = (tmp_path / "runs").rglob("*.json")
    (before,) = (root / "runs").rglob("*.json")
    found, expected = (json.loads(path.read_text())["eval_result_metrics"] for path in (result, before))
    assert found == expected, scored.stderr


def test_what_differs_from_the_recipe_has_a_folder_of_its_own(place, tmp_path):
    publish(place, "--dry-run", str(tmp_path / "dry"))
    (folder,) = (path for path in (tmp_path / "dry").iterdir() if path.is_dir())
    (found,) = (json.loads(path.read_text()) for path in (place[0] / "runs").rglob("*.json"))
    assert "[" in found["sae_lens_id"]
    assert folder.name.endswith(found["eval_result_unstructured"]["provenance"]["kind"][:6])
