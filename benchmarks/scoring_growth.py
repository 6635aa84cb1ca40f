"""Memory and time of scoring for a growing corpus: memory should be flat, time linear.

The corpus is one Parquet shard of passages of real documents. The command runs in a separate process; peak resident
memory is VmHWM of that process.

    python benchmarks/scoring_growth.py HEAD_DIR ../shared/data/*.jsonl [--sizes 10000 100000 1000000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCORE = """
import sys
from ml_filter.cli import main
try:
    code = main()
finally:
    [peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print("peak", peak, file=sys.stderr)
sys.exit(code)
"""
ROWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a text")
    parser.add_argument("--characters", type=int, default=500, help="of a passage")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for file in options.files for line in file.read_text().splitlines()]
    size = options.characters
    pieces = [text[start : start + size] for text in texts for start in range(0, len(text), size)]
    print("| documents | s | documents/s | peak memory, MB |")
    print("|---|---|---|---|")
    for count in options.sizes:
        with tempfile.TemporaryDirectory(prefix="ml_filter-growth-") as directory:
            corpus = Path(directory) / "corpus.parquet"
            write(corpus, pieces, count)
            started = time.perf_counter()
            command = ["score", str(options.head), str(corpus), "--output", f"{directory}/out"]
            done = subprocess.run([sys.executable, "-c", SCORE, *command], capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - started
            if done.returncode:
                sys.exit(done.stderr)
            peak = int(done.stderr.split("peak ")[-1].split()[0]) / 1024
            print(f"| {count:,} | {seconds:.1f} | {count / seconds:,.0f} | {peak:,.0f} |", flush=True)


def write(path: Path, pieces: list[str], count: int) -> None:
    with pq.ParquetWriter(path, pa.schema([("id", pa.string()), ("text", pa.string())])) as writer:
        passages = islice(cycle(pieces), count)
        for start in range(0, count, ROWS):
            part = list(islice(passages, ROWS))
            ids = [str(start + place) for place in range(len(part))]
            writer.write_table(pa.table({"id": ids, "text": part}))


if __name__ == "__main__":
    main()
