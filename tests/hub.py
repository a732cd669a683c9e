"""A server on loopback that speaks the Hugging Face Hub's HTTP API for the calls that publishing and loading make.

Files go through the Hub's LFS protocol (set HF_HUB_DISABLE_XET=1). `fails` maps a path's part to the statuses that
requests to it get before it works; 0 cuts the connection.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub.utils import _http

TOKEN = "hf_" + "t" * 34


class Hub:
    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
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
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

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
                if statuses[0] == 0:
                    statuses.pop(0)
                    handler.close_connection = True
                    return handler.connection.close()
                return self.send(handler, statuses.pop(0), {"error": "as asked"})
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/upload/"):
            return self.send(handler, 401, {"error": "Invalid username or password."})
        status, found, headers = self.reply(handler.command, path, body)
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
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

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
        repo = "/".join(path.removeprefix("/api/models").split("/")[1:3]).removesuffix(".git")
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        rest = path.split(repo, 1)[1].removeprefix(".git")
        return self.of_repo(method, repo, rest, body)

    def of_repo(self, method: str, repo: str, rest: str, body: bytes) -> tuple[int, Any, dict[str, str] | None]:
        files = self.repos[repo]
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
        if rest.startswith("/resolve/"):
            name = rest.split("/", 3)[3]
            if name not in files:
                return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.sha}
            etag = hashlib.sha256(files[name]).hexdigest()
            return 200, files[name], {"X-Repo-Commit": self.sha, "ETag": f'"{etag}"'}
        if rest.startswith("/tree/"):
            return 200, [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ], None  # fmt: skip
        return 200, {"id": repo, "sha": self.sha, "siblings": [{"rfilename": name} for name in files]}, None


@contextlib.contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that this process may use as the Hub, without waiting between retries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()
