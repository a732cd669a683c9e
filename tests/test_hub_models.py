"""Models by their name on the Hub: downloaded with the files they need, at a revision, and errors in one line."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch
from conftest import make_model
from hub import running_hub

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import model_id
from sae_variants.language_model.hub import model_revision, needed_files
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import load_target, make_local_target

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Repository -> files of two models and of one revision."""
    root = tmp_path_factory.mktemp("hub_models")
    return {
        kind: {path.name: path.read_bytes() for path in make_model(root / kind, kind).iterdir()}
        for kind in ("llama", "gemma", "gpt2")
    }


@pytest.fixture
def hub(monkeypatch, tmp_path, files):
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        others = {
            "onnx/model.onnx": b"x",
            "consolidated.safetensors": b"x",
            "pytorch_model.bin": b"x",
            "README.md": b"x",
        }
        hub.repos["org/Llama-tiny-bert"] = {**files["llama"], **others}
        hub.repos["gpt2"] = hub.repos["openai-community/gpt2"] = dict(files["gpt2"])
        hub.revisions["org/Llama-tiny-bert"] = {"step1": files["gemma"]}
        hub.gated.add("org/gated")
        hub.repos["org/gated"] = {}
        yield hub


def test_a_model_is_downloaded_with_the_files_it_needs(hub, text_file):
    target = make_local_target("org/Llama-tiny-bert", HOOK, str(text_file))
    commit = hub.sha_of("main")
    assert target.model_name == "org/Llama-tiny-bert"
    assert target.name == f"org--Llama-tiny-bert-{commit[:8]}"
    assert model_id(target.model_name) == model_revision(target.model_name) == f"org/Llama-tiny-bert@{commit}"
    model = load_model(target.model_name, "cpu", "float32")
    assert model.cfg.original_architecture == "LlamaForCausalLM"
    assert not [line for line in hub.log if any(name in line for name in ("onnx", "consolidated", ".bin", "README"))]


def test_a_target_file_names_a_model_of_the_hub(hub, text_file, tmp_path):
    lines = ['model_name = "org/Llama-tiny-bert"', f'hook_name = "{HOOK}"', f'dataset = "{text_file}"']
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    target = load_target(str(tmp_path / "mine.toml"))
    assert model_id(target.model_name) == f"org/Llama-tiny-bert@{hub.sha_of('main')}"


def test_a_revision_is_another_model(hub, text_file):
    target = make_local_target("org/Llama-tiny-bert@step1", HOOK, str(text_file))
    assert model_id(target.model_name) == f"org/Llama-tiny-bert@{hub.sha_of('step1')}"
    model = load_model(target.model_name, "cpu", "float32")
    assert model(torch.tensor([[1, 2]])).isfinite().all()


def test_an_alias_without_owner_is_the_model(hub, text_file):
    target = make_local_target("gpt2-small", HOOK, str(text_file))
    assert target.model_name in ("gpt2", "openai-community/gpt2")
    assert load_model(target.model_name, "cpu", "float32").cfg.n_layers == 2


def test_without_the_hub_the_cache_serves(hub, text_file, monkeypatch):
    online = make_local_target("org/Llama-tiny-bert", HOOK, str(text_file))
    expected = model_id(online.model_name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.log)
    assert model_id(make_local_target("org/Llama-tiny-bert", HOOK, str(text_file)).model_name) == expected
    assert len(hub.log) == asked


def test_a_busy_hub_is_asked_again(hub, text_file):
    hub.fails["/api/models/org/Llama-tiny-bert"] = [429, 503]
    assert make_local_target("org/Llama-tiny-bert", HOOK, str(text_file)).model_name == "org/Llama-tiny-bert"


def test_a_cut_connection_is_noted_where_the_cache_serves(hub, text_file, capsys):
    make_local_target("org/Llama-tiny-bert", HOOK, str(text_file))
    hub.fails["Llama-tiny"] = [0] * 99
    make_local_target("org/Llama-tiny-bert", HOOK, str(text_file))
    assert "the model org/Llama-tiny-bert is taken from the local cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "fails", "says"),
    [
        ("org/Llama-tiny-bert@", {}, "on the Hub it is written ORG/NAME or ORG/NAME@REVISION"),
        ("org/nothing", {}, "nothing of this name"),
        ("org/gated", {}, "access is granted on request"),
        ("org/Llama-tiny-bert@v9", {}, "no such revision"),
        ("org/Llama-tiny-bert", {"Llama-tiny": [401] * 9}, "401"),
        ("org/Llama-tiny-bert", {"Llama-tiny": [403] * 9}, "403"),
        ("org/Llama-tiny-bert", {"Llama-tiny": [429] * 99}, "asks for patience"),
        ("org/Llama-tiny-bert", {"Llama-tiny": [500] * 99}, "HTTP 500"),
        ("org/Llama-tiny-bert", {"Llama-tiny": [0] * 99}, "no connection|not in the local cache"),
        ("org/Llama-tiny-bert", {"tokenizer.json": [500] * 99}, "HTTP 500|not in the local cache"),
    ],
)
def test_errors_of_the_hub_are_one_line(model, fails, says, hub, text_file):
    hub.fails.update(fails)
    with pytest.raises(UsageError, match=says) as raised:
        make_local_target(model, HOOK, str(text_file))
    assert model.endswith("@") or f"cannot get the model {model.partition('@')[0]}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_one_format_of_the_weights_is_needed():
    old = [
        "config.json",
        "pytorch_model-00001-of-2.bin",
        "pytorch_model.bin.index.json",
        "vocab.json",
        "x.bin",
        "merges.txt",
    ]
    assert needed_files(old) == [
        "config.json", "merges.txt", "pytorch_model-00001-of-2.bin", "pytorch_model.bin.index.json", "vocab.json",
    ]  # fmt: skip
    both = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    assert needed_files(both) == ["model.safetensors", "model.safetensors.index.json"]
