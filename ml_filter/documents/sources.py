"""From what a user names (files, globs, directories, URLs, Hub data sets) to a list of input shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec import AbstractFileSystem

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import PROGRESS_NAME, Parent, digest_of, find_manifest
from ml_filter.documents.readers import Format, InputShard, format_of_content, hub, installed, mongodb
from ml_filter.errors import InputError
from ml_filter.location import Location, reaching
from ml_filter.mongodb import is_mongodb

_COMPRESSED = r"(\.(gz|gzip|zst|zstd|xz|bz2|lz4))?$"
_FORMATS: tuple[tuple[str, Format], ...] = (
    (r"\.(parquet|pq)", "parquet"),
    (r"\.(arrow|feather|ipc)", "arrow"),
    (r"\.(jsonl|ndjson|json|jl|jsonlines)", "jsonl"),
    (r"\.(csv|tsv)", "csv"),
    (r"\.(warc|wet)", "warc"),
)
_KNOWN = ".parquet, .arrow, .jsonl, .json, .csv, .tsv, .warc and .wet, also with .gz, .zst, .xz, .bz2 or .lz4"
_BESIDE_DATA = re.compile(r"^(dataset_infos?\.json|dataset_dict\.json|state\.json|cache-[0-9a-f]+\.arrow)$")
"""Files that `datasets.save_to_disk` and its cache write beside the data."""
_HUB_DATA_SET = re.compile(r"^hf://datasets/(?P<name>[^/@*?]+(/[^/@*?]+)?)(@(?P<revision>[^/]+))?/?$")
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def list_shards(source: SourceConfig) -> tuple[list[InputShard], list[Parent]]:
    """The input shards of a source in a fixed order, and a digest of the content of each path.

    Raises:
        InputError: a path does not exist, cannot be reached, matches nothing, is not finished or has an unknown format.
    """
    unnamed: list[InputShard] = []
    parents: list[Parent] = []
    for path in source.paths:
        latest = None
        if path == installed.URI:
            shards, digest = [InputShard(path, "installed")], installed.fingerprint()
        elif match := _HUB_DATA_SET.match(path):
            shards, digest = _hub_files(match["name"], match["revision"], source)
        elif is_mongodb(path):
            shards, digest, latest = mongodb.list_changes(path, source)
        else:
            with reaching(path):
                shards, digest = _files_at(path)
        unnamed += shards
        parents.append(Parent(path=path, digest=digest, latest=latest))
    return [replace(shard, name=f"{number:05d}-{_stem(shard)}") for number, shard in enumerate(unnamed)], parents


def shard_state(shard: InputShard) -> str | None:
    """A digest that changes with the shard's content, without reading it; None: its file is gone."""
    if shard.format == "installed":
        return installed.fingerprint()
    if shard.format == "hub":
        return digest_of(shard.uri)  # names a commit
    if shard.format == "mongodb":
        return mongodb.state_of(shard)
    try:
        fs, path = fsspec.core.url_to_fs(shard.uri)
        return digest_of(_state_of(fs.info(path)))
    except OSError:
        return None


def _stem(shard: InputShard) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(shard.uri.rstrip("/:")).name)
    endings = "parquet|pq|arrow|feather|ipc|jsonl|ndjson|json|jl|jsonlines|csv|tsv|warc|wet|gz|gzip|zst|zstd|xz|bz2|lz4"
    name = re.sub(rf"(?i)(\.({endings}))+$", "", name)
    number, parts = shard.part
    return f"{name}-{number}" if parts > 1 else name


def _files_at(path: str) -> tuple[list[InputShard], str]:
    """The files of a path or URL and a digest of their state."""
    if not path.strip():
        raise InputError("the path of a source is empty")
    location = Location(path)
    fs, root = location.fs, location.path
    exists = location.exists()
    if exists and fs.isdir(root):
        manifest = find_manifest(path)
        if manifest is not None:
            files = [
                InputShard(manifest.path_of(shard.path), "parquet", size=shard.bytes, rows=shard.rows)
                for shard in manifest.shards
            ]
            return files, manifest.digest
        if fs.exists(f"{root.rstrip('/')}/{PROGRESS_NAME}"):
            raise InputError(f"{path} contains an unfinished run; run its command again to finish it")
        found = _files_below(fs, root)
        if not found:
            raise InputError(f"{path} contains no readable file; readable are {_KNOWN}")
    elif exists:
        found = {root: fs.info(root)}
    elif any(character in root for character in "*?["):
        found = _matches(fs, root)
        if not found:
            raise InputError(f"{path} matches no file")
    else:
        raise InputError(f"{path} does not exist{_hub_hint(path)}")
    files, states = [], []
    for name, info in sorted(found.items()):
        uri = name if "://" not in path else fs.unstrip_protocol(name)
        file_format = _format_of(name) or format_of_content(uri)
        if file_format is None:
            raise InputError(f"{name}: unknown format; known endings are {_KNOWN}")
        states.append([uri, *_state_of(info)])
        files.append(InputShard(uri, file_format, size=info.get("size"), partitions=_partitions_of(name)))
    return files, digest_of(states)


def _files_below(fs: AbstractFileSystem, root: str) -> dict[str, dict[str, Any]]:
    """The files below a directory that can be read, with what the file system says about them."""
    found = fs.find(root, detail=True)
    return {
        name: info
        for name, info in found.items()
        if not _is_hidden(name.removeprefix(root))
        and not _BESIDE_DATA.match(PurePosixPath(name).name)
        and (_format_of(name) or (not PurePosixPath(name).suffix and _is_data(fs.unstrip_protocol(name))))
    }


def _is_data(uri: str) -> bool:
    try:
        return format_of_content(uri) is not None
    except InputError:  # a file that nobody named, and that is not read
        return False


def _matches(fs: AbstractFileSystem, pattern: str) -> dict[str, dict[str, Any]]:
    """The files that match a glob, or are below a directory that does."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    may_be_hidden = re.search(r"/[._]", pattern.removeprefix(fixed))
    found: dict[str, dict[str, Any]] = {}
    for name, info in fs.glob(pattern, detail=True).items():
        if may_be_hidden or not _is_hidden(name.removeprefix(fixed)):
            found |= _files_below(fs, name) if info.get("type") == "directory" else {name: info}
    return found


def _state_of(info: Mapping[str, Any]) -> list[Any]:
    return [info.get("size"), str(info.get("mtime") or info.get("ETag") or info.get("LastModified"))]


def _is_hidden(path: str) -> bool:
    """Whether a path below a source is not data: `.crc`, and what Spark has not committed or only marks."""
    return any(part.startswith((".", "_")) for part in PurePosixPath(path).parts)


def _format_of(name: str) -> Format | None:
    return next((found for pattern, found in _FORMATS if re.search(pattern + _COMPRESSED, name, re.IGNORECASE)), None)


def _partitions_of(name: str) -> tuple[tuple[str, str | None], ...]:
    """The columns in the names of the directories above a file, as in `language=de/year=2024/part-0.parquet`."""
    partitions: list[tuple[str, str | None]] = []
    for directory in reversed(PurePosixPath(name).parent.parts):
        column, equals, value = directory.partition("=")
        if not equals or not column:
            break
        partitions.insert(0, (unquote(column), None if value == _NO_PARTITION else unquote(value)))
    return tuple(dict(partitions).items())


def _hub_hint(path: str) -> str:
    return f"; a data set of the Hugging Face Hub is named hf://datasets/{path}" if _HUB_NAME.match(path) else ""


def _hub_files(name: str, revision: str | None, source: SourceConfig) -> tuple[list[InputShard], str]:
    revision = hub.pinned_revision(name, revision)
    parts = int(hub.open_data_set(name, revision, source).num_shards)
    files = [InputShard(f"hf://datasets/{name}@{revision}", "hub", part=(number, parts)) for number in range(parts)]
    return files, digest_of([name, revision, source.subset, source.split])
