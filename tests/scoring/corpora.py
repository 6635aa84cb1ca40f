"""Corpora of a few shards, digests of an output, and processes that score."""

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
        pieces = [
            {"id": f"{shard}-{i}", "text": texts[(7 * shard + i) % len(texts)][37 * i % 1500 :][:2000]}
            for i in range(rows)
        ]
        pq.write_table(pa.Table.from_pylist(pieces), directory / f"part-{shard}.parquet")
    return directory


def output_digests(directory: Path) -> dict[str, str]:
    """Digests of every file that a finished run leaves; of the manifest and the results without times."""
    others = (".lock", "manifest.json", ".shards.jsonl")
    files = [path for path in directory.rglob("*") if path.is_file() and path.name not in others]
    digests = {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    manifest = find_manifest(str(directory))
    assert manifest is not None
    return {**digests, "manifest": manifest.digest}


def write_times(directory: Path) -> dict[str, int]:
    """When each output shard was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in (directory / "shards").iterdir()}


@contextmanager
def start(head: str, corpus: Path, output: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `ml-filter score` in its own process group, as a shell would start it; killed at the end."""
    call = [sys.executable, "-m", "ml_filter.cli", "score", head, str(corpus), "-o", str(output), *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(call, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_until(condition: Callable[[], object], running: subprocess.Popen[str] | None = None) -> None:
    """Poll until the condition holds or the process ends."""
    while not condition() and (running is None or running.poll() is None):
        time.sleep(0.01)  # a shorter pause takes a core from what is waited for


def workers_writing(output: Path, shard: str = "*") -> list[int]:
    """Process ids of the workers that are writing a shard, from the names of their scratch directories."""
    try:
        paths = list(output.glob(f".progress/scratch/**/{shard}.rejects.jsonl"))
    except FileNotFoundError:  # the run has just ended
        return []
    return [pid for pid in {int(path.parent.name.rpartition("-")[2]) for path in paths} if is_alive(pid)]


def wait_for_worker(output: Path, running: subprocess.Popen[str] | None = None) -> int:
    """The process id of a worker that has just begun to write a shard."""
    pids: list[int] = []
    wait_until(lambda: pids.extend(workers_writing(output)) or pids, running)
    return pids[0]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
