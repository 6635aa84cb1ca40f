"""A Hub on the loopback interface, with the endpoints for uploading to a repository and downloading from one.

Every file is uploaded in the commit, as small files are on the real Hub; its storage of large files (Xet) is missing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """The repositories, and what happened to them.

    Attributes:
        data_sets: main branches, as {name: {path: content}}.
        models: the same for models.
        private: whether a repository is private, by name.
        tags: other revisions of models, as {name: {tag: {path: content}}}.
        commits: messages of the commits.
        downloads: paths of the files that were downloaded.
        refuse: status code for every request that needs a token; None: no such request fails.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data_sets: dict[str, dict[str, bytes]] = {}
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.tags: dict[str, dict[str, dict[str, bytes]]] = {}
        self.downloads: list[str] = []
        self.refuse: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files of a model at a branch, a tag or a commit."""
        for tag, files in {"main": self.models.get(name), **self.tags.get(name, {})}.items():
            if files is not None and revision in (tag, commit_of(files)):
                return files
        return None

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@contextmanager
def local_hub(cache: Path) -> Iterator[Hub]:
    """Run a Hub that `huggingface_hub` uses in this process, with an empty cache and a token."""
    from huggingface_hub import constants

    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        url_template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url_template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub


def commit_of(files: dict[str, bytes]) -> str:
    """The hash of a commit: 40 hexadecimal digits, as on the Hub."""
    listed = sorted((path, _object_id(content)) for path, content in files.items())
    return hashlib.sha1(repr(listed).encode()).hexdigest()


def _object_id(content: bytes) -> str:
    """The hash of a file. Length, beginning and end suffice to distinguish the files of a test; weights are large."""
    return hashlib.sha1(b"%d " % len(content) + content[:4096] + content[-4096:]).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _repository(self, path: str) -> tuple[dict[str, dict[str, bytes]], str]:
        """The repositories of the kind that a path names, and the rest of the path."""
        kind, _, rest = path.removeprefix("/api/").partition("/")
        return {"datasets": self.server.data_sets, "models": self.server.models}.get(kind, {}), rest

    def _refused(self) -> bool:
        if self.server.refuse is None and self.headers["Authorization"] == f"Bearer {TOKEN}":
            return False
        self._answer(self.server.refuse or 401, {"error": "this token may not write"})
        return True

    def do_POST(self) -> None:
        content = self._body()
        if self._refused():
            return
        hub, path = self.server, self.path.partition("?")[0]
        if path == "/api/repos/create":
            request = json.loads(content)
            name = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
            data_set = request.get("type") == "dataset"
            held, url = (hub.data_sets, f"{hub.url}/datasets/{name}") if data_set else (hub.models, f"{hub.url}/{name}")
            if name in held:
                self._answer(409, {"error": "exists", "url": url})
                return
            held[name], hub.private[name] = {}, request.get("visibility") == "private"
            self._answer(200, {"url": url})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            request = json.loads(content)["files"]
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in request]
            self._answer(200, {"files": files})
        elif path.endswith("/commit/main"):
            held, name = self._repository(path.removesuffix("/commit/main"))
            self._commit(held[name], path, content)
        else:
            self._answer(404, {"error": f"POST {path} does not exist"})

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        held, rest = self._repository(path)
        name = "/".join((rest if path.startswith("/api/") else path[1:]).split("/")[:2])
        if (hub.refuse is not None or hub.private.get(name)) and self._refused():
            return
        if "/resolve/" in path:
            self._file(*path[1:].split("/resolve/"))
            return
        _, tree, revision = rest.partition("/tree/")
        revision = revision or rest.partition("/revision/")[2] or "main"
        files = hub.find(name, revision) if held is hub.models else held.get(name)
        if files is None:
            code = "RevisionNotFound" if name in held else "RepoNotFound"
            self._answer(404, {"error": f"GET {path} does not exist"}, {"X-Error-Code": code})
        elif tree:
            listing = [
                {"type": "file", "path": file, "size": len(content), "oid": _object_id(content)}
                for file, content in files.items()
            ]
            self._answer(200, listing)
        else:
            private = hub.private.get(name, False)
            self._answer(200, {"id": name, "sha": commit_of(files), "siblings": [], "private": private})

    do_HEAD = do_GET

    def _file(self, name: str, rest: str) -> None:
        """Send a file of a revision of a model; only its headers for HEAD."""
        revision, _, path = rest.partition("/")
        files = self.server.find(name, revision)
        if files is None or path not in files:
            code = "RepoNotFound" if name not in self.server.models else "EntryNotFound"
            self._answer(404, {"error": f"{path} does not exist"}, {"X-Error-Code": code})
            return
        etag = f'"{_object_id(files[path])}"'
        self._answer(200, files[path], {"ETag": etag, "X-Repo-Commit": commit_of(files)})
        if self.command == "GET":
            self.server.downloads.append(path)

    def _commit(self, files: dict[str, bytes], path: str, content: bytes) -> None:
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.commits.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise AssertionError(entry)
        url = self.server.url + path.removeprefix("/api").removeprefix("/models").replace("/main", "/1")
        self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})
