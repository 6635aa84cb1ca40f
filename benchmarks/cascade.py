"""Does a cascade keep its guarantee on unseen documents, and how does the size of its sample matter?

Real documents are cut into passages, because thousands are needed. The cascade samples passages of one half of the
documents; the head and the cascade score passages of the other half, and their decisions are compared. Each passage
counts as a document with its own encoder score; labels are not used.

    python benchmarks/cascade.py HEAD_DIR ../shared/data/*.jsonl [--characters 1000] [--first-stages hashing static]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError
from ml_filter.heads.kinds import load_head
from ml_filter.logs import configure_logging
from ml_filter.scoring.cascade import build_cascade
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.statistics.intervals import exact_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a text")
    parser.add_argument("--characters", type=int, default=1000, help="of a passage")
    parser.add_argument("--first-stages", nargs="+", default=["hashing", "static"])
    parser.add_argument("--samples", type=int, nargs="+", default=[1500, 4000])
    parser.add_argument("--threshold", type=float, help="unset: the head's")
    parser.add_argument("--max-changed", type=float, default=0.01)
    options = parser.parse_args()
    configure_logging(level="WARNING")
    seen, urls, unseen = passages(options)
    print(
        f"{len(seen):,} passages to sample from, {len(unseen):,} of other documents; at most {options.max_changed:.0%}"
    )
    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory) / "seen.parquet"
        pq.write_table(pa.table({"text": seen, "url": urls}), corpus)
        encoder, started = load_head(options.head, ScoreConfig()), time.perf_counter()
        exact = encoder.score(unseen)[:, 0]
        alone = time.perf_counter() - started
        threshold = options.threshold or encoder.info.criteria[0].threshold
        print(f"kept by the head from {threshold:g} upwards: {(exact >= threshold).mean():.2%}")
        print(
            "| first stage | sample | promised, at most | settled | changed on unseen ones (95% interval) | speed-up |"
        )
        print("|---|---|---|---|---|---|")
        for first_stage in options.first_stages:
            for sample in options.samples:
                config = CascadeConfig(
                    first_stage=first_stage,
                    sample=sample,
                    threshold=threshold,
                    max_changed=options.max_changed,
                    audit_share=0,
                )
                try:
                    cascade = build_cascade(
                        options.head,
                        SourceConfig(paths=[str(corpus)]),
                        config,
                        ScoreConfig(),
                        Path(directory) / f"{first_stage}-{sample}",
                    )
                except InputError as error:
                    print(f"| {first_stage} | {sample:,} | {error} | | | |")
                    continue
                engine, started = load_head(cascade.origin, ScoreConfig()), time.perf_counter()
                judged = engine.score_with_details(unseen)
                seconds = time.perf_counter() - started
                changed = int(((judged.scores[:, 0] >= threshold) != (exact >= threshold)).sum())
                low, high = exact_interval(changed, len(unseen), 0.95)
                print(
                    f"| {first_stage} | {sample:,} | {engine.cascade.bound:.2%} "
                    f"| {judged.counts['by_student'] / len(unseen):.1%} "
                    f"| {changed / len(unseen):.2%} ({low:.2%} to {high:.2%}) | {alone / seconds:.1f} |",
                    flush=True,
                )


def passages(options: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Pieces of the documents of one half, the document of each as its host, and pieces of the other half."""
    rows = [row for file in options.files for row in file.read_text().splitlines()]
    texts = [text for row in rows if (text := json.loads(row).get("text"))]
    order = np.random.default_rng(0).permutation(len(texts))
    halves: list[list[tuple[str, str]]] = []
    for half in np.array_split(order, 2):
        cut = [
            (texts[place][start : start + options.characters], f"https://document{place}.example/{start}")
            for place in half
            for start in range(0, len(texts[place]), options.characters)
        ]
        halves.append([(piece, url) for piece, url in cut if len(piece) > options.characters // 4])
    return [piece for piece, _ in halves[0]], [url for _, url in halves[0]], [piece for piece, _ in halves[1]]


if __name__ == "__main__":
    main()
