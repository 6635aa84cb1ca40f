"""How fast is scoring, against the loops that most people write?

Both baselines are plain loops in the style of the FineWeb-Edu classifier's script, in input order, padded to the
longest: (a) float32, batches of 32; (b) bfloat16 autocast, batches of 256. They score with what that script scores
with, a linear head on the last layer. The engine scores with the same head, and with ours. All sides score the same
real documents, in turn, in one process; figures are ratios of the same round. Cheap heads and cascades, made from the
same labels, stand beside it with `--also`. Cascades are measured on documents they never saw: there are as many as
files, each made from all files but one, which it scores. Stated are the largest difference of an encoder's scores to a
plain float32 loop of the same head, and the share of decisions at the threshold that differ from our head's.

    for k in 0 1 2 3 4; do awk -v k=$k 'NR % 5 == k' ../shared/data/*.jsonl > part-$k.jsonl; done
    ml-filter train LABELS --config last.yaml --output reference    # layers: 1, head: { kind: linear }
    ml-filter train LABELS --output head                            # and: --kind hashing, --kind static
    ml-filter cascade head part-[1234].jsonl --first-stage static --output cascade-0    # and so on
    python benchmarks/scoring.py reference head part-*.jsonl --cascades cascade-* --also hashing static
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ml_filter.heads.batching import token_ids
from ml_filter.heads.kinds import Head, load_head
from ml_filter.heads.kinds.encoder import EncoderHead
from ml_filter.heads.load import load_model
from ml_filter.scoring.config import ScoreConfig

KINDS = {"matrix products": ("linear", "addmm", "::mm", "bmm"), "attention": ("attention",)}
RUNS = (("torch", "float32"), ("torch", "bfloat16"), ("openvino", "bfloat16"))
A, B = "(a) float32, batches of 32", "(b) bfloat16 autocast, batches of 256"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="a linear head on the last layer")
    parser.add_argument("head", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a text")
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="HEAD")
    parser.add_argument("--cascades", type=Path, nargs="*", default=[], metavar="CASCADE", help="one for each file")
    parser.add_argument("--engine", default="openvino", help="of the cascades")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="WORDS", help="leave out ways with these in the name"
    )
    options = parser.parse_args()
    if options.cascades and len(options.cascades) != len(options.files):
        parser.error("give one cascade for each file, made from the other files")
    torch.set_num_threads(options.threads)
    rows = [(number, row) for number, file in enumerate(options.files) for row in file.read_text().splitlines()]
    found = [(number, text) for number, row in rows if (text := json.loads(row).get("text"))]
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[: options.documents])
    files, texts = zip(*(found[place] for place in chosen), strict=True)

    reference, ours = load_model(options.reference), load_model(options.head)
    threshold = ours[0].config.info.criteria[0].threshold
    ways = [
        Way(A, options.reference.name, lambda of: plain(*reference, of, 32)),
        Way(B, options.reference.name, lambda of: plain(*reference, of, 256, torch.bfloat16)),
    ]
    engines: dict[str, EncoderHead] = {}
    heads = (("the same head", options.reference), ("our head", options.head))
    for (whose, head), (runs, dtype) in itertools.product(heads, RUNS):
        name = f"{runs}, {whose}, {dtype}"
        if not any(words in name for words in options.without):
            engines[name] = EncoderHead(*load_model(head), ScoreConfig(engine=runs, dtype=dtype, device="cpu"))
            ways.append(Way(name, head.name, engines[name].score))
    cheap = ScoreConfig(engine=options.engine, device="cpu")
    ways += [Way(head.name, None, load_head(head, cheap).score) for head in options.also]
    if options.cascades:
        cascades = [load_head(cascade, cheap) for cascade in options.cascades]
        ways.append(Way("cascade", None, lambda of: score_unseen(cascades, files[: len(of)], of)))

    scores, seconds = timed(ways, texts, options.rounds)
    print(
        f"{len(texts)} documents, {options.threads} threads, {options.rounds} rounds, torch {torch.__version__}, "
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    )
    exact = {options.reference.name: scores[A], options.head.name: plain(*ours, texts, 32)[:, 0]}
    decided = exact[options.head.name] >= threshold
    print("| | documents/s | over (a) | over (b) | largest score difference | decisions that differ |")
    print("|---|---|---|---|---|---|")
    for way in ways:
        made = scores[way.name]
        cells = [f"{len(texts) / statistics.median(seconds[way.name]):,.1f}"]
        cells += [f"{statistics.median(of_ratios(seconds[base], seconds[way.name])):.2f}" for base in (A, B)]
        cells.append(f"{np.abs(made - exact[way.head]).max():.4f}" if way.head else "")
        cells.append("" if way.head == options.reference.name else f"{((made >= threshold) != decided).mean():.2%}")
        print(f"| {way.name} | {' | '.join(cells)} |")
    for name, engine in engines.items():
        print_bounds(name, engine, texts, statistics.median(seconds[name]))


@dataclass(frozen=True)
class Way:
    """A way to score: its name, the head whose exact scores it should give, if any, and what gives them."""

    name: str
    head: str | None
    score: Callable[[Sequence[str]], np.ndarray]


def timed(
    ways: Sequence[Way], texts: Sequence[str], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Scores of each way, and its seconds in each round."""
    for way in ways:
        way.score(texts[:64])
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            start = time.perf_counter()
            scores[way.name] = way.score(texts)[:, 0]
            seconds[way.name].append(time.perf_counter() - start)
            print(f"{way.name}: {seconds[way.name][-1]:.1f} s", file=sys.stderr)
    return scores, seconds


def score_unseen(engines: Sequence[Head], files: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """Scores of each text by the engine of its file."""
    scores = np.empty((len(texts), 1), np.float32)
    for number, engine in enumerate(engines):
        places = [place for place, file in enumerate(files) if file == number]
        scores[places] = engine.score([texts[place] for place in places])
    return scores


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


def print_bounds(name: str, engine: EncoderHead, texts: Sequence[str], seconds: float) -> None:
    """How near the machine's own limits an engine is, what of its time is tokenising, and where the rest goes."""
    start = time.perf_counter()
    lengths = [len(ids) for ids in token_ids(texts, engine.tokenizer, 512)]
    tokenising = time.perf_counter() - start
    operations = sum(operations_of(engine.model, length) * lengths.count(length) for length in set(lengths))
    reached, peak = operations / seconds, matrix_peak(engine.dtype)
    print(
        f"{name}: {reached / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s that a large matrix product reaches "
        f"({reached / peak:.0%}); tokenising alone: {tokenising / seconds:.1%} of its time"
        + (f"; in torch: {shares_of(engine, texts[:200])}" if engine.name == "torch" else "")
    )


def shares_of(engine: EncoderHead, texts: Sequence[str]) -> str:
    """What of torch's time goes where."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        engine.score(texts)
    spent: dict[str, float] = {}
    for event in profile.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(part in event.key for part in names)), "other")
        spent[kind] = spent.get(kind, 0) + event.self_cpu_time_total
    return ", ".join(f"{kind} {spent.get(kind, 0) / sum(spent.values()):.0%}" for kind in [*KINDS, "other"])


def operations_of(model, length: int) -> int:
    """Floating-point operations of one text of `length` tokens."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.long))
    return counter.get_total_flops()


def matrix_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of the best of twenty products of large matrices."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def of_ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slower, faster, strict=True)]


if __name__ == "__main__":
    main()
