"""From what a user names (files, globs, directories, URLs, Hub data sets) to a list of input shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import fsspec

from ml_filter.documents import installed
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import PROGRESS_NAME, Parent, digest_of, file_system_of, find_manifest
from ml_filter.errors import InputError

Format = Literal["parquet", "jsonl", "csv", "warc", "hub", "installed"]

_FORMATS: tuple[tuple[str, Format], ...] = (
    (r"\.parquet$", "parquet"),
    (r"\.(jsonl|ndjson|json)(\.gz|\.zst)?$", "jsonl"),
    (r"\.(csv|tsv)(\.gz|\.zst)?$", "csv"),
    (r"\.(warc|wet|warc\.wet)(\.gz)?$", "warc"),
)
_KNOWN = ".parquet, .jsonl[.gz|.zst], .csv[.gz|.zst], .tsv[.gz|.zst], .warc[.gz], .wet[.gz]"
_HUB_DATA_SET = re.compile(r"^hf://datasets/(?P<name>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/?$")


@dataclass(frozen=True)
class InputShard:
    """One unit of reading and of resuming. `name` is unique within its source and names the output shard."""

    uri: str
    format: Format
    name: str
    size: int | None = None
    part: tuple[int, int] = (0, 1)
    """For a Hub data set: this shard's number and the number of shards."""


def list_shards(source: SourceConfig) -> tuple[list[InputShard], list[Parent]]:
    """The input shards of a source in a fixed order, and what pins their content.

    Raises:
        InputError: a path does not exist, matches nothing, is not finished or has an unknown format.
    """
    found: list[tuple[str, Format, int | None, tuple[int, int]]] = []
    parents: list[Parent] = []
    for path in source.paths:
        files: list[tuple[str, Format, int | None, tuple[int, int]]]
        if path == installed.URI:
            files = [(path, "installed", None, (0, 1))]
            parents.append(Parent(path=path, digest=installed.fingerprint()))
        elif match := _HUB_DATA_SET.match(path):
            files, parent = _hub_shards(path, match["name"], match["revision"], source)
            parents.append(parent)
        else:
            files, parent = _file_shards(path)
            parents.append(parent)
        found += files
    shards = [
        InputShard(uri, kind, f"{number:05d}-{_stem(uri, part)}", size, part)
        for number, (uri, kind, size, part) in enumerate(found)
    ]
    return shards, parents


def _stem(uri: str, part: tuple[int, int]) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(uri.rstrip("/:")).name)
    name = re.sub(r"(\.(parquet|jsonl|ndjson|json|csv|tsv|gz|zst|warc|wet))+$", "", name)
    return f"{name}-{part[0]}" if part[1] > 1 else name


def _file_shards(path: str) -> tuple[list[tuple[str, Format, int | None, tuple[int, int]]], Parent]:
    fs, root = file_system_of(path)
    manifest = find_manifest(path) if fs.isdir(root) else None
    if manifest is not None:
        names = [shard.path for shard in manifest.shards]
        uris = [manifest.path_of(name) for name in names]
        sizes: list[int | None] = [shard.bytes for shard in manifest.shards]
        return [(u, "parquet", s, (0, 1)) for u, s in zip(uris, sizes, strict=True)], Parent(
            path=path, digest=manifest.digest
        )
    if fs.isdir(root):
        if fs.exists(f"{root.rstrip('/')}/{PROGRESS_NAME}"):
            raise InputError(f"{path} holds an unfinished run; run its command again to finish it")
        names = sorted(n for n in fs.find(root) if _format_of(n) and not _is_hidden(n, root))
        if not names:
            raise InputError(f"{path} holds no file that can be read ({_KNOWN})")
    elif fs.exists(root):
        names = [root]
    elif any(sign in root for sign in "*?["):
        names = sorted(fs.glob(root))
        if not names:
            raise InputError(f"{path} matches no file")
    else:
        raise InputError(f"{path} does not exist")
    files: list[tuple[str, Format, int | None, tuple[int, int]]] = []
    pins = []
    for name in names:
        kind = _format_of(name)
        if kind is None:
            raise InputError(f"{name}: unknown format; known endings are {_KNOWN}")
        try:
            info = fs.info(name)
        except FileNotFoundError:  # a link to nowhere, or gone since it was listed; who reads it will say so
            info = {}
        uri = name if "://" not in path else fs.unstrip_protocol(name)
        pins.append([uri, *_state_of(info)])
        files.append((uri, kind, info.get("size"), (0, 1)))
    return files, Parent(path=path, digest=digest_of(pins))


def _state_of(info: Mapping[str, Any]) -> list[Any]:
    return [info.get("size"), str(info.get("mtime") or info.get("ETag") or info.get("LastModified"))]


def shard_state(shard: InputShard) -> str | None:
    """A digest that changes with the shard's content, without reading it; None where its file is gone."""
    if shard.format == "installed":
        return installed.fingerprint()
    if shard.format == "hub":
        return digest_of(shard.uri)  # names a commit
    try:
        fs, path = fsspec.core.url_to_fs(shard.uri)
        return digest_of(_state_of(fs.info(path)))
    except OSError:
        return None


def _is_hidden(name: str, root: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name.removeprefix(root)).parts)


def _format_of(name: str) -> Format | None:
    return next((kind for pattern, kind in _FORMATS if re.search(pattern, name)), None)


def _hub_shards(
    path: str, name: str, revision: str | None, source: SourceConfig
) -> tuple[list[tuple[str, Format, int | None, tuple[int, int]]], Parent]:
    from ml_filter.documents.hub import open_data_set, pinned_revision

    revision = pinned_revision(name, revision)
    parts = int(open_data_set(name, revision, source).num_shards)
    uri = f"hf://datasets/{name}@{revision}"
    files: list[tuple[str, Format, int | None, tuple[int, int]]] = [
        (uri, "hub", None, (number, parts)) for number in range(parts)
    ]
    return files, Parent(path=path, digest=digest_of([name, revision, source.subset, source.split]))
