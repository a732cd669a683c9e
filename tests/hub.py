"""A server on loopback that speaks the Hugging Face Hub's HTTP API: models, datasets and SAEs, read and published.

Models and SAEs are in `repos`, datasets in `datasets`: repository -> path -> content. Files are served in ranges, as
streamed datasets read them. Uploads go through the Hub's LFS protocol (set HF_HUB_DISABLE_XET=1).

`fails` maps a part of a path to the statuses that requests to it get before it works: 0 closes the connection, -N sends
N bytes of the file and then closes it, 429 says Retry-After: 0. `gated` repositories answer 403, `revisions` names
branches and tags beside `main`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import hf_api
from huggingface_hub.utils import _http
from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

from sae_variants.language_model import folders

TOKEN = "hf_" + "t" * 34


class Hub:
    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.revisions: dict[str, dict[str, dict[str, bytes]]] = {}
        """Repository -> revision -> path -> content."""
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits = 0
        self.fails: dict[str, list[int]] = {}
        self.log: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            hub = self
            do_GET = do_HEAD = do_POST = do_PUT = lambda handler: handler.hub.answer(handler)
            log_message = lambda *args: None  # noqa: E731

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()

    def answer(self, handler: Any) -> None:
        path = unquote(urlsplit(handler.path).path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.headers.get("Transfer-Encoding") == "chunked":
            body = self.chunks(handler)
        self.log.append(f"{handler.command} {path}")
        for part, statuses in self.fails.items():
            if part in path and statuses:
                status = statuses.pop(0)
                if status == 0:
                    handler.close_connection = True
                    return handler.connection.close()
                if status < 0:
                    handler.cut_after = -status
                    break
                return self.send(handler, status, {"error": "as asked"}, {"Retry-After": "0"})
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/upload/"):
            return self.send(handler, 401, {"error": "Invalid username or password."})
        status, found, headers = self.reply(handler.command, path, body)
        wanted = handler.headers.get("Range", "")
        if status == 200 and isinstance(found, bytes) and wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first or 0), min(int(last or len(found) - 1), len(found) - 1)
            if start >= len(found):
                return self.send(handler, 416, b"", {"Content-Range": f"bytes */{len(found)}"})
            part = {"Content-Range": f"bytes {start}-{end}/{len(found)}"}
            status, found, headers = 206, found[start : end + 1], {**(headers or {}), **part}
        return self.send(handler, status, found, headers)

    @staticmethod
    def chunks(handler: Any) -> bytes:
        body = b""
        while size := int(handler.rfile.readline().strip() or b"0", 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body

    @staticmethod
    def send(handler: Any, status: int, found: Any, headers: dict[str, str] | None = None) -> None:
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            cut = getattr(handler, "cut_after", None)
            handler.wfile.write(content if cut is None else content[:cut])
            if cut is not None and cut < len(content):
                handler.close_connection = True

    def reply(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str] | None]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.repos:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}, None
            self.repos[repo], self.private[repo] = {}, asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{repo}"}, None
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, None
        if path.startswith("/upload/"):
            if hashlib.sha256(body).hexdigest() != path.removeprefix("/upload/"):
                return 400, {"error": "not those bytes"}, None
            self.blobs[path.removeprefix("/upload/")] = body
            return 200, b"", None
        kind = self.repos
        for prefix in ("/api/datasets", "/datasets"):
            if path.startswith(prefix + "/"):
                kind, path = self.datasets, path.removeprefix(prefix)
        path = path.removeprefix("/api/models")
        words = path.split("/")
        # a model of old may have no owner: `gpt2`
        repo = words[1] if words[1] in kind else "/".join(words[1:3]).removesuffix(".git")
        if repo in self.gated:
            said = "Access to this repository is restricted: you are not in the authorized list."
            return 403, {"error": said}, {"X-Error-Code": "GatedRepo", "X-Error-Message": said}
        if repo not in kind:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        rest = path.split(repo, 1)[1].removeprefix(".git")
        return self.of_repo(method, repo, kind[repo], rest, body)

    def at_revision(self, repo: str, files: dict[str, bytes], revision: str) -> dict[str, bytes] | None:
        """The files of a branch, tag or commit; None where there is none."""
        if revision in ("main", self.sha) or not revision:
            return files
        found = self.revisions.get(repo, {})
        return found.get(revision) or next((f for r, f in found.items() if self.sha_of(r) == revision), None)

    def sha_of(self, revision: str) -> str:
        if revision in ("main", "") or len(revision) == 40:
            return revision if len(revision) == 40 else self.sha
        return hashlib.sha1(revision.encode()).hexdigest()

    @staticmethod
    def described(files: dict[str, bytes], under: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders as the Hub lists them."""
        found: dict[str, dict[str, Any]] = {}
        for name, content in files.items():
            if under and not name.startswith(under + "/"):
                continue
            rest = name.removeprefix(under + "/" if under else "")
            if "/" in rest:
                folder = (under + "/" if under else "") + rest.partition("/")[0]
                found.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
                if not recursive:
                    continue
            oid = hashlib.sha1(content).hexdigest()
            found[name] = {"type": "file", "path": name, "size": len(content), "oid": oid}
        return list(found.values())

    def of_repo(
        self, method: str, repo: str, files: dict[str, bytes], rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str] | None]:
        words = rest.split("/")
        revision = words[2] if len(words) > 2 and words[1] in ("resolve", "tree", "revision", "paths-info") else "main"
        if (there := self.at_revision(repo, files, revision)) is None:
            return 404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"}
        files, sha = there, self.sha_of(revision)
        if rest.startswith("/preupload/"):
            asked = json.loads(body)["files"]
            return 200, {"files": [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                for f in asked
            ]}, None  # fmt: skip
        if rest == "/info/lfs/objects/batch":
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.url}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}, None
        if rest.startswith("/commit/"):
            for item in map(json.loads, body.decode().splitlines()):
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = self.blobs[value["oid"]]
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
            self.commits += 1
            return 200, {"commitUrl": f"{self.url}/{repo}/commit/{self.sha}", "commitOid": self.sha}, None
        if words[1:2] == ["resolve"]:
            name = "/".join(words[3:])
            if name not in files:
                return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            etag = hashlib.sha256(files[name]).hexdigest()
            return 200, files[name], {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}
        if words[1:2] == ["tree"]:
            under = "/".join(words[3:])
            if under and not any(name.startswith(under + "/") for name in files):
                return 404, {"error": f"{under} does not exist"}, {"X-Error-Code": "EntryNotFound"}
            return 200, self.described(files, under, recursive=True), None
        if words[1:2] == ["paths-info"]:
            asked = parse_qs(body.decode()).get("paths", []) if b"paths=" in body else json.loads(body)["paths"]
            every = {entry["path"]: entry for entry in self.described(files, "", recursive=True)}
            return 200, [every[name] for name in asked if name in every], None
        listed = [{"rfilename": name} for name in files]
        return 200, {"id": repo, "sha": sha, "siblings": listed, "private": False, "tags": [], "downloads": 0}, None


@contextlib.contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, cache: Path | None = None) -> Iterator[Hub]:
    """A server that this process may use as the Hub, without waiting between retries; with a cache, it is the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hub = Hub()
    if cache:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        _use_for_datasets(monkeypatch, hub.url, cache)
    known, official = set(folders._folders), list(OFFICIAL_MODEL_NAMES)
    try:
        yield hub
    finally:
        hub.close()
        huggingface_hub.HfFileSystem.clear_instance_cache()
        for name in set(folders._folders) - known:  # models of this Hub are forgotten with it
            del folders._folders[name]
        OFFICIAL_MODEL_NAMES[:] = official


def _use_for_datasets(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Let the library `datasets` read from a server and keep what it reads in a cache."""
    import datasets

    for name in [
        name for name in sys.modules if name.partition(".")[0] == datasets.config.MODULE_NAME_FOR_DYNAMIC_MODULES
    ]:
        monkeypatch.delitem(sys.modules, name)  # scripts of datasets are imported from another cache
    monkeypatch.syspath_prepend(str(cache / "modules"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(cache / "modules"))
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    huggingface_hub.HfFileSystem.clear_instance_cache()
