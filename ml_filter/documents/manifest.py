"""A manifest says what a directory of shards contains and what made it.

It is written last: a directory without `manifest.json` is not complete. Only manifests travel between pipeline steps;
the shards stay where they are, pinned by their digests.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_serializer

from ml_filter import __version__
from ml_filter.errors import InputError
from ml_filter.location import Location

MANIFEST_NAME = "manifest.json"
LEDGER_NAME, LEDGER_DIRECTORY = "ledger.sqlite", "ledger"
"""Answers of an LLM, which were paid for: a file, or at a URL a directory (annotation/ledger/)."""
REJECTS_NAME = "rejects.jsonl"
PROGRESS_NAME = ".progress"
"""Directory that exists while a run is under way, and after it if shards failed."""
FORMAT_VERSION = 1


def digest_of(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON-able value in canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "://" in path or "\\" in path:
        raise ValueError(f"{path!r} is not a path inside the directory")
    return path


class Shard(BaseModel):
    """One Parquet file: path relative to the manifest, rows, size in bytes, SHA-256 of the file.

    A manifest may be from elsewhere, so its paths must not lead out of its directory.
    """

    path: Annotated[str, AfterValidator(_inside)]
    rows: int
    bytes: int
    digest: str


class Parent(BaseModel):
    """An input: its path and the digest of its manifest, files or package list.

    `latest` is the time of the latest change in a MongoDB collection: the next run can read what is new since then.
    """

    path: str
    digest: str
    latest: datetime | None = Field(None, exclude_if=lambda latest: latest is None)

    @field_serializer("latest")
    def _as_text(self, latest: datetime | None) -> str | None:
        return latest.isoformat() if latest else None


class FailedShard(BaseModel):
    """An input shard that is missing from the output: its name there, where it was read, and why it failed."""

    name: str
    source: str
    reason: str


class Manifest(BaseModel):
    """What a directory contains. `root` is where it was read from or written to; the file omits it."""

    format_version: int = FORMAT_VERSION
    kind: str
    shards: list[Shard] = []
    shards_failed: list[FailedShard] = []
    counts: dict[str, int] = {}
    config: dict[str, Any] = {}
    config_digest: str = ""
    parents: list[Parent] = []
    seconds: float = 0.0
    """Time to make the shards, summed over concurrent processes; 0: not known."""
    code_version: str = __version__
    commit: str = ""
    """Commit of the code; empty: not known."""
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    made_with: dict[str, Any] = {}
    """Choices that the settings left to the run, and what it found done."""
    shards_new: int | None = Field(None, exclude_if=lambda count: count is None)
    shards_reused: int | None = Field(None, exclude_if=lambda count: count is None)
    """Of a directory that grows: the input shards that its last run made, and those that were done before."""
    root: str = ""

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def counts_of_run(self) -> dict[str, int]:
        """The counts, and of a directory that grows how many shards were new."""
        shards = {"shards_new": self.shards_new, "shards_reused": self.shards_reused}
        return self.counts | {name: count for name, count in shards.items() if count is not None}

    @property
    def digest(self) -> str:
        """Digest of the content: the same for two runs that made the same shards in the same way."""
        runs = ("created_at", "code_version", "commit", "seconds", "made_with", "shards_new", "shards_reused")
        return digest_of(self._content("root", *runs))

    def path_of(self, name: str) -> str:
        """Path or URL of a file beside the manifest."""
        return str(Location(self.root) / name)

    def shard_paths(self) -> list[str]:
        """Path or URL of each shard, in order."""
        return [self.path_of(shard.path) for shard in self.shards]

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps(self._content("root"), indent=1, ensure_ascii=False) + "\n"

    def _content(self, *without: str) -> dict[str, Any]:
        # An empty shards_failed is left out: without failures, a digest is what it was before the field existed.
        return self.model_dump(exclude={*without, *(() if self.shards_failed else ("shards_failed",))})


def find_manifest(directory: str | Path) -> Manifest | None:
    """The manifest of a directory; None: it has none.

    Raises:
        InputError: the file is not a manifest that this version reads, or its URL cannot be opened.
    """
    path = Location(directory) / MANIFEST_NAME
    content = path.find_bytes()
    if content is None:
        return None
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path} is not a manifest: {error.errors()[0]['msg']}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {manifest.format_version}; this version reads {FORMAT_VERSION}")
    manifest.root = str(directory)
    return manifest


_KINDS = {
    "annotations": "annotations; make them with annotate",
    "batch": "a batch; make one with batch write",
    "scores": "aggregated scores; make them with aggregate",
    "predictions": "an evaluation; make one with evaluate",
    "scored": "scored documents; make them with score",
    "filtered": "filtered documents; make them with filter",
    "index": "an index; make one with index",
    "ablation": "an ablation; make one with ablate",
}
"""The content of a directory of each kind, and the command that makes it."""


def read_manifest(directory: str | Path, kind: str | None = None) -> Manifest:
    """The manifest of a complete directory.

    Args:
        kind: the required kind of directory; None: any.

    Raises:
        InputError: the directory is missing, not complete, or of another kind.
    """
    manifest = find_manifest(directory)
    if manifest is None:
        Location(directory).require()
        raise InputError(
            f"{directory} holds no {MANIFEST_NAME}: it is not an output of ml-filter, or the run that makes it has not "
            "finished (run the same command again to finish it)"
        )
    if kind not in (None, manifest.kind):
        raise InputError(f"{directory} holds {manifest.kind}, not {_KINDS[kind]}")
    return manifest
