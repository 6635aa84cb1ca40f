"""Scoring, filtering and reporting a corpus that grew from five files to seven, against the seven from nothing.

Both sides run in this process with the same head and end with the same bytes; each step is timed. Rounds alternate.

    python benchmarks/growing.py HEAD_DIR ../shared/data/*.jsonl [--documents 200] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.store import read_head
from ml_filter.logs import configure_logging
from ml_filter.reporting.run import write_run_report
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus

STEPS = ("score", "filter", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a text")
    parser.add_argument("--documents", type=int, default=200, help="in each file")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    configure_logging(level="WARNING")
    lines = cycle(line for file in options.files for line in file.read_text(encoding="utf-8").splitlines())
    texts = (json.loads(line)["text"] for line in lines)
    files = [pa.table({"text": list(islice(texts, options.documents))}) for _ in range(7)]
    ratios: dict[str, list[float]] = {step: [] for step in (*STEPS, "all")}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as directory:
            corpus = Path(directory) / "corpus"
            corpus.mkdir()
            for number in (0, 1, 3, 5, 6):
                pq.write_table(files[number], corpus / f"{number}.parquet")
            run(options.head, corpus, Path(directory) / "grown")
            for number in (2, 4):
                pq.write_table(files[number], corpus / f"{number}.parquet")
            grown, digests = run(options.head, corpus, Path(directory) / "grown")
            at_once, expected = run(options.head, corpus, Path(directory) / "at-once")
            assert digests == expected, "other bytes"
            print({step: f"{grown[step]:.2f} of {at_once[step]:.2f} s" for step in STEPS})
            for step in STEPS:
                ratios[step].append(grown[step] / at_once[step])
            ratios["all"].append(sum(grown.values()) / sum(at_once.values()))
    for step, values in ratios.items():
        print(
            f"{step}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) of the time from nothing"
        )


def run(head: Path, corpus: Path, output: Path) -> tuple[dict[str, float], list[str]]:
    """Seconds of each step, and the digests of all shards."""
    started = time.perf_counter()
    scored = score_corpus(head, SourceConfig(paths=[str(corpus)]), ScoreConfig(), output / "scored")
    times = [time.perf_counter()]
    filtered = filter_corpus(SourceConfig(paths=[scored.root]), FilterConfig(min_score=1.5), output / "filtered")
    times.append(time.perf_counter())
    write_run_report(read_head(head), scored, filtered)
    times.append(time.perf_counter())
    seconds = [end - start for start, end in zip([started, *times], times, strict=False)]
    return dict(zip(STEPS, seconds, strict=True)), [shard.digest for shard in (*scored.shards, *filtered.shards)]


if __name__ == "__main__":
    main()
