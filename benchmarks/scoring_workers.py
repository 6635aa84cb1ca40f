"""Two workers on Ray against two local worker processes in the same run.

The corpus is Parquet shards of short passages of real documents. Each variant scores it in turn with the same head, in
separate processes on this machine; one process with all threads is the reference. Time is measured from the moment all
workers have loaded the head until the last shard is committed; start-up is reported separately. The bytes of all runs
are compared with those of the first.

On a busy machine, look at the second figure as well: Linux divides CPU time between sessions first, and Ray's
processes have a session of their own, so that their wall time looks better than it is. The second figure is documents
per second of the workers' CPU time.

    python benchmarks/scoring_workers.py HEAD_DIR ../shared/data/*.jsonl [--documents 20000] [--characters 500]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.documents.sources import list_shards
from ml_filter.heads.store import fetch_head
from ml_filter.logs import configure_logging
from ml_filter.scoring.config import RAY_LOCAL, ScoreConfig
from ml_filter.scoring.cores import usable_cores
from ml_filter.scoring.ray_workers import RayWorkers
from ml_filter.scoring.run import score_corpus
from ml_filter.scoring.shard import ScoringJob
from ml_filter.scoring.workers import Event, LocalWorkers, Workers, score_with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a text")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--characters", type=int, default=500, help="of a document")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    configure_logging(level="WARNING")
    with tempfile.TemporaryDirectory() as directory:
        corpus = SourceConfig(paths=[str(write_corpus(options, Path(directory) / "corpus"))])
        made = score_corpus(options.head, corpus, ScoreConfig(), Path(directory) / "one")
        ways: dict[str, tuple[ScoreConfig, Callable[..., Workers]]] = {
            "one process": (ScoreConfig(workers=1), LocalWorkers),
            "local processes": (ScoreConfig(workers=options.workers), LocalWorkers),
            "Ray": (ScoreConfig(workers=options.workers, ray=RAY_LOCAL), RayWorkers),
        }
        loading: dict[str, list[float]] = {name: [] for name in ways}
        scoring: dict[str, list[float]] = {name: [] for name in ways}
        working: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, (config, kind) in ways.items():
                output = Path(directory) / "out"
                timed, manifest = run(options.head, corpus, config, kind, output)
                assert manifest.digest == made.digest, f"{name} gave other bytes"
                loading[name].append(timed.loaded - timed.started)
                scoring[name].append(timed.ended - timed.loaded)
                working[name].append(timed.cpu_s)
                shutil.rmtree(output)

    print(
        f"{made.counts['read']} documents of {options.characters} characters, {options.shards} shards, "
        f"{options.workers} workers, {usable_cores()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; "
        "same bytes as one process"
    )
    print("| | documents/s | of the local processes' | documents/CPU s | of the local processes' | s until loaded |")
    print("|---|---|---|---|---|---|")
    for name in ways:
        line = f"| {name} |"
        for seconds in (scoring, working):
            rates = [made.counts["read"] / one for one in seconds[name]]
            ratios = [a / b for a, b in zip(seconds["local processes"], seconds[name], strict=True)]
            line += f" {spread(rates, ',.0f')} | {spread(ratios, '.0%')} |"
        print(f"{line} {statistics.median(loading[name]):.1f} |")


def spread(values: Sequence[float], form: str) -> str:
    """Median (smallest to largest)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def write_corpus(options: argparse.Namespace, directory: Path) -> Path:
    """Pieces of real texts, each piece once as long as there are enough, in shards of like size."""
    directory.mkdir()
    texts = [json.loads(line)["text"] for file in options.files for line in file.read_text().splitlines()]
    size = options.characters
    pieces = [text[start : start + size] for text in texts for start in range(0, max(1, len(text) - size + 1), size)]
    chosen = list(islice(cycle(piece for piece in pieces if piece.strip()), options.documents))
    for shard in range(options.shards):
        rows = [{"id": str(i), "text": chosen[i]} for i in range(shard, len(chosen), options.shards)]
        pq.write_table(pa.Table.from_pylist(rows), directory / f"part-{shard:03d}.parquet")
    return directory


class Timed(Workers):
    """Workers that get no shard before all of them are ready; measures the time between and the CPU time they use."""

    def __init__(self, workers: Workers) -> None:
        self.workers, self.count = workers, workers.count
        self.ready: list[Event] = []
        self.started = self.loaded = self.ended = self.cpu_s = 0.0

    def start(self, worker: int) -> None:
        self.workers.start(worker)

    def assign(self, worker: int, shard: InputShard) -> None:
        self.workers.assign(worker, shard)

    def events(self) -> Sequence[Event]:
        while True:
            events = list(self.workers.events())
            self.ended = time.perf_counter()
            if self.loaded:
                return events
            self.ready += events
            if len(self.ready) == self.count:
                self.loaded, self.cpu_s = time.perf_counter(), -cpu_seconds()
                return self.ready

    def stop(self) -> None:
        self.cpu_s += cpu_seconds()
        self.workers.stop()


def cpu_seconds() -> float:
    """What the workers that are alive have used so far."""
    found = 0.0
    for process in psutil.Process().children(recursive=True):
        line = " ".join(process.cmdline())
        if "spawn_main" in line or line.startswith("ray::ShardWorker"):
            times = process.cpu_times()
            found += times.user + times.system
    return found


def run(
    head: Path, source: SourceConfig, config: ScoreConfig, kind: Callable[..., Workers], output: Path
) -> tuple[Timed, Manifest]:
    shards, parents = list_shards(source)
    job = ScoringJob(str(head), source, config, str(output), tuple(shards), (*parents, fetch_head(head).parent))
    with job.directory() as out:
        started = time.perf_counter()
        timed = Timed(kind(job, out, config.workers))
        timed.started = started
        score_with(timed, shards, out, config.worker_attempts, lambda rows: None)
        return timed, finish(out, shards)


def finish(out: OutputDirectory, shards: Sequence[InputShard]) -> Manifest:
    results = [(shard.name, out.finished_shard(shard.name)) for shard in shards]
    return out.finish([(name, result) for name, result in results if result is not None])


if __name__ == "__main__":
    main()
