"""From what a user names (files, globs, directories, URLs, Hub data sets) to a list of input shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import fsspec

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import PROGRESS_NAME, Parent, digest_of, file_system_of, find_manifest
from ml_filter.documents.readers import Format, InputShard, hub, installed
from ml_filter.errors import InputError

_FORMATS: tuple[tuple[str, Format], ...] = (
    (r"\.parquet$", "parquet"),
    (r"\.(jsonl|ndjson|json)(\.gz|\.zst)?$", "jsonl"),
    (r"\.(csv|tsv)(\.gz|\.zst)?$", "csv"),
    (r"\.(warc|wet|warc\.wet)(\.gz)?$", "warc"),
)
_KNOWN = ".parquet, .jsonl[.gz|.zst], .csv[.gz|.zst], .tsv[.gz|.zst], .warc[.gz], .wet[.gz]"
_HUB_DATA_SET = re.compile(r"^hf://datasets/(?P<name>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/?$")


def list_shards(source: SourceConfig) -> tuple[list[InputShard], list[Parent]]:
    """The input shards of a source in a fixed order, and a digest of the content of each path.

    Raises:
        InputError: a path does not exist, matches nothing, is not finished or has an unknown format.
    """
    unnamed: list[InputShard] = []
    parents: list[Parent] = []
    for path in source.paths:
        if path == installed.URI:
            shards, digest = [InputShard(path, "installed")], installed.fingerprint()
        elif match := _HUB_DATA_SET.match(path):
            shards, digest = _hub_files(match["name"], match["revision"], source)
        else:
            shards, digest = _files_at(path)
        unnamed += shards
        parents.append(Parent(path=path, digest=digest))
    return [replace(shard, name=f"{number:05d}-{_stem(shard)}") for number, shard in enumerate(unnamed)], parents


def shard_state(shard: InputShard) -> str | None:
    """A digest that changes with the shard's content, without reading it; None: its file is gone."""
    if shard.format == "installed":
        return installed.fingerprint()
    if shard.format == "hub":
        return digest_of(shard.uri)  # names a commit
    try:
        fs, path = fsspec.core.url_to_fs(shard.uri)
        return digest_of(_state_of(fs.info(path)))
    except OSError:
        return None


def _stem(shard: InputShard) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(shard.uri.rstrip("/:")).name)
    name = re.sub(r"(\.(parquet|jsonl|ndjson|json|csv|tsv|gz|zst|warc|wet))+$", "", name)
    number, parts = shard.part
    return f"{name}-{number}" if parts > 1 else name


def _files_at(path: str) -> tuple[list[InputShard], str]:
    """The files of a path or URL and a digest of their state."""
    fs, root = file_system_of(path)
    if fs.isdir(root):
        manifest = find_manifest(path)
        if manifest is not None:
            files = [
                InputShard(manifest.path_of(shard.path), "parquet", size=shard.bytes, rows=shard.rows)
                for shard in manifest.shards
            ]
            return files, manifest.digest
        if fs.exists(f"{root.rstrip('/')}/{PROGRESS_NAME}"):
            raise InputError(f"{path} contains an unfinished run; run its command again to finish it")
        names = sorted(n for n in fs.find(root) if _format_of(n) and not _is_hidden(n, root))
        if not names:
            raise InputError(f"{path} contains no readable file; readable are {_KNOWN}")
    elif fs.exists(root):
        names = [root]
    elif any(character in root for character in "*?["):
        names = sorted(fs.glob(root))
        if not names:
            raise InputError(f"{path} matches no file")
    else:
        raise InputError(f"{path} does not exist")
    files, states = [], []
    for name in names:
        file_format = _format_of(name)
        if file_format is None:
            raise InputError(f"{name}: unknown format; known endings are {_KNOWN}")
        try:
            info = fs.info(name)
        except FileNotFoundError:  # a dangling link, or deleted since it was listed; its reader will report it
            info = {}
        uri = name if "://" not in path else fs.unstrip_protocol(name)
        states.append([uri, *_state_of(info)])
        files.append(InputShard(uri, file_format, size=info.get("size")))
    return files, digest_of(states)


def _state_of(info: Mapping[str, Any]) -> list[Any]:
    return [info.get("size"), str(info.get("mtime") or info.get("ETag") or info.get("LastModified"))]


def _is_hidden(name: str, root: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name.removeprefix(root)).parts)


def _format_of(name: str) -> Format | None:
    return next((file_format for pattern, file_format in _FORMATS if re.search(pattern, name)), None)


def _hub_files(name: str, revision: str | None, source: SourceConfig) -> tuple[list[InputShard], str]:
    revision = hub.pinned_revision(name, revision)
    parts = int(hub.open_data_set(name, revision, source).num_shards)
    files = [InputShard(f"hf://datasets/{name}@{revision}", "hub", part=(number, parts)) for number in range(parts)]
    return files, digest_of([name, revision, source.subset, source.split])
