"""GitHub repositories: the files with chosen endings at the latest commit, with the licence of the repository.

Three requests: the repository, its latest commit, and the archive of that commit, which is requested only if the commit
is new. A token in GITHUB_TOKEN raises the limits of the API and gives access to private repositories.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any, cast
from urllib.parse import quote

from ml_filter.documents.readers.base import problem_with_text
from ml_filter.documents.readers.files import DamagedFile, InputFile
from ml_filter.documents.readers.http import decoded_text
from ml_filter.downstream.fetching.config import FetchConfig, GithubConfig
from ml_filter.downstream.fetching.items import Document, Item, Reject, Request, Response

HANDLER, COMMIT_HANDLER, ARCHIVE_HANDLER = "github", "github_commit", "github_archive"
_PIECE = 2**16


def headers() -> Mapping[str, str]:
    """The headers of the API, with the token if there is one."""
    token = os.environ.get("GITHUB_TOKEN", "").strip()
    own = {"Authorization": f"Bearer {token}"} if token.isascii() and token.isprintable() and token else {}
    return {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28", **own}


def start(config: FetchConfig) -> Iterator[Request]:
    """The repositories of the settings."""
    if config.github is None:
        return
    for repository in config.github.repositories:
        name, _, revision = repository.partition("@")
        url = _api(config.github, name)
        yield Request(url, HANDLER, "github", f"github:{repository}", facts={"revision": revision})


def _api(github: GithubConfig, name: str, *parts: str) -> str:
    return "/".join([github.api_url.rstrip("/"), "repos", name, *(quote(part, safe="") for part in parts)])


def read(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The request for the latest commit."""
    assert config.github is not None
    answer = _json(response)
    name, branch = answer.get("full_name"), answer.get("default_branch")
    if not isinstance(name, str) or not isinstance(branch, str) or name.count("/") != 1:
        yield Reject(response.url, "api_error", "the answer has no full_name and default_branch")
        return
    license = (answer.get("license") or {}).get("spdx_id") if isinstance(answer.get("license"), dict) else None
    facts = {
        "repository": name,
        "revision": request.facts.get("revision") or branch,
        "license": None if license == "NOASSERTION" else license,
        "web": answer.get("html_url") or f"https://github.com/{name}",
    }
    url = _api(config.github, name, "commits", str(facts["revision"]))
    yield Request(url, COMMIT_HANDLER, "github", f"{request.name}#commit", facts=facts)


def read_commit(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The request for the archive of the latest commit, which is the version of its files."""
    assert config.github is not None
    commit = _json(response).get("sha")
    if not isinstance(commit, str) or not commit.isalnum():
        yield Reject(response.url, "api_error", "the answer has no sha of a commit")
        return
    url = _api(config.github, request.facts["repository"], "tarball", commit)
    key = f"{request.name.removesuffix('#commit')}#archive"
    yield Request(url, ARCHIVE_HANDLER, "github", key, version=commit, facts=request.facts)


def read_archive(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The documents of the archive; a file that is too long or not text is a reject."""
    assert config.github is not None
    endings = {f".{ending.lstrip('.').lower()}" for ending in config.github.extensions}
    web, revision = request.facts["web"], request.facts["revision"]
    facts = {"license": request.facts.get("license")}
    count = 0
    try:
        stream = _Counted(InputFile(io.BytesIO(response.body), response.url).stream())
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
            for member in archive:
                # Names in archives may be any bytes.
                path = member.name.partition("/")[2].encode("utf-8", "replace").decode()
                if not member.isfile() or PurePosixPath(path).suffix.lower() not in endings:
                    continue
                count += 1
                url = f"{web}/blob/{revision}/{quote(path)}"
                if member.size > config.max_text_bytes:
                    yield Reject(url, "text_too_long", f"{member.size:,} bytes")
                    continue
                file = archive.extractfile(member)
                text = decoded_text(file.read(), "") if file is not None else None
                problem = problem_with_text(text or "", config.text)
                if problem is not None or text is None or "\x00" in text:
                    reason, detail = problem or ("invalid_utf8", "not a text file")
                    yield Reject(url, reason, detail)
                    continue
                yield Document(f"{request.name}/{path}", text, url, {**facts, "title": path})
            while stream.read(_PIECE):
                pass
            # tarfile takes a header that it cannot read for the end.
            if stream.content > archive.offset or stream.size < archive.offset + 2 * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("the end-of-archive marker is missing")
    except (tarfile.TarError, DamagedFile, EOFError, OSError, ValueError) as error:
        detail = f"the archive ends after {count:,} files: {error}"
        yield Reject(str(request.url), "unreadable", detail, ends_response=True)
        return
    if not count:
        yield Reject(str(request.url), "no_documents", f"no file ends in {', '.join(sorted(endings))}")


class _Counted:
    """A stream that counts its bytes: all of them (`size`), and up to the last that is not zero (`content`)."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = self.content = 0

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        if content := piece.rstrip(b"\0"):
            self.content = self.size + len(content)
        self.size += len(piece)
        return piece


def _json(response: Response) -> dict[str, Any]:
    try:
        answer = json.loads(response.body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
