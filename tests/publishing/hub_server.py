"""A Hub of one's own on the loopback: the endpoints that filling a repository and downloading one need, and no others.

Every file comes in within the commit, as small ones do on the real Hub; its storage of large ones (Xet) is not here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """Holds data sets and models as {name: {path: content}}; `private` says which were made so.

    These are their main branches. `tags` holds other revisions of models, as {name: {tag: {path: content}}}.
    `downloads` are the paths of the files that were fetched.
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


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's name, as on the Hub 40 hexadecimal digits."""
    listed = sorted((path, _object_id(content)) for path, content in files.items())
    return hashlib.sha1(repr(listed).encode()).hexdigest()


def _object_id(content: bytes) -> str:
    """Names a file's content; length, beginning and end tell those of a test apart, and weights are large."""
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
        """The repositories of a path's kind, and what comes after the kind."""
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
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            data_set = asked.get("type") == "dataset"
            held, url = (hub.data_sets, f"{hub.url}/datasets/{name}") if data_set else (hub.models, f"{hub.url}/{name}")
            if name in held:
                self._answer(409, {"error": "exists", "url": url})
                return
            held[name], hub.private[name] = {}, asked.get("visibility") == "private"
            self._answer(200, {"url": url})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            asked = json.loads(content)["files"]
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self._answer(200, {"files": files})
        elif path.endswith("/commit/main"):
            held, name = self._repository(path.removesuffix("/commit/main"))
            self._commit(held[name], path, content)
        else:
            self._answer(404, {"error": f"POST {path} is not there"})

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
            self._answer(404, {"error": f"GET {path} is not there"}, {"X-Error-Code": code})
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
        """A file of a model's revision, or only its headers."""
        revision, _, path = rest.partition("/")
        files = self.server.find(name, revision)
        if files is None or path not in files:
            code = "RepoNotFound" if name not in self.server.models else "EntryNotFound"
            self._answer(404, {"error": f"{path} is not there"}, {"X-Error-Code": code})
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
