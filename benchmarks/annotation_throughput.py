"""Annotation throughput against a bare load generator, and memory for a growing number of documents.

Throughput: a server on loopback answers each request after one second. A bare aiohttp loop and `ml-filter annotate`
send it the same documents in turn, each in its own process, with up to 1,000 requests in flight. The rate is measured
at the server, from the first request to the last answer, and so includes the ramp-up of the annotator's concurrency.
The steady state is reported separately: from the moment 95% of the limit is in flight until the last document has been
sent.
Memory: the peak (VmHWM) of `ml-filter annotate` for a growing number of documents of about 3 kB.

    python benchmarks/annotation_throughput.py [--only throughput|memory]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from chat_server import PROMPT, Behaviour, ChatServer, write_documents


@dataclass
class Client:
    """What a client process cost, and how it ended."""

    started: float
    """On the clock of the server's log, like `ended`."""
    ended: float
    cpu_s: float
    peak_mib: float
    exit_code: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["throughput", "memory"])
    parser.add_argument("--documents", type=int, default=100_000, help="of a throughput run")
    parser.add_argument("--concurrency", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds until the server answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, default=1, help="processes of the server")
    parser.add_argument("--memory-documents", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--memory-latency", type=float, default=0.05)
    parser.add_argument("--memory-concurrency", type=int, default=200)
    parser.add_argument("--bare", metavar="URL", help="be the load generator (this script calls itself so)")
    parser.add_argument("--file", type=Path, help="the documents of --bare")
    options = parser.parse_args()
    if options.bare:
        asyncio.run(bare_load(options.bare, options.file, options.concurrency))
        return
    print(f"{os.cpu_count()} cores, load before the start {os.getloadavg()[0]:.1f}, aiohttp {aiohttp.__version__}\n")
    fast = options.only == "memory" or throughput(options)
    flat = options.only == "throughput" or memory(options)
    sys.exit(not (fast and flat))


def throughput(options: argparse.Namespace) -> bool:
    """Both clients in turn; whether the annotator reached 90% of the bare rate in each round."""
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents.jsonl"
        write_documents(documents, options.documents)
        figures, _ = one_run("bare", documents, 0.0, options)
        print(
            f"The server, {options.servers} process(es), without latency: {figures['total']:,.0f} answers/s, "
            f"{figures['server_ms']:.2f} ms of its CPU each\n"
        )
        print(
            "| round | client | start-up, s | ramp-up, s | peak in flight | answers/s, steady | answers/s, total "
            "| client's CPU, ms an answer | server's CPU, % of a core |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        runs: dict[str, list[dict[str, float]]] = {"bare": [], "ml-filter": []}
        for number in range(1, options.rounds + 1):
            for name, done in runs.items():
                figures, _ = one_run(name, documents, options.latency, options)
                done.append(figures)
                print(
                    f"| {number} | {name} | {figures['start_up']:.1f} | {figures['ramp_up']:.1f} | "
                    f"{figures['peak']:,.0f} | {figures['steady']:,.0f} | {figures['total']:,.0f} | "
                    f"{figures['client_ms']:.2f} | {100 * figures['server_busy']:.0f} |",
                    flush=True,
                )
    print()
    ratios = {
        rate: [ours[rate] / bare[rate] for bare, ours in zip(runs["bare"], runs["ml-filter"], strict=True)]
        for rate in ("steady", "total")
    }
    for rate, of in ratios.items():
        print(
            f"ml-filter over bare, {rate}: {min(of):.3f} (min), {statistics.median(of):.3f} (median), "
            f"{max(of):.3f} (max) of {options.rounds} rounds"
        )
    print("wanted: 0.90 in total, in each round\n")
    return min(ratios["total"]) >= 0.9


def memory(options: argparse.Namespace) -> bool:
    """The annotator over ever more documents; whether its peak stays within 10% of the first."""
    print(
        "| documents | MB of text | peak RSS, MiB | over the first, % | answers/s, total | client's CPU, ms an answer |"
    )
    print("|---|---|---|---|---|---|")
    peaks: list[float] = []
    for count in options.memory_documents:
        with tempfile.TemporaryDirectory() as folder:
            documents = Path(folder) / "documents.jsonl"
            write_documents(documents, count)
            options.concurrency = options.memory_concurrency
            figures, client = one_run("ml-filter", documents, options.memory_latency, options)
            size = documents.stat().st_size / 1e6
        peaks.append(client.peak_mib)
        print(
            f"| {count:,} | {size:,.0f} | {client.peak_mib:.0f} | {100 * (client.peak_mib / peaks[0] - 1):+.1f} | "
            f"{figures['total']:,.0f} | {figures['client_ms']:.2f} |",
            flush=True,
        )
    print()
    return max(peaks) < 1.1 * peaks[0]


def one_run(
    name: str, documents: Path, latency_s: float, options: argparse.Namespace
) -> tuple[dict[str, float], Client]:
    """One client over all documents against a fresh server."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "benchmark.yaml").write_text(PROMPT)
        with ChatServer(Behaviour(latency_s=latency_s), scratch, options.servers) as server:
            own = [sys.executable, __file__, "--bare", server.url, "--file", str(documents)]
            own += ["--concurrency", str(options.concurrency)]
            ours = [sys.executable, "-m", "ml_filter.cli", "annotate", str(documents), "--endpoint", server.url]
            ours += ["--prompt", str(scratch / "benchmark.yaml"), "--model", "m", "--output", str(scratch / "out")]
            ours += ["--max-concurrency", str(options.concurrency)]
            before = server.cpu_s()
            client = watch(own if name == "bare" else ours, scratch / "said.txt")
            server_s = server.cpu_s() - before
            if client.exit_code:
                sys.exit(f"{name} ended with {client.exit_code}: {(scratch / 'said.txt').read_text()[-2000:]}")
            return figures_of(server.events(), client, server_s, options.concurrency), client


def watch(command: list[str], said: Path) -> Client:
    """Run a process to its end."""
    started = time.monotonic()
    with said.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    status = Path(f"/proc/{process.pid}/status")
    peak_kib = 0
    while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        # Not ru_maxrss: it starts with what this process had when it forked.
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        peak_kib = max(peak_kib, *map(int, peaks)) if peaks else peak_kib
        time.sleep(0.05)
    ended = time.monotonic()
    _, code, usage = os.wait4(process.pid, 0)
    return Client(started, ended, usage.ru_utime + usage.ru_stime, peak_kib / 1024, os.waitstatus_to_exitcode(code))


def figures_of(events: list[dict[str, Any]], client: Client, server_s: float, concurrency: int) -> dict[str, float]:
    """Rates a second from the server's log; `ramp_up` is the time from the first request to 95% of the limit."""
    first = last = full = events[0]["time"]
    in_flight = peak = 0
    answered: list[float] = []
    for event in events:
        asked = event["event"] == "asked"
        in_flight += 1 if asked else -1
        if asked:
            last = event["time"]
        else:
            answered.append(event["time"])
        if peak < 0.95 * concurrency <= in_flight:
            full = event["time"]
        peak = max(peak, in_flight)
    steady = sum(full < moment <= last for moment in answered) / (last - full) if peak >= 0.95 * concurrency else 0.0
    return {
        "start_up": first - client.started,
        "ramp_up": full - first,
        "peak": peak,
        "steady": steady,
        "total": len(answered) / (answered[-1] - first),
        "client_ms": 1000 * client.cpu_s / len(answered),
        "server_ms": 1000 * server_s / len(answered),
        "server_busy": server_s / (answered[-1] - first),
    }


async def bare_load(url: str, file: Path, concurrency: int) -> None:
    """Keep `concurrency` requests in flight until every document has its answer; do nothing with the answers."""

    async def work(session: aiohttp.ClientSession, lines: Iterator[str]) -> None:
        for line in lines:
            message = {"role": "user", "content": json.loads(line)["text"]}
            body = {"model": "m", "messages": [message], "max_tokens": 64, "logprobs": True, "top_logprobs": 5}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.read()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        with file.open() as lines:
            await asyncio.gather(*(work(session, lines) for _ in range(concurrency)))


if __name__ == "__main__":
    main()
