"""Uploading to a server that speaks the Hub's API: what it refuses, and uploads that are cut off."""

from __future__ import annotations

import pytest
from hub import TOKEN, running_hub

from eval_runners.commands.publish.hub import upload
from sae_variants.common.errors import UsageError


@pytest.fixture
def hub(monkeypatch):
    with running_hub(monkeypatch) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/repos/create", 403, "your token may not write there"),
        ("/preupload/", 404, "there is no such repository"),
        ("/commit/", 409, "the repository has changed"),
        ("/api/repos/create", 429, "the Hub asks for patience"),
        ("/api/repos/create", 500, "the Hub failed"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, path, status, says):
    hub.fails[path] = [status] * 100
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UsageError, match=rf"cannot publish to me/saes: {says}.*\(HTTP {status}\)"):
        upload(tmp_path, "me/saes", False, endpoint=hub.url, token=TOKEN)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_connection_that_is_cut_leaves_nothing_and_the_same_upload_works_afterwards(hub, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.safetensors").write_bytes(bytes(1000))
    hub.fails["/upload/"] = [0] * 100
    with pytest.raises(UsageError, match=r"no connection|the Hub failed"):
        upload(tmp_path, "me/saes", False, endpoint=hub.url, token=TOKEN)
    assert hub.repos["me/saes"] == {}
    hub.fails.clear()
    upload(tmp_path, "me/saes", False, endpoint=hub.url, token=TOKEN)
    assert hub.repos["me/saes"] == {"a/x.safetensors": bytes(1000)}


def test_an_sae_that_is_published_again_keeps_nothing_of_its_former_self(hub, tmp_path):
    for name in ("a/cfg.json", "a/results/core.json", "a/results/old.json", "b/cfg.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    upload(tmp_path, "me/saes", False, endpoint=hub.url, token=TOKEN)
    (tmp_path / "a" / "results" / "old.json").unlink()
    (tmp_path / "b" / "cfg.json").unlink()
    upload(tmp_path, "me/saes", False, endpoint=hub.url, token=TOKEN, replaced=["a"])
    assert sorted(hub.repos["me/saes"]) == ["a/cfg.json", "a/results/core.json", "b/cfg.json"]


def test_a_wrong_token_and_none(hub, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UsageError, match=r"the Hub does not know you: .* \(HTTP 401\)"):
        upload(tmp_path, "me/saes", False, endpoint=hub.url, token="hf_wrong")


def test_no_hub_at_all(hub, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UsageError, match="cannot publish to me/saes: no connection"):
        upload(tmp_path, "me/saes", False, endpoint="http://127.0.0.1:9", token=TOKEN)
