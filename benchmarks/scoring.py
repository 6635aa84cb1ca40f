"""How fast is scoring, against the loop that most people write?

The baseline is the plain loop in the style of the FineWeb-Edu classifier's script: float32, batches of 32 in input
order, padded to the longest. Both sides use the same head and documents, in turn, in one process; the figure is the
ratio of each pair.

    python benchmarks/scoring.py HEAD_DIR ../shared/data/fineweb_edu_llm_scored_1000.jsonl [--documents 1000]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ml_filter.heads.load import load_model
from ml_filter.scoring.engine import EncoderEngine
from ml_filter.settings import ScoreConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("documents_file", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = options.documents_file.read_text().splitlines()[: options.documents]
    texts = [json.loads(row)["text"] for row in rows]

    model, tokenizer = load_model(options.head)

    def plain() -> np.ndarray:
        made = []
        with torch.no_grad():
            for start in range(0, len(texts), 32):
                batch = tokenizer(
                    texts[start : start + 32], truncation=True, max_length=512, padding="longest", return_tensors="pt"
                )
                made.append(model(batch["input_ids"], batch["attention_mask"]).numpy())
        return np.clip(np.concatenate(made), 0, 5)

    ways: dict[str, Callable[[], np.ndarray]] = {"plain loop": plain}
    for dtype in ("float32", "bfloat16"):
        engine = EncoderEngine(*load_model(options.head), ScoreConfig(dtype=dtype, device="cpu"))
        ways[f"engine, {dtype}"] = lambda engine=engine: engine.score(texts)

    warm = texts
    texts = warm[:64]
    reference = {name: way() for name, way in ways.items()}
    texts = warm
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            reference[name] = way()
            seconds[name].append(time.perf_counter() - start)

    print(f"{len(texts)} documents, {options.threads} threads, torch {torch.__version__}, {platform.machine()}")
    print("| | documents/s, median | over the plain loop: median (min to max) | largest score difference |")
    print("|---|---|---|---|")
    for name in ways:
        ratios = [a / b for a, b in zip(seconds["plain loop"], seconds[name], strict=True)]
        difference = np.abs(reference[name] - reference["plain loop"]).max()
        print(
            f"| {name} | {len(texts) / statistics.median(seconds[name]):.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {difference:.4f} |"
        )


if __name__ == "__main__":
    main()
