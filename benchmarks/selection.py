"""Is a token budget met in every quota, and is memory flat for a growing corpus?

Budget: scored documents made of passages of real web texts in four languages. Prints the tokens kept for each
language, the tokens it was entitled to, and those of the next document in its ranking, which this script finds by
sorting.
Memory: peak resident memory (VmHWM) for growing numbers of documents with scores and token counts, next to that of a
process that loads and sorts the same columns with Arrow.

    python benchmarks/selection.py ../shared/data [--documents 200000] [--sizes 20000 200000 1000000]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.manifest import Manifest, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.prepare.tokens import TokenCounter
from ml_filter.selection.measure import id_hashes

FILES = {
    "eng": "fineweb_edu_llm_scored_1000",
    "deu": "fineweb2_deu_Latn",
    "spa": "fineweb2_spa_Latn",
    "srp": "fineweb2_srp_Cyrl",
}
SHARD = 10_000
MEASURED = """
import os, sys
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
try:
    {call}
finally:
    [peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print("peak", peak, file=sys.stderr)
"""
FILTER = "import sys; from ml_filter.cli import main; sys.exit(main())"
SORT = """import pyarrow.parquet as pq
    table = pq.read_table(sys.argv[1], columns=["id", "score", "language", "tokens"])
    table.take(table.sort_by([("language", "ascending"), ("score", "descending"), ("id", "ascending")])["tokens"])"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    options = parser.parse_args()
    texts = {
        language: [json.loads(line)["text"] for line in (options.data / f"{name}.jsonl").read_text().splitlines()]
        for language, name in FILES.items()
    }
    with tempfile.TemporaryDirectory(prefix="ml_filter-selection-") as name:
        check_budget(Path(name), texts, options.documents)
        check_memory(Path(name), texts, options.sizes)


def fragments(texts: dict[str, list[str]], count: int, longest: int) -> Iterator[dict[str, object]]:
    drawn = random.Random(count)  # noqa: S311
    weights = [8, 4, 2, 1]  # so that the languages are of different sizes
    for number in range(count):
        language = drawn.choices(list(FILES), weights)[0]
        text = drawn.choice(texts[language])
        start = drawn.randrange(max(1, len(text) - 40))
        piece = f"{text[start : start + drawn.randint(40, longest)].strip()} {number}"
        score = None if drawn.random() < 0.01 else round(drawn.betavariate(2, 4) * 5, 2)
        tokens = drawn.randint(50, 2000)
        yield {"id": f"doc-{number}", "text": piece, "language": language, "tokens": tokens, "score": score}


def write_scored(directory: Path, rows: Iterator[dict[str, object]]) -> Manifest:
    """Shards of 10,000 documents with a manifest, as ml-filter score writes them."""
    made = []
    with OutputDirectory(directory, "scored", {}, []) as out:
        while shard := [row for _, row in zip(range(SHARD), rows, strict=False)]:
            name = f"{len(made):05d}-part"
            with out.new_shard(name) as writer, out.new_rejects(name) as rejects:
                writer.write(pa.Table.from_pylist(shard))
            made.append((name, out.commit(name, writer, rejects, {"read": len(shard)})))
        return out.finish(made)


def run(call: str, *arguments: str) -> tuple[float, float]:
    """Peak memory in MB and seconds of a process."""
    started = time.monotonic()
    command = [sys.executable, "-c", MEASURED.format(call=call), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stderr.rsplit("peak ", 1)[1]) / 1024, time.monotonic() - started


def check_budget(directory: Path, texts: dict[str, list[str]], documents: int) -> None:
    scored = write_scored(directory / "scored", fragments(texts, documents, 600))
    budget = documents * 50
    output = str(directory / "filtered")
    options = ("--token-budget", str(budget), "--quota", "language", "--output", output)
    peak, seconds = run(FILTER, "filter", scored.root, *options)
    filtered = read_manifest(output)
    counter = TokenCounter()
    kept: dict[str, list[str]] = {language: [] for language in FILES}
    kept_ids = set()
    for path in filtered.shard_paths():
        for row in pq.read_table(path, columns=["id", "text", "language"]).to_pylist():
            kept[row["language"]].append(row["text"])
            kept_ids.add(row["id"])
    following = next_documents(scored, kept_ids)
    print(f"{documents:,} documents, budget {budget:,} tokens, {seconds:.0f} s, {peak:.0f} MB")
    print("| language | tokens there are | quota | after redistribution | kept, counted again | next document |")
    print("|---|---|---|---|---|---|")
    for row in filtered.config["selection"]["quota"]["largest"]:
        tokens = int(counter.count(kept[row["value"]]).sum())
        after = following.get(row["value"])
        size = int(counter.count([after])[0]) if after is not None else None
        assert tokens == row["kept_tokens"] <= row["budget"]
        assert size is None or tokens + size > row["budget"]
        figures = " | ".join(f"{row[name]:,}" for name in ("tokens", "quota", "budget"))
        print(f"| {row['value']} | {figures} | {tokens:,} | {'none' if size is None else size} |")
    total = filtered.counts["tokens_kept"]
    print(f"kept {total:,} tokens of {budget:,} in {filtered.rows:,} documents\n", flush=True)


def next_documents(scored: Manifest, kept: set[str]) -> dict[str, str]:
    """The text of the best document of each language that is not kept, by a plain sort."""
    best: dict[str, tuple[tuple[float, list[int]], str]] = {}
    for path in scored.shard_paths():
        for row in pq.read_table(path).to_pylist():
            if row["score"] is None or row["id"] in kept:
                continue
            key = (-row["score"], id_hashes([row["id"]], 0)[0].tolist())
            if row["language"] not in best or key < best[row["language"]][0]:
                best[row["language"]] = (key, row["text"])
    return {language: text for language, (_, text) in best.items()}


def check_memory(directory: Path, texts: dict[str, list[str]], sizes: list[int]) -> None:
    print("| documents | ml-filter filter: peak MB | s | loaded and sorted with Arrow: peak MB | s |")
    print("|---|---|---|---|---|")
    for size in sizes:
        scored = write_scored(directory / f"scored-{size}", fragments(texts, size, 60))
        options = ("--token-budget", str(size * 250), "--quota", "language", "--token-column", "tokens")
        ours = run(FILTER, "filter", scored.root, *options, "--output", str(directory / f"filtered-{size}"))
        theirs = run(SORT, f"{scored.root}/shards")
        print(f"| {size:,} | {ours[0]:.0f} | {ours[1]:.0f} | {theirs[0]:.0f} | {theirs[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
