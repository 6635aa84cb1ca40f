"""Corpora of a few shards, what a run makes of them, and the processes that work on it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.manifest import find_manifest


def write_corpus(directory: Path, documents: Sequence[dict[str, str]], shards: int, rows: int) -> Path:
    """Parquet shards of different texts, cut from real documents."""
    directory.mkdir()
    texts = [row["text"] for row in documents if len(row["text"]) > 2000]
    for shard in range(shards):
        cut = [
            {"id": f"{shard}-{i}", "text": texts[(7 * shard + i) % len(texts)][37 * i % 1500 :][:2000]}
            for i in range(rows)
        ]
        pq.write_table(pa.Table.from_pylist(cut), directory / f"part-{shard}.parquet")
    return directory


def content(directory: Path) -> dict[str, str]:
    """Digests of all that a finished run leaves; the manifest without its time."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name not in (".lock", "manifest.json")]
    digests = {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    manifest = find_manifest(str(directory))
    assert manifest is not None
    return {**digests, "manifest": manifest.digest}


def shard_times(directory: Path) -> dict[str, int]:
    """When each output shard was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in (directory / "shards").iterdir()}


def command(head: str, corpus: Path, output: Path, *options: str) -> list[str]:
    """`ml-filter score` as a command line."""
    return [sys.executable, "-m", "ml_filter.cli", "score", head, str(corpus), "-o", str(output), *options]


@contextmanager
def start(head: str, corpus: Path, output: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process for `command`, in a group of its own, as a shell starts it; it is gone at the end."""
    call, pipe = command(head, corpus, output, *options), subprocess.PIPE
    with subprocess.Popen(call, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_until(seen: Callable[[], object], running: subprocess.Popen[str] | None = None) -> None:
    """Look again and again, until it is there or the process that should bring it has ended."""
    while not seen() and (running is None or running.poll() is None):
        time.sleep(0.002)


def workers_at(output: Path, shard: str = "*") -> list[int]:
    """The processes that are writing a shard, by the names of their scratch directories."""
    try:
        found = list(output.glob(f".progress/scratch/**/{shard}.rejects.jsonl"))
    except FileNotFoundError:  # the run has just ended
        return []
    return [pid for pid in {int(path.parent.name.rpartition("-")[2]) for path in found} if is_alive(pid)]


def wait_for_worker(output: Path, running: subprocess.Popen[str] | None = None) -> int:
    """A process that has just begun to write a shard."""
    seen: list[int] = []
    wait_until(lambda: seen.extend(workers_at(output)) or seen, running)
    return seen[0]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
