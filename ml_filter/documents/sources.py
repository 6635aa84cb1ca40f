"""From what a user names (files, globs, directories, URLs, Hub data sets) to a list of input shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

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
    (r"\.pdf", "pdf"),
)
_KNOWN = ".parquet, .arrow, .jsonl, .json, .csv, .tsv, .warc, .wet and .pdf, also with .gz, .zst, .xz, .bz2 or .lz4"
_BESIDE_DATA = re.compile(r"^(dataset_infos?\.json|dataset_dict\.json|state\.json|cache-[0-9a-f]+\.arrow)$")
"""Files that `datasets.save_to_disk` and its cache write beside the data."""
_HUB_DATA_SET = re.compile(r"^hf://datasets/(?P<name>[^/@*?]+(/[^/@*?]+)?)(@(?P<revision>[^/]+))?/?$")
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_VERSIONS = ("mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created")
_DIGEST_LENGTH = 12
_LONGEST_STEM = 200
"""So that the name of a shard's file, with endings, has at most 255 characters, as file systems ask for."""
_DIGEST_AT_END = re.compile(rf"-[0-9a-f]{{{_DIGEST_LENGTH}}}$")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def list_shards(source: SourceConfig) -> tuple[list[InputShard], list[Parent]]:
    """The input shards of a source in a fixed order, and a digest of the content of each path.

    The name of a shard does not depend on other files, nor on where the source is, so that a source may grow or move. A
    shard of a manifest keeps its name.

    Raises:
        InputError: a path does not exist, cannot be reached, matches nothing, is not finished or has an unknown format.
    """
    shards: list[InputShard] = []
    parents: list[Parent] = []
    earlier: Counter[str] = Counter()
    for path in source.paths:
        latest = None
        if path == installed.URI:
            digest = installed.fingerprint()
            found = {"/": InputShard(path, "installed", state=digest)}
        elif match := _HUB_DATA_SET.match(path):
            found, digest = _hub_files(match["name"], match["revision"], source)
        elif is_mongodb(path):
            ranges, digest, latest = mongodb.list_changes(path, source)
            found = {f"/{shard.part[0]}": shard for shard in ranges}
        else:
            with reaching(path):
                found, digest = _files_at(path)
        first = next(iter(found), "/")
        # Files that are named one by one are told apart only if they have the same name, since a shell may have put
        # the list together from a pattern: a new file must not change the names of those after it.
        group = "/" if first.startswith("/") else first
        shards += [replace(shard, name=_name_of(shard, relative, earlier[group])) for relative, shard in found.items()]
        earlier[group] += 1
        parents.append(Parent(path=path, digest=digest, latest=latest))
    return shards, parents


def list_shards_with_states(source: SourceConfig) -> tuple[list[InputShard], list[Parent]]:
    """As `list_shards`, with the state of every shard."""
    shards, parents = list_shards(source)
    return [replace(shard, state=shard_state(shard)) for shard in shards], parents


def shard_state(shard: InputShard) -> str:
    """A digest that changes with the shard's content, without reading it; for MongoDB, the server computes it."""
    return shard.state or mongodb.state_of(shard)


def _name_of(shard: InputShard, relative: str, number: int) -> str:
    """The name of a shard at a path relative to its source, which is the only one of its kind, or has a number."""
    stem = _stem(shard)
    if shard.format == "parquet" and shard.rows is not None and number == 0:  # of a manifest, so it is unique
        return stem
    return f"{_DIGEST_AT_END.sub('', stem)[:_LONGEST_STEM]}-{digest_of([number, relative])[:_DIGEST_LENGTH]}"


def _stem(shard: InputShard) -> str:
    name = PurePosixPath(shard.uri.rstrip("/:")).name
    if shard.format == "hub":
        name = name.partition("@")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    endings = "parquet|pq|arrow|feather|ipc|jsonl|ndjson|json|jl|jsonlines|csv|tsv|warc|wet|pdf"
    endings += "|gz|gzip|zst|zstd|xz|bz2|lz4"
    name = re.sub(rf"(?i)(\.({endings}))+$", "", name)
    number, parts = shard.part
    return f"{name}-{number}" if parts > 1 and shard.format == "hub" else name


def _files_at(path: str) -> tuple[dict[str, InputShard], str]:
    """The files of a path or URL by their path relative to it, and a digest of their state.

    The relative path begins with a slash, except that of a path which is a file itself.
    """
    if not path.strip():
        raise InputError("the path of a source is empty")
    location = Location(path)
    fs, root = location.fs, location.path
    exists = location.exists()
    fs.invalidate_cache(root)  # others may have added files
    if exists and fs.isdir(root):
        manifest = find_manifest(path)
        if manifest is not None:
            listed = {
                f"/{shard.path}": InputShard(
                    manifest.path_of(shard.path), "parquet", size=shard.bytes, rows=shard.rows, state=shard.digest
                )
                for shard in manifest.shards
            }
            return listed, manifest.digest
        if fs.exists(f"{root.rstrip('/')}/{PROGRESS_NAME}"):
            raise InputError(f"{path} contains an unfinished run; run its command again to finish it")
        found, above = _files_below(fs, root), root.rstrip("/")
        if not found:
            raise InputError(f"{path} contains no readable file; readable are {_KNOWN}")
    elif exists:
        found, above = {root: fs.info(root)}, root.removesuffix(PurePosixPath(root).name)
    elif any(character in root for character in "*?["):
        above = _fixed_part(root)
        found = _matches(fs, root, above)
        if not found:
            raise InputError(f"{path} matches no file")
    else:
        raise InputError(f"{path} does not exist{_hub_hint(path)}")
    files, states = {}, []
    for name, info in sorted(found.items()):
        uri = name if "://" not in path else fs.unstrip_protocol(name)
        file_format = _format_of(name) or format_of_content(uri)
        if file_format is None:
            raise InputError(f"{name}: unknown format; known endings are {_KNOWN}")
        state = file_state(info)
        states.append([uri, *state])
        files[name.removeprefix(above)] = InputShard(
            uri, file_format, size=info.get("size"), state=digest_of(state), partitions=_partitions_of(name)
        )
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


def _fixed_part(pattern: str) -> str:
    """The directory above everything that a glob matches."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]


def _matches(fs: AbstractFileSystem, pattern: str, fixed: str) -> dict[str, dict[str, Any]]:
    """The files that match a glob, or are below a directory that does."""
    may_be_hidden = re.search(r"/[._]", pattern.removeprefix(fixed))
    found: dict[str, dict[str, Any]] = {}
    for name, info in fs.glob(pattern, detail=True).items():
        if may_be_hidden or not _is_hidden(name.removeprefix(fixed)):
            found |= _files_below(fs, name) if info.get("type") == "directory" else {name: info}
    return found


def file_state(info: Mapping[str, Any]) -> list[Any]:
    """What changes with the content of a file: its size, and the first of `_VERSIONS` that its file system states."""
    return [info.get("size"), str(next((info[name] for name in _VERSIONS if info.get(name)), None))]


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


def _hub_files(name: str, revision: str | None, source: SourceConfig) -> tuple[dict[str, InputShard], str]:
    revision = hub.pinned_revision(name, revision)
    parts = int(hub.open_data_set(name, revision, source).num_shards)
    digest = digest_of([name, revision, source.subset, source.split])
    uri = f"hf://datasets/{name}@{revision}"
    return {f"/{part}": InputShard(uri, "hub", part=(part, parts), state=digest) for part in range(parts)}, digest
