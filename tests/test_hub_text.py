"""Text streamed from the Hub, on a server on loopback: names, splits, revisions, cut connections, refusals."""

from __future__ import annotations

import gzip
import io
import json
import sys

import huggingface_hub
import pytest
from conftest import make_text
from hub import running_hub

from sae_variants.common.errors import UsageError
from sae_variants.language_model import hub_text
from sae_variants.language_model.contexts import heldout_text_name, read_contexts, target_documents
from sae_variants.language_model.hub_text import HubDataset, dataset_commit, parse_hub_dataset, pin_dataset, stream_rows
from sae_variants.language_model.target import TextOptions, choose_target

TEXTS = make_text(300)
HOOK = "blocks.1.hook_resid_post"


def jsonl(texts, column="text") -> bytes:
    return "".join(json.dumps({column: text}) + "\n" for text in texts).encode()


def parquet(texts) -> bytes:
    import pandas as pd

    file = io.BytesIO()
    pd.DataFrame({"text": texts}).to_parquet(file, row_group_size=50)
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(hub_text.time, "sleep", lambda seconds: None)
        server.datasets["me/texts"] = {"data.jsonl": jsonl(TEXTS)}
        yield server


def read(name: str, split: str = "train", column: str = "text") -> list[str]:
    return [row[column] for _, row in stream_rows(name, split)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("me/texts", ("me/texts", None, None)),
        ("me/texts:en", ("me/texts", "en", None)),
        ("me/texts@v1", ("me/texts", None, "v1")),
        ("me/a.b:x-y@refs/pr/1", ("me/a.b", "x-y", "refs/pr/1")),
    ],
)
def test_names(text, parts):
    assert parse_hub_dataset(text) == HubDataset(*parts)
    assert str(parse_hub_dataset(text)) == text


@pytest.mark.parametrize(
    ("file", "content"),
    [("a.jsonl", jsonl(TEXTS)), ("a.parquet", parquet(TEXTS)), ("a.jsonl.gz", gzip.compress(jsonl(TEXTS)))],
)
def test_every_format_streams(hub, file, content):
    hub.datasets["me/texts"] = {file: content}
    assert read(pin_dataset("me/texts")) == TEXTS


@pytest.mark.parametrize("file", ["a.jsonl", "data/train-0.parquet"])
def test_without_the_hub_a_downloaded_dataset_is_read_from_the_cache(hub, monkeypatch, file):
    hub.datasets["me/texts"] = {file: jsonl(TEXTS) if file.endswith("jsonl") else parquet(TEXTS)}
    pinned = pin_dataset("me/texts")
    huggingface_hub.snapshot_download("me/texts", repo_type="dataset")
    requests = len(hub.log)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pin_dataset("me/texts") == pinned
    assert read("me/texts") == read(pinned) == TEXTS
    assert dataset_commit("me/texts") == hub.sha
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set, and it is not in the local cache"):
        pin_dataset("me/other")
    assert len(hub.log) == requests


def test_a_target_of_hub_text_is_split_by_document_and_names_the_commit(hub, model_folder, model):
    target = choose_target("sandbox", str(model_folder), HOOK, "me/texts")
    assert target.text_id == f"me/texts@{hub.sha}" == target.train_text_id
    assert heldout_text_name(target) == f"me/texts@{hub.sha}/heldout"
    train, heldout = (list(target_documents(target, split)) for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(TEXTS)
    assert 10 < len(heldout) < 60
    assert next(read_contexts(target, model, 33)).shape == (33,)


def test_split_column_revision_and_train_dataset(hub, model_folder):
    hub.datasets["me/other"] = {"data/train-0.jsonl": jsonl(["x y"], "body"), "data/test-0.jsonl": jsonl(["z"], "body")}
    hub.revisions["me/other"] = {"v1": {"test.jsonl": jsonl(["old"], "body")}}
    options = TextOptions(train_dataset="me/other@v1", dataset_split="test", text_column="body")
    target = choose_target("sandbox", str(model_folder), HOOK, "me/other", options)
    assert list(target_documents(target, "heldout")) == ["z"]
    assert list(target_documents(target, "train")) == ["old"]
    assert target.text_id == f"me/other@{hub.sha},split=test,column=body"
    assert target.train_text_id == f"me/other@{hub.sha_of('v1')},split=test,column=body"


@pytest.mark.parametrize("file", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("statuses", [[-3000, -1000, 0], [500, -100, 503], [429, 0]])
def test_a_stream_goes_on_after_a_cut(hub, monkeypatch, file, statuses):
    monkeypatch.setattr(hub_text, "ROWS_PER_STATE", 70)
    hub.datasets["me/texts"] = {file: jsonl(TEXTS) if file.endswith("jsonl") else parquet(TEXTS)}
    name = pin_dataset("me/texts")
    hub.fails[f"{hub.sha}/{file}"] = list(statuses)
    assert read(name) == TEXTS
    assert hub.fails[f"{hub.sha}/{file}"] == []


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "does not know the token"),
        (403, "access is refused"),
        (404, "nothing of this name"),
        (429, "asks for patience"),
        (500, "the Hub failed"),
    ],
)
@pytest.mark.parametrize("at", ["/api/datasets/me/texts", "data.jsonl"])
def test_refusals_are_one_line(hub, status, says, at):
    name = "me/texts"
    if at == "data.jsonl":
        name = pin_dataset(name)
    hub.fails[at] = [status] * 200
    with pytest.raises(UsageError, match=rf"the dataset me/texts.*{says}.*\(HTTP {status}\)") as caught:
        read(pin_dataset(name))
    assert "\n" not in str(caught.value)


def test_gated_and_unknown(hub):
    hub.gated.add("me/texts")
    with pytest.raises(UsageError, match="accept its conditions"):
        pin_dataset("me/texts")
    with pytest.raises(UsageError, match="nothing of this name"):
        pin_dataset("me/nothing")
    hub.gated.clear()
    with pytest.raises(UsageError, match="no such revision"):
        pin_dataset("me/texts@v9")


def test_what_the_dataset_lacks_is_named(hub, model_folder):
    with pytest.raises(UsageError, match=r"cannot read the split 'test' of the dataset me/texts.*train"):
        read(pin_dataset("me/texts"), "test")
    with pytest.raises(UsageError, match=r"cannot read the split .* of the dataset me/texts:fr"):
        read(pin_dataset("me/texts:fr"))
    target = choose_target("sandbox", str(model_folder), HOOK, "me/texts", TextOptions(text_column="body"))
    with pytest.raises(UsageError, match="has no column 'body', only text"):
        list(target_documents(target, "train"))


def test_core_scores_on_hub_text(hub, model_folder, model):
    from conftest import evaluate, identity

    target = choose_target("sandbox", str(model_folder), HOOK, "me/texts")
    small = {"n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 1, "batch_size_prompts": 2}
    scored = evaluate("core", identity(target), target, model, context_size=32, **small)
    assert scored.metrics["reconstruction_quality"]["mse"] == pytest.approx(0, abs=1e-6)


def test_code_of_a_dataset_is_never_run(hub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])  # datasets adds the folder for such code, and an empty module
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("asks whether to run code"))
    hub.datasets["me/script"] = {
        "script.py": b"raise SystemExit('code of the dataset runs')\n",
        "data.jsonl": jsonl(TEXTS),
    }
    with pytest.raises(
        UsageError, match=r"me/script.* is loaded by code of its repository, which is not run: .*refs/convert/parquet"
    ):
        read(pin_dataset("me/script"))
    assert capsys.readouterr().out == ""
    for module in [name for name in sys.modules if name.startswith("datasets_modules")]:
        del sys.modules[module]


def test_a_config_is_asked_for_as_it_is_written(hub):
    card = "---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    hub.datasets["me/cfgs"] = {"README.md": card.encode(), "a.jsonl": jsonl(["x"]), "b.jsonl": jsonl(["y"])}
    with pytest.raises(UsageError, match=r"has several configs: write me/cfgs:a; known: a, b$"):
        read(pin_dataset("me/cfgs"))
    assert read(pin_dataset("me/cfgs:b")) == ["y"]


def test_a_dataset_without_rows_is_named(hub, model_folder):
    hub.datasets["me/empty"] = {"a.jsonl": b"", "README.md": b""}
    hub.datasets["me/blank"] = {"a.jsonl": jsonl(["", " "])}
    hub.datasets["me/one"] = {"a.jsonl": jsonl(["x"])}
    for name, says in (("empty", "holds no text"), ("blank", "holds no text"), ("one", "none of which falls into the")):
        target = choose_target("sandbox", str(model_folder), HOOK, f"me/{name}")
        with pytest.raises(UsageError, match=f"the dataset me/{name}@.* {says}"):
            [list(target_documents(target, part)) for part in ("train", "heldout")]


def test_the_dataset_held_out_is_not_trained_on(hub, model_folder):
    with pytest.raises(UsageError, match=r"me/texts@.* would be trained on and held out"):
        choose_target("sandbox", str(model_folder), HOOK, "me/texts", TextOptions(train_dataset="me/texts@main"))
