"""Output directories: Parquet shards, their rejects, and a manifest that is written last.

How output is written exactly once, although a command may be killed at any instant:

- Before anything else, `.progress/run.json` records the digest of settings and input: a directory never mixes two runs.
- A shard is written under `scratch` and renamed to its place, so that no reader ever sees half a shard.
- The commit point of a shard is `.progress/NAME.json`, written after the shard and its rejects are in place. A kill
  before it leaves a shard that nothing refers to; the next run writes it again, with the same bytes.
- The commit point of the run is `manifest.json`. It is last because whoever reads a directory trusts it alone: a
  directory without one is not complete.
- `.progress` is deleted after the manifest, not before: until then it alone knows which shards are done. What a kill in
  between leaves of it, the next run deletes.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
from filelock import FileLock
from loguru import logger
from pydantic import BaseModel

from ml_filter.commit import code_commit
from ml_filter.documents.finished import ShardResult
from ml_filter.documents.lock import WriterLock, temporary_directory
from ml_filter.documents.manifest import (
    LEDGER_DIRECTORY,
    LEDGER_NAME,
    MANIFEST_NAME,
    PROGRESS_NAME,
    REJECTS_NAME,
    FailedShard,
    Manifest,
    Parent,
    Shard,
    digest_of,
    find_manifest,
)
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.writer import ShardWriter, file_digest
from ml_filter.errors import InputError
from ml_filter.location import Location

SHARD_DIRECTORY = "shards"
CLAIM = f"{PROGRESS_NAME}/run.json"
MADE_WITH = f"{PROGRESS_NAME}/made-with.json"


@dataclass(frozen=True)
class Resumption:
    """When a run may continue an earlier one whose input has changed since, for example because a shard was fixed.

    `digest` covers all that must be the same; `is_valid` tells whether the finished shards would come out the same now.
    """

    digest: str
    is_valid: Callable[[OutputDirectory], bool]


def with_digest(path: str | Path, digest: str) -> str:
    """The path with `{digest}` filled in."""
    return str(path).replace("{digest}", digest[:8])


class OutputDirectory:
    """One command's output: its lock, its finished shards, its rejects and, last, its manifest.

    Local directories and any fsspec URL; only a local directory is locked against a second writer. `{digest}` in the
    path stands for a digest of settings and input, so that other settings get another directory.

    Args:
        part: the name of one of several concurrent writers. Each has its own lock and scratch directory, and a writer
            without a part is refused while one of them writes.
        is_helper: the process that started this one has entered the directory; it takes no lock.
        resumption: when a run with other settings or input may continue this directory (None: never).
        fixed: those parents that pin the directory with the settings (None: all).

    Attributes:
        facts: what the manifest says about this run, outside its digest.

    Raises:
        InputError: another process writes here, the directory belongs to a run with different settings, or it is at a
            URL whose driver is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        config: BaseModel | Mapping[str, Any],
        parents: Iterable[Parent],
        *,
        part: str | None = None,
        is_helper: bool = False,
        resumption: Resumption | None = None,
        fixed: Iterable[Parent] | None = None,
    ):
        self.kind, self.part = kind, part
        self._is_helper, self._resumption = is_helper, resumption
        self.config = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
        self.parents = list(parents)
        pinned = self.parents if fixed is None else fixed
        self.config_digest = digest_of([kind, self.config, [parent.digest for parent in pinned]])
        self.path = with_digest(path, self.config_digest)
        self.location = Location(self.path)
        self.fs, self.root, self.is_local = self.location.fs, self.location.path, self.location.is_local
        self.manifest: Manifest | None = None
        self.facts: dict[str, Any] = {}
        self._lock = WriterLock(Path(self.root) if self.is_local else None, self.path, PROGRESS_NAME, part)
        self._scratch: Path | None = None
        self._scratch_lock: FileLock | None = None

    def __enter__(self) -> Self:
        if self._is_helper:
            return self
        self.location.make_directory()
        try:
            self._lock.begin()
            self._claim()
            if not self.is_complete:
                self._lock.share()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._scratch is not None and not self.is_local:
            self.clear_scratch()
        self._lock.release()

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep the other parts from beginning or ending here for a moment."""
        return self._lock.exclusive()

    @property
    def is_complete(self) -> bool:
        """Whether every shard is done and none failed, according to the manifest."""
        return self.manifest is not None and not self.manifest.shards_failed

    def _claim(self) -> None:
        """Find the state of an earlier run, or raise if it had different settings or input."""
        manifest, claim = find_manifest(self.path), self._read_claim()
        digest = manifest.config_digest if manifest else claim.get("config_digest")
        if digest not in (None, self.config_digest) and not self._may_continue(claim):
            state = "already contains a finished run" if manifest else "contains an unfinished run"
            raise InputError(f"{self.path} {state} with different settings or input; {self._advice()}")
        self._begin(manifest, claim)
        if self.is_complete and self.part is None and self.fs.exists(self._at(PROGRESS_NAME)):
            self._clean_up()  # after a run that was killed when it had written its manifest

    def _begin(self, manifest: Manifest | None, claim: Mapping[str, str]) -> None:
        """Begin a run, or continue the run that left this manifest or this claim."""
        if not self._is_ours(manifest) and claim != self._own_claim():
            self._put_claim()
        self.manifest = manifest

    def _is_ours(self, manifest: Manifest | None) -> bool:
        """Whether a manifest is of a run with the same settings and input."""
        return manifest is not None and manifest.config_digest == self.config_digest

    def find_manifest(self) -> Manifest | None:
        """The manifest if the run is finished, perhaps by another part."""
        found = find_manifest(self.path)
        self.manifest = found if self._is_ours(found) else None
        return self.manifest

    def _may_continue(self, claim: Mapping[str, str]) -> bool:
        resumption = self._resumption
        return resumption is not None and claim.get("resumption") == resumption.digest and resumption.is_valid(self)

    def _read_claim(self) -> dict[str, str]:
        content = (self.location / CLAIM).find_bytes()
        return dict(json.loads(content)) if content else {}

    def _own_claim(self) -> dict[str, str]:
        claim = {"config_digest": self.config_digest}
        return claim | ({"resumption": self._resumption.digest} if self._resumption is not None else {})

    def _put_claim(self) -> None:
        self.put_json(CLAIM, self._own_claim())

    def _advice(self) -> str:
        ledger = self.location / (LEDGER_NAME if self.is_local else LEDGER_DIRECTORY)
        if not ledger.exists():
            return "choose another --output, or delete it to start over"
        return (
            f"choose another --output. Do not delete {ledger}, which holds answers that were paid for: with --ledger "
            f"{ledger} (ledger in --config), the run in the other directory uses those that still apply"
        )

    def reopen(self) -> None:
        """Make a complete directory incomplete, to add to it; a kill from now on leaves it unfinished."""
        self._put_claim()
        self._remove_manifest()

    def _remove_manifest(self) -> None:
        self._remove(MANIFEST_NAME)
        self.manifest = None

    # --- Files -------------------------------------------------------------------------------------------------------

    @property
    def scratch(self) -> Path:
        """A local directory for unfinished files; each part has its own."""
        if self._scratch is None:
            if self.is_local:
                self._scratch = Path(self.root) / PROGRESS_NAME / "scratch" / (self.part or "")
                self._scratch.mkdir(parents=True, exist_ok=True)
            else:
                self._scratch, self._scratch_lock = temporary_directory()
        return self._scratch

    def clear_scratch(self) -> None:
        """Delete unfinished files of killed writers; a part deletes only its own."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._scratch_lock is not None:
            self._scratch_lock.release()
        self._scratch = self._scratch_lock = None

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write a small file completely or not at all."""
        (self.location / name).write_bytes(content)

    def put_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a small JSON file completely or not at all."""
        self.put_bytes(name, json.dumps(content).encode())

    def put_file(self, file: Path, name: str) -> None:
        """Move a finished local file to its place."""
        (self.location / name).move_here(file)

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another part was faster
            self.fs.rm(self._at(name), recursive=True)

    # --- Choices -----------------------------------------------------------------------------------------------------

    @property
    def made_with(self) -> dict[str, Any]:
        """Choices that the settings leave open, made by this run, an earlier one or another part."""
        return dict(json.loads(self.fs.cat_file(self._at(MADE_WITH)))) if self.fs.exists(self._at(MADE_WITH)) else {}

    def settle(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Record choices for all parts and the manifest, unless another part was faster; returns those that apply."""
        with self.exclusive():
            if not self.made_with:
                self.put_json(MADE_WITH, choices)
            return self.made_with

    # --- Shards ------------------------------------------------------------------------------------------------------

    def finished_shard(self, name: str) -> ShardResult | None:
        """The result of a shard that an earlier run or another part finished; None: it is not finished."""
        try:
            return ShardResult.model_validate_json(self.fs.cat_file(self._record_of(name)))
        except FileNotFoundError:  # or another part has just finished the directory
            return None

    def finished_shards(self, names: Iterable[str]) -> dict[str, ShardResult]:
        """The results of those shards that are finished, with one listing instead of a request for each."""
        present = {PurePosixPath(path).name for path in self._progress_files()}
        results = {name: self.finished_shard(name) for name in names if f"{name}.json" in present}
        return {name: result for name, result in results.items() if result is not None}

    def _progress_files(self) -> list[str]:
        progress = self._at(PROGRESS_NAME)
        self.fs.invalidate_cache(progress)  # others may have written there
        try:
            paths: list[str] = self.fs.ls(progress, detail=False)
        except FileNotFoundError:
            return []
        return paths

    def forget(self, name: str) -> None:
        """Mark a finished shard as not done, so that it is written again."""
        self.fs.rm_file(self._record_of(name))

    def _record_of(self, name: str) -> str:
        return self._at(f"{PROGRESS_NAME}/{name}.json")

    def new_shard(self, name: str, schema: pa.Schema | None = None, row_group_bytes: int | None = None) -> ShardWriter:
        """A writer for shard `name`; pass it to `commit` when it is closed."""
        return ShardWriter(self.scratch / f"{name}.parquet", schema, row_group_bytes)

    def new_rejects(self, name: str) -> RejectsLog:
        """A rejects log for shard `name`, committed with it."""
        return RejectsLog(self.scratch / f"{name}.rejects.jsonl")

    def commit(
        self,
        name: str,
        writer: ShardWriter,
        rejects: RejectsLog,
        counts: Mapping[str, int],
        state: str | None = None,
        seconds: float = 0.0,
    ) -> ShardResult:
        """Put a closed shard and its rejects in place, then record that it is done."""
        shard = None
        if writer.path.exists():
            path = f"{SHARD_DIRECTORY}/{name}.parquet"
            size, digest = writer.path.stat().st_size, file_digest(writer.path)
            shard = Shard(path=path, rows=writer.rows, bytes=size, digest=digest)
            self.put_file(writer.path, path)
        rejects_bytes = 0
        if rejects.path is not None:
            rejects_bytes = rejects.path.stat().st_size
            self.put_file(rejects.path, f"{PROGRESS_NAME}/{name}.rejects.jsonl")
        rejected = {f"rejected_{reason}": count for reason, count in sorted(rejects.counts.items())}
        all_counts = {**counts, "rejected": rejects.total, **rejected}
        if rejects.renamed_ids:
            all_counts["renamed_ids"] = rejects.renamed_ids
            logger.warning(
                f"{rejects.renamed_ids:,} documents have the id of another document with another text; the name of "
                "their shard was added to it"
            )
        result = ShardResult(
            shard=shard,
            counts=all_counts,
            state=state,
            seconds=seconds,
            first_reject=rejects.first,
            rejects_bytes=rejects_bytes,
        )
        return self._record(name, result)

    def record_failure(self, name: str, source: str, reason: str, state: str | None = None) -> ShardResult:
        """Record that a shard failed, and why; none of its output is kept."""
        path = self._at(f"{SHARD_DIRECTORY}/{name}.parquet")
        if self.fs.exists(path):  # put there by a run that was killed before the commit point
            self.fs.rm_file(path)
        failed = FailedShard(name=name, source=source, reason=reason)
        counts = {"read": 0, "shards_failed": 1}
        return self._record(name, ShardResult(shard=None, counts=counts, failed=failed, state=state))

    def _record(self, name: str, result: ShardResult) -> ShardResult:
        self.put_bytes(f"{PROGRESS_NAME}/{name}.json", result.model_dump_json().encode())
        return result

    def finish(
        self, results: Iterable[tuple[str, ShardResult]], extra_counts: Mapping[str, int] | None = None
    ) -> Manifest:
        """Collect the rejects in one file and write the manifest, which completes the directory.

        If shards failed, the records of all shards stay beside the manifest, so that a later run repeats only those.
        """
        results = list(results)
        rejects = self.scratch / REJECTS_NAME
        # Parts may end at the same time. The rejects collected here are complete while no manifest exists, because the
        # other part deletes the files they come from only after it has written one.
        try:
            with rejects.open("wb") as collected:
                for name, result in results:
                    self._append_rejects(name, result, collected)
        except FileNotFoundError:
            if self.find_manifest() is None:
                raise
        if (finished := self.find_manifest()) is not None:
            return finished
        self.put_file(rejects, REJECTS_NAME)
        failed = [result.failed for _, result in results if result.failed is not None]
        counts: Counter[str] = Counter(extra_counts or {})
        for _, result in results:
            counts.update(result.counts)
        manifest = Manifest(
            kind=self.kind,
            shards=[result.shard for _, result in results if result.shard is not None],
            shards_failed=failed,
            counts=dict(counts),
            config=self.config,
            config_digest=self.config_digest,
            parents=self.parents,
            seconds=round(sum(result.seconds for _, result in results), 3),
            made_with={**self.made_with, **self.facts},
            commit=code_commit(),
            root=self.path,
        )
        self._put_manifest(manifest, results)
        self.manifest = manifest
        if failed:
            self._remove(f"{PROGRESS_NAME}/scratch")
        else:
            self._clean_up()
        self._scratch = None if self.is_local else self._scratch
        return manifest

    def _append_rejects(self, name: str, result: ShardResult, target: IO[bytes]) -> None:
        if result.rejects_bytes:
            with self.fs.open(self._at(f"{PROGRESS_NAME}/{name}.rejects.jsonl"), "rb") as file:
                shutil.copyfileobj(file, target)

    def _put_manifest(self, manifest: Manifest, results: Sequence[tuple[str, ShardResult]]) -> None:
        """Complete the directory with its manifest, made from the results of its shards."""
        self.put_bytes(MANIFEST_NAME, manifest.to_json().encode())

    def _clean_up(self) -> None:
        """Delete what is not part of a complete directory."""
        self._remove(PROGRESS_NAME)
