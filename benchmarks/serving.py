"""What does batching documents of many clients gain, and what does it cost a single client?

Servers of the same head with `--max-batch` 1, 8 and 64 are queried in turn by 1, 8 and 64 clients; each client sends
its next document when it has its answer. Figures are medians over the rounds; ratios are against the first server in
the same round, with minimum and maximum. The server's CPU time shows the cost of a request independently of other load
on the machine. All servers get the same documents, so the largest difference of their scores is the effect of batching
on a score.

    python benchmarks/serving.py HEAD_DIR ../shared/data/fineweb_edu_llm_scored_1000.jsonl [--requests 192]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil


@dataclass
class Server:
    """One way of serving."""

    max_batch: int
    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Seconds of CPU since its start."""
        used = self.process.cpu_times()
        return float(used.user + used.system)


@dataclass
class Figures:
    """What a server gave over all rounds."""

    rates: list[float] = field(default_factory=list)
    """Requests a second, of each round."""
    cpu_ms: list[float] = field(default_factory=list)
    """The server's CPU time for a request, of each round."""
    seconds: list[float] = field(default_factory=list)
    """Of each request."""
    scores: dict[int, float] = field(default_factory=dict)
    """By document."""

    def quantile(self, share: float) -> float:
        """Milliseconds within which a share of the requests is answered."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("documents_file", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--max-batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=192, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--characters", type=int, help="of a document; the rest is cut off")
    parser.add_argument("--threads", default="1", help="of the encoder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    rows = options.documents_file.read_text().splitlines()[: options.requests]
    texts = [json.loads(row)["text"][: options.characters] for row in rows]
    common = ["--threads", options.threads, "--device", options.device, "--dtype", options.dtype]
    with ExitStack() as stack:
        servers = [stack.enter_context(served(options.head, most, *common)) for most in options.max_batch]
        for server in servers:
            asyncio.run(ask(server.url, texts[:32], 8, Figures()))
        length = sum(map(len, texts)) / len(texts)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {length:,.0f} characters a document")
        over = f"over max_batch {options.max_batch[0]}"
        print(f"| clients | max_batch | CPU, ms a request | {over} | requests/s | {over} | p50, ms | p99, ms |")
        print("|---|---|---|---|---|---|---|---|")
        differences = [compare(servers, texts, clients, options.rounds) for clients in options.clients]
    print(f"\nLargest difference of a document's score: {max(differences):.5f}")


def compare(servers: list[Server], texts: list[str], clients: int, rounds: int) -> float:
    """Ask the servers in turn, print a line for each; the largest difference of their scores."""
    made = [Figures() for _ in servers]
    for _ in range(rounds):
        for server, figures in zip(servers, made, strict=True):
            before = server.cpu_s()
            asyncio.run(ask(server.url, texts, clients, figures))
            figures.cpu_ms.append(1000 * (server.cpu_s() - before) / len(texts))
    first, *others = made
    for server, figures in zip(servers, made, strict=True):
        print(
            f"| {clients} | {server.max_batch} | {statistics.median(figures.cpu_ms):.1f} | "
            f"{ratio(figures.cpu_ms, first.cpu_ms)} | {statistics.median(figures.rates):.1f} | "
            f"{ratio(figures.rates, first.rates)} | {figures.quantile(0.5):.0f} | {figures.quantile(0.99):.0f} |",
            flush=True,
        )
    return max(abs(first.scores[place] - other.scores[place]) for other in others for place in first.scores)


def ratio(of: list[float], to: list[float]) -> str:
    """The ratio of each pair: median (min to max)."""
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


@contextmanager
def served(head: Path, max_batch: int, *options: str) -> Iterator[Server]:
    """A server in a process of its own."""
    command = [sys.executable, "-m", "ml_filter.cli", "serve", str(head), "--port", "0", "--timeout", "300"]
    command += ["--max-batch", str(max_batch), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        print(line, end="", file=sys.stderr)
        try:
            yield Server(max_batch, line.split(" is ready at ")[1].split()[0], psutil.Process(process.pid))
        finally:
            process.terminate()


async def ask(url: str, texts: list[str], clients: int, figures: Figures) -> None:
    """Put every text to a server once."""
    places = iter(range(len(texts)))

    async def work(session: aiohttp.ClientSession) -> None:
        for place in places:
            started = time.perf_counter()
            async with session.post(f"{url}/score", json={"text": texts[place]}) as response:
                response.raise_for_status()
                [document] = (await response.json())["documents"]
            figures.seconds.append(time.perf_counter() - started)
            figures.scores[place] = next(iter(document["scores"].values()))["score"]

    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work(session) for _ in range(clients)))
    figures.rates.append(len(texts) / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
