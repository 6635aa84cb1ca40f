"""Output directories: Parquet shards written to a temporary name, renamed, and a manifest last.

Delivery: every command that writes through `OutputDirectory` can be killed at any instant and called
again with the same settings. Finished shards stay, unfinished ones are made anew, and the result is the
same as that of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel

from ml_filter.documents.manifest import (
    LEDGER_NAME,
    MANIFEST_NAME,
    PROGRESS_NAME,
    REJECTS_NAME,
    FailedShard,
    Manifest,
    Parent,
    Shard,
    digest_of,
    file_system_of,
    find_manifest,
)
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.tables import cast_table, union_schema
from ml_filter.errors import InputError

_SHARD_DIRECTORY = "shards"
_LOCK_NAME = ".lock"
_MADE_WITH = f"{PROGRESS_NAME}/made-with.json"
_TEMPORARY_PREFIX = "ml_filter-output-"
_LOCK_WAIT_S = 60.0
"""For a lock that is only held for a moment: while one of several writers begins or ends."""
ROW_GROUP_BYTES = 32 * 2**20


class ShardResult(BaseModel):
    """What became of one input shard: its output (None when it gave no row) and its counts.

    Of a shard that `failed` nothing is kept. `state` is that of the input when it was read (`sources.shard_state`).
    """

    shard: Shard | None
    counts: dict[str, int]
    failed: FailedShard | None = None
    state: str | None = None
    seconds: float = 0.0
    """What making it took the process that made it."""


class ShardWriter:
    """Writes tables to one Parquet file whose name appears only when it is complete.

    Sources without a schema (JSON lines) may bring new columns or types later in a shard. Then the file so
    far is copied to the wider schema: new columns are null before, types that do not fit become JSON text.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None, row_group_bytes: int | None = None) -> None:
        self.path, self.schema = path, schema
        self.row_group_bytes = row_group_bytes or ROW_GROUP_BYTES
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self._temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                if self._writer is None and self.schema is not None:
                    self._open(self.schema)
        finally:
            if self._writer is not None:
                self._writer.close()
        if kind is None and self._temporary.exists():
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Append a table of documents."""
        if table.num_rows == 0:
            return
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        self.rows += table.num_rows
        if self._pending_bytes >= self.row_group_bytes:
            self._flush()

    def _flush(self) -> None:
        for table in self._pending:
            if self.schema is None or not _fits(table.schema, self.schema):
                self._widen(table.schema)
        if self._pending:
            assert self.schema is not None
            writer = self._writer or self._open(self.schema)
            writer.write_table(pa.concat_tables([cast_table(table, self.schema) for table in self._pending]))
        self._pending, self._pending_bytes = [], 0

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")
        return self._writer

    def _widen(self, incoming: pa.Schema) -> None:
        wider = incoming if self.schema is None else union_schema(self.schema, incoming)
        if wider == self.schema:
            return
        if self._writer is not None:
            self._writer.close()
            narrow = self._temporary.with_suffix(".narrow")
            os.replace(self._temporary, narrow)
            writer = self._open(wider)
            with pq.ParquetFile(narrow) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(cast_table(file.read_row_group(group), wider))
            narrow.unlink()
        self.schema = wider


def _fits(schema: pa.Schema, into: pa.Schema) -> bool:
    return all(
        (position := into.get_field_index(field.name)) >= 0
        and (into.field(position).type == field.type or pa.types.is_null(field.type))
        for field in schema
    )


def with_digest(path: str | Path, digest: str) -> str:
    """The path with `{digest}` filled in."""
    return str(path).replace("{digest}", digest[:8])


@dataclass(frozen=True)
class Resumption:
    """How a run goes on where an earlier one stopped though its input has changed since, as a mended shard has.

    `digest` is of all that must be the same; `holds` says whether what is finished would come out the same now.
    """

    digest: str
    holds: Callable[[OutputDirectory], bool]


class OutputDirectory:
    """One command's output: its lock, its finished shards, its rejects and, last, its manifest.

    Local directories and any fsspec URL; the lock against a second writer works on local ones only. `{digest}` in
    the path stands for what identifies settings and input, so that other settings get another directory.

    Args:
        part: the name of one of several writers at the same time. Each has its own lock and its own place for files
            in the making, and a writer without a part is refused while one of them writes.
        is_helper: this process was started by one that has entered the directory; it takes no lock.
        resumption: when the directory of another input may be gone on with; not given: never.

    Raises:
        InputError: another process writes here, the directory belongs to a run with other settings, or it is at a URL
            whose driver is not installed.
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
    ):
        self.kind, self.part = kind, part
        self._is_helper, self._resumption = is_helper, resumption
        self.config = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
        self.parents = list(parents)
        self.config_digest = digest_of([kind, self.config, [parent.digest for parent in self.parents]])
        self.path = with_digest(path, self.config_digest)
        self.fs, self.root = file_system_of(self.path)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.manifest: Manifest | None = None
        self._lock: FileLock | None = None
        self._scratch: Path | None = None
        self._scratch_lock: FileLock | None = None

    def __enter__(self) -> OutputDirectory:
        if self._is_helper:
            return self
        try:
            self.fs.makedirs(self.root, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be a directory: {error}") from error
        self._lock = self._acquire(_LOCK_NAME, _LOCK_WAIT_S if self.part else 0)
        try:
            if self.part is None:
                self._refuse_parts()
            self._claim()
            if self.part and not self.is_complete:
                whole, self._lock = self._lock, self._acquire(f"{PROGRESS_NAME}/{self.part}.lock")
                if whole is not None:
                    whole.release()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._scratch is not None and not self.is_local:
            self.clear_scratch()
        if self._lock is not None:
            self._lock.release()

    def _acquire(self, name: str, wait_s: float = 0) -> FileLock | None:
        if not self.is_local:
            return None
        lock = FileLock(os.path.join(self.root, name))
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            raise InputError(
                f"{self.path} is being written by another process; wait for it or choose another --output"
            ) from None
        return lock

    def _refuse_parts(self) -> None:
        for path in Path(self.root).glob(f"{PROGRESS_NAME}/*.lock") if self.is_local else ():
            held = self._acquire(f"{PROGRESS_NAME}/{path.name}")
            if held is not None:
                held.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other parts from beginning or ending here for a moment; without parts, this one is alone."""
        lock = self._acquire(_LOCK_NAME, _LOCK_WAIT_S) if self.part else None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    @property
    def is_complete(self) -> bool:
        """Whether a manifest says that every shard is done and none failed."""
        return self.manifest is not None and not self.manifest.shards_failed

    def _way_out(self) -> str:
        """Which other directory to take, and what of this one must not be lost."""
        if not self.fs.exists(f"{self.root}/{LEDGER_NAME}"):
            return "choose another --output, or delete it to start over"
        ledger = f"{self.path}/{LEDGER_NAME}"
        return (
            f"choose another --output. {ledger} holds answers that were paid for, so do not delete it: the run in the "
            f"other directory uses those that fit with --ledger {ledger} (ledger in --config)"
        )

    def _claim(self) -> None:
        """Find what an earlier run left and refuse what a run with other settings left."""
        found = find_manifest(self.path)
        claim = self._read_claim()
        digest = found.config_digest if found else claim.get("config_digest")
        if digest not in (None, self.config_digest):
            if not self._goes_on(claim):
                what = "the finished run" if found else "an unfinished run"
                raise InputError(f"{self.path} holds {what} of other settings or input; {self._way_out()}")
            self._put_claim()
        elif digest is None:
            self._put_claim()
        self.manifest = found
        if self.is_complete and self.part is None and self.fs.exists(f"{self.root}/{PROGRESS_NAME}"):
            self._remove(PROGRESS_NAME)  # which a run that was killed between its manifest and its end has left

    def _goes_on(self, claim: Mapping[str, str]) -> bool:
        resumption = self._resumption
        return resumption is not None and claim.get("resumption") == resumption.digest and resumption.holds(self)

    def _read_claim(self) -> dict[str, str]:
        path = f"{self.root}/{PROGRESS_NAME}/run.json"
        return dict(json.loads(self.fs.cat_file(path))) if self.fs.exists(path) else {}

    def _put_claim(self) -> None:
        claim = {"config_digest": self.config_digest}
        if self._resumption is not None:
            claim["resumption"] = self._resumption.digest
        self.put_bytes(f"{PROGRESS_NAME}/run.json", json.dumps(claim).encode())

    def reopen(self) -> None:
        """Take back that the directory is complete, to add to it; a kill from here on leaves it unfinished."""
        self._put_claim()
        self.fs.rm_file(f"{self.root}/{MANIFEST_NAME}")
        self.manifest = None

    @property
    def scratch(self) -> Path:
        """A local directory for files in the making; a part's own."""
        if self._scratch is None:
            if self.is_local:
                self._scratch = Path(self.root) / PROGRESS_NAME / "scratch" / (self.part or "")
                self._scratch.mkdir(parents=True, exist_ok=True)
            else:
                self._scratch, self._scratch_lock = _temporary_directory()
        return self._scratch

    def clear_scratch(self) -> None:
        """Delete what killed writers left half made: with a part, those that it started."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._scratch_lock is not None:
            self._scratch_lock.release()
        self._scratch = self._scratch_lock = None

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write a small file whole or not at all."""
        if not self.is_local:
            self.fs.pipe_file(f"{self.root}/{name}", content)
            return
        write_whole(Path(self.root) / name, content)

    def put_file(self, made: Path, name: str) -> None:
        """Move a finished local file to its place."""
        if self.is_local:
            target = Path(self.root) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, target)
        else:
            self.fs.put_file(str(made), f"{self.root}/{name}")
            made.unlink()

    @property
    def made_with(self) -> dict[str, Any]:
        """What this run, an earlier one or another part chose where the settings leave it open."""
        path = f"{self.root}/{_MADE_WITH}"
        return dict(json.loads(self.fs.cat_file(path))) if self.fs.exists(path) else {}

    def settle(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Write down what was chosen, unless another part was faster; what stands now, for all and in the manifest."""
        with self.alone():
            if not self.made_with:
                self.put_bytes(_MADE_WITH, json.dumps(chosen).encode())
            return self.made_with

    def done(self, name: str) -> ShardResult | None:
        """The result of a shard that an earlier run finished."""
        try:
            return ShardResult.model_validate_json(self.fs.cat_file(f"{self.root}/{PROGRESS_NAME}/{name}.json"))
        except FileNotFoundError:  # or another part has just finished the directory
            return None

    def all_done(self, names: Iterable[str]) -> dict[str, ShardResult]:
        """The results of those of the shards that are finished; what is not there is not asked for one by one."""
        progress = f"{self.root}/{PROGRESS_NAME}"
        self.fs.invalidate_cache(progress)  # others may have written there
        try:
            there = {PurePosixPath(path).name for path in self.fs.ls(progress, detail=False)}
        except FileNotFoundError:
            return {}
        found = {name: self.done(name) for name in names if f"{name}.json" in there}
        return {name: result for name, result in found.items() if result is not None}

    def forget(self, name: str) -> None:
        """Take back that a shard is done, so that it is made anew."""
        self.fs.rm_file(f"{self.root}/{PROGRESS_NAME}/{name}.json")

    def new_shard(self, name: str, schema: pa.Schema | None = None, row_group_bytes: int | None = None) -> ShardWriter:
        """A writer for shard `name`; hand it to `commit` when it is closed."""
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
        """Put a closed shard and its rejects in place and remember that it is done."""
        shard = None
        if writer.path.exists():
            relative = f"{_SHARD_DIRECTORY}/{name}.parquet"
            shard = Shard(
                path=relative, rows=writer.rows, bytes=writer.path.stat().st_size, digest=file_digest(writer.path)
            )
            self.put_file(writer.path, relative)
        if rejects.path is not None:
            self.put_file(rejects.path, f"{PROGRESS_NAME}/{name}.rejects.jsonl")
        rejected = {f"rejected_{reason}": count for reason, count in sorted(rejects.counts.items())}
        result = ShardResult(
            shard=shard, counts={**counts, "rejected": rejects.total, **rejected}, state=state, seconds=seconds
        )
        self.put_bytes(f"{PROGRESS_NAME}/{name}.json", result.model_dump_json().encode())
        return result

    def fail(self, name: str, source: str, reason: str) -> ShardResult:
        """Remember that a shard failed, and why; nothing of it stays."""
        made = f"{self.root}/{_SHARD_DIRECTORY}/{name}.parquet"
        if self.fs.exists(made):  # put there by a run that was killed before it could say that the shard is done
            self.fs.rm_file(made)
        failed = FailedShard(name=name, source=source, reason=reason)
        result = ShardResult(shard=None, counts={"read": 0, "shards_failed": 1}, failed=failed)
        self.put_bytes(f"{PROGRESS_NAME}/{name}.json", result.model_dump_json().encode())
        return result

    def finish(
        self, results: Iterable[tuple[str, ShardResult]], extra_counts: Mapping[str, int] | None = None
    ) -> Manifest:
        """Gather the rejects into one file and write the manifest; the directory is complete then.

        Where shards failed, what is known of each stays beside the manifest, so that a later run makes only those.
        """
        counts: Counter[str] = Counter(extra_counts or {})
        shards, failed, seconds = [], [], 0.0
        rejects = self.scratch / REJECTS_NAME
        with rejects.open("wb") as gathered:
            for name, result in results:
                counts.update(result.counts)
                seconds += result.seconds
                if result.shard is not None:
                    shards.append(result.shard)
                if result.failed is not None:
                    failed.append(result.failed)
                    continue
                part = f"{self.root}/{PROGRESS_NAME}/{name}.rejects.jsonl"
                if self.fs.exists(part):
                    with self.fs.open(part, "rb") as file:
                        shutil.copyfileobj(file, gathered)
        # Parts may end at the same time. What one gathers while there is no manifest is whole, since the other deletes
        # nothing before it has written it.
        self.manifest = find_manifest(self.path)
        if self.manifest is not None:
            return self.manifest
        self.put_file(rejects, REJECTS_NAME)
        manifest = Manifest(
            kind=self.kind,
            shards=shards,
            shards_failed=failed,
            counts=dict(counts),
            config=self.config,
            config_digest=self.config_digest,
            parents=self.parents,
            seconds=round(seconds, 3),
            made_with=self.made_with,
            root=self.path,
        )
        self.put_bytes(MANIFEST_NAME, manifest.to_json().encode())
        if failed:
            self._remove(f"{PROGRESS_NAME}/scratch")
        else:
            self._remove(PROGRESS_NAME)
        self._scratch = None if self.is_local else self._scratch
        self.manifest = manifest
        return manifest

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another part was faster
            self.fs.rm(f"{self.root}/{name}", recursive=True)


def _temporary_directory() -> tuple[Path, FileLock]:
    """A directory for as long as its lock is held; those of this user's killed processes are deleted."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY_PREFIX}*/{_LOCK_NAME}"):
        lock = FileLock(path, thread_local=False)
        with suppress(Timeout, OSError), lock.acquire(timeout=0):  # held by none: its process is gone
            shutil.rmtree(path.parent, ignore_errors=True)
    while True:
        made = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX))
        lock = FileLock(made / _LOCK_NAME, thread_local=False)
        lock.acquire()
        if (made / _LOCK_NAME).exists():  # else another process took it for abandoned before it was locked
            return made, lock
        lock.release()


def write_whole(path: Path, content: bytes) -> None:
    """Write a small local file whole or not at all, whenever the process or the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
