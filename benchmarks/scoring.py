"""How fast is scoring, against the loops that most people write?

Both baselines are plain loops in the style of the FineWeb-Edu classifier's script, in input order, padded to the
longest: (a) float32, batches of 32; (b) bfloat16 autocast, batches of 256. All sides score the same real documents, in
turn, in one process; figures are ratios of the same round. Cheap heads and cascades, made from the same labels, stand
beside it with `--also`; of them the share of decisions at the threshold that differ from the encoder's is stated.

    ml-filter train LABELS --output head                 # and: --engine hashing, --engine static
    ml-filter cascade head SAMPLE... --output cascade    # from other documents than those below
    python benchmarks/scoring.py head ../shared/data/*.jsonl [--also cascade hashing static] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ml_filter.heads.load import load_model
from ml_filter.heads.tokens import token_ids
from ml_filter.scoring.engine import EncoderEngine, load_engine
from ml_filter.settings import ScoreConfig

A, B = "(a) float32, batches of 32", "(b) bfloat16 autocast, batches of 256"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a text")
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="HEAD")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for file in options.files for row in file.read_text().splitlines()]
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[: options.documents])
    texts = [text for place in chosen if (text := json.loads(rows[place]).get("text"))]

    model, tokenizer = load_model(options.head)
    threshold = EncoderEngine(*load_model(options.head), ScoreConfig()).info.criteria[0].threshold
    ways: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
        A: lambda of: plain(model, tokenizer, of, 32),
        B: lambda of: plain(model, tokenizer, of, 256, torch.bfloat16),
    }
    for dtype in ("float32", "bfloat16"):
        engine = EncoderEngine(*load_model(options.head), ScoreConfig(dtype=dtype, device="cpu"))
        ways[f"encoder engine, {dtype}"] = engine.score
    for head in options.also:
        ways[head.name] = load_engine(head, ScoreConfig(device="cpu")).score

    for way in ways.values():
        way(texts[:64])
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way(texts)[:, 0]
            seconds[name].append(time.perf_counter() - start)
    print(
        f"{len(texts)} documents, {options.threads} threads, {options.rounds} rounds, torch {torch.__version__}, "
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    )
    print("| | documents/s | over (a) | over (b) | largest score difference to (a) | decisions that differ |")
    print("|---|---|---|---|---|---|")
    for name in ways:
        ratios = [f"{statistics.median(of_ratios(seconds[base], seconds[name])):.2f}" for base in (A, B)]
        differ = ((scores[name] >= threshold) != (scores[A] >= threshold)).mean()
        print(
            f"| {name} | {len(texts) / statistics.median(seconds[name]):,.1f} | {' | '.join(ratios)} "
            f"| {np.abs(scores[name] - scores[A]).max():.4f} | {differ:.2%} |"
        )
    print_bounds(model, tokenizer, texts, seconds)


def plain(model, tokenizer, texts: Sequence[str], batch: int, autocast: torch.dtype | None = None) -> np.ndarray:
    made = []
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        for start in range(0, len(texts), batch):
            encoded = tokenizer(
                list(texts[start : start + batch]),
                truncation=True,
                max_length=512,
                padding="longest",
                return_tensors="pt",
            )
            made.append(model(encoded["input_ids"], encoded["attention_mask"]).float().numpy())
    return np.clip(np.concatenate(made), 0, 5)


def print_bounds(model, tokenizer, texts: Sequence[str], seconds: dict[str, list[float]]) -> None:
    """How near the machine's own limits the encoder engine is, and how much of its time is tokenising."""
    start = time.perf_counter()
    lengths = [len(ids) for ids in token_ids(texts, tokenizer, 512)]
    tokenising = time.perf_counter() - start
    operations = sum(operations_of(model, length) * lengths.count(length) for length in set(lengths))
    for dtype in (torch.float32, torch.bfloat16):
        name = f"encoder engine, {str(dtype).removeprefix('torch.')}"
        reached = operations / statistics.median(seconds[name])
        peak = matrix_peak(dtype)
        print(
            f"{name}: {reached / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s that a large matrix product reaches "
            f"({reached / peak:.0%}); tokenising alone: {tokenising / statistics.median(seconds[name]):.1%} of its time"
        )


def operations_of(model, length: int) -> int:
    """Floating-point operations of one text of `length` tokens."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.long))
    return counter.get_total_flops()


def matrix_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of the best of five products of large matrices."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def of_ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slower, faster, strict=True)]


if __name__ == "__main__":
    main()
