"""Does annotation lose, repeat or mix up answers when the server misbehaves and the run is killed?

Documents are annotated by the real command against a server that answers one request in ten with 500, lets one in
twenty hang, sends one in twenty malformed, and truncates, resets or rejects (429) some more. One document in fifty
never gets a usable answer, and half way through the server is down for a minute. The run is killed with SIGKILL at
seeded random points, the last one after all answers have arrived, and started again until it finishes. After each kill
the ledger is read: a document with a score in it must not be requested again. At the end every document must be in the
shards once, in input order, with the score that the server sent or the expected error code.

    python benchmarks/annotation_under_fire.py [--documents 2000] [--kills 6]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from chat_server import HOPELESS, PROMPT, Behaviour, ChatServer, Follow, score_of, write_documents

MAX_LIVES = 40


@dataclass
class Life:
    """One process of the annotator, from its start to its end; `number` is also the key that its requests show."""

    number: int
    end: str = ""
    seconds: float = 0.0
    scored: set[str] = field(default_factory=set)
    """Documents with a score in the ledger when it had ended."""
    failed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.3, help="seconds until the server answers")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds that the client waits for an answer")
    parser.add_argument("--dead", type=float, default=60.0, help="seconds that the server is dead")
    options = parser.parse_args()
    behaviour = Behaviour(
        latency_s=options.latency,
        seed=options.seed,
        server_error=0.10,
        hang=0.05,
        malformed=0.05,
        cut_off=0.02,
        reset=0.03,
        rate_limited=0.01,
        hopeless=0.02,
        dead_after=options.documents // 2,
        dead_s=options.dead,
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ids = write_documents(scratch / "documents.jsonl", options.documents)
        (scratch / "benchmark.yaml").write_text(PROMPT)
        with ChatServer(behaviour, scratch) as server:
            lives = live_until_done(scratch, server, options)
            events = server.events()
        problems = report(ids, lives, events, behaviour, options, scratch / "annotations")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


def live_until_done(scratch: Path, server: ChatServer, options: argparse.Namespace) -> list[Life]:
    """Start the annotator again and again, killing it at random, until it says that it is done."""
    draw = random.Random(options.seed)  # noqa: S311
    # After a random number of answers in each life, plus a random moment: how long that takes is the machine's matter.
    points = [0, *sorted(draw.sample(range(1, options.documents * 3 // 4), options.kills))]
    kill_after = [after - before for before, after in pairwise(points)]
    command = [sys.executable, "-m", "ml_filter.cli", "annotate", str(scratch / "documents.jsonl")]
    command += ["--prompt", str(scratch / "benchmark.yaml"), "--endpoint", server.url, "--model", "m"]
    command += ["--max-concurrency", str(options.concurrency), "--timeout", str(options.timeout)]
    command += ["--output", str(scratch / "annotations")]
    follow = Follow(server.folder / "server0.jsonl")
    found_in = scratch / "annotations" / "ledger.sqlite"
    answered: set[str] = set()
    lives: list[Life] = []
    killed_at_end = False
    while (not lives or lives[-1].end != "exit 0") and len(lives) < MAX_LIVES:
        life = Life(len(lives) + 1)
        before = len(answered)
        again = ["--retry-failed"] if lives and lives[-1].end == "exit 1" else []
        environment = {**os.environ, "ML_FILTER_API_KEY": f"life-{life.number:04d}"}
        start = time.monotonic()
        with (scratch / f"life{life.number}.txt").open("w") as said:
            process = subprocess.Popen([*command, *again], env=environment, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                answered.update(event["document"] for event in follow if event["event"] == "answered")
                if kill_after and len(answered) - before >= kill_after[0]:
                    time.sleep(draw.uniform(0, 0.1))
                    process.kill()
                    kill_after.pop(0)
                    break
                if not kill_after and not killed_at_end and len(ledger(found_in)) == options.documents:
                    time.sleep(draw.uniform(0, 0.2))  # while the shards are written, or just after
                    process.kill()
                    killed_at_end = True
                    break
                time.sleep(0.01)
        finally:
            process.kill()
            code = process.wait()
        life.seconds = time.monotonic() - start
        life.end = "SIGKILL" if code < 0 else f"exit {code}"
        found = ledger(found_in)
        life.scored = {document for document, status in found.items() if status == "scored"}
        life.failed = len(found) - len(life.scored)
        lives.append(life)
        if code > 0:
            print((scratch / f"life{life.number}.txt").read_text()[-2000:], file=sys.stderr)
    return lives


def ledger(path: Path) -> dict[str, str]:
    """Document -> status, as a process that opens the ledger after a kill finds it."""
    if not path.exists():
        return {}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        try:
            return dict(database.execute("SELECT document_id, status FROM answers"))
        except sqlite3.OperationalError:  # killed before it had made the table
            return {}


def report(
    ids: Sequence[str],
    lives: Sequence[Life],
    events: Sequence[dict[str, Any]],
    behaviour: Behaviour,
    options: argparse.Namespace,
    output: Path,
) -> list[str]:
    """Print what happened; gives what must not have."""
    asked = [event for event in events if event["event"] == "asked"]
    paid = [event for event in events if event["event"] == "answered" and event["kind"] == "good"]
    print("| life | ended by | seconds | requests | scored in the ledger | failed in it | answered, not recorded |")
    print("|---|---|---|---|---|---|---|")
    repeated = lost = 0
    finished: set[str] = set()
    for life in lives:
        name = f"life-{life.number:04d}"
        requests = [event["document"] for event in asked if event["life"] == name]
        repeated += sum(document in finished for document in requests)
        finished |= life.scored
        unrecorded = sum(event["life"] == name and event["document"] not in life.scored for event in paid)
        lost += unrecorded
        print(
            f"| {life.number} | {life.end} | {life.seconds:.1f} | {len(requests):,} | {len(life.scored):,} | "
            f"{life.failed:,} | {unrecorded} |"
        )
    rows = written_rows(output)
    failed = [row for row in rows if row["status"] == "failed"]
    codes = Counter(row["error"] for row in failed)
    hopeless = {name: HOPELESS[kind] for name in ids if (kind := behaviour.kind(name, 1)) in HOPELESS}
    kills = sum(life.end == "SIGKILL" for life in lives)
    kinds = Counter(event["kind"] for event in asked)
    dead = [event["time"] for event in events if event["event"] in ("dead", "alive")]
    figures = {
        "documents": len(ids),
        "kills": kills,
        "requests": len(asked),
        **{f"requests that got {kind}": count for kind, count in kinds.most_common()},
        "server dead, s": round(dead[1] - dead[0], 1) if len(dead) == 2 else 0,
        "rows": len(rows),
        "rows scored": len(rows) - len(failed),
        **{f"rows failed: {code}": count for code, count in codes.most_common()},
        "finished calls asked again": repeated,
        "answers written whole to a client that ended before it recorded them": lost,
        "other answers written whole to a question that had been answered before": len(paid) - len(finished) - lost,
        "wall time, s": round(sum(life.seconds for life in lives), 1),
    }
    print("\n| | |\n|---|---|")
    for name, figure in figures.items():
        print(f"| {name} | {figure:,} |")
    checks = {
        f"the last life ended with {lives[-1].end}": lives[-1].end == "exit 0",
        f"only {kills} kills": kills >= options.kills,
        "the server was not dead for as long as asked": len(dead) == 2 and dead[1] - dead[0] >= options.dead,
        f"{repeated} finished calls were asked again": repeated == 0,
        "documents are missing, doubled or out of order": [row["document_id"] for row in rows] == list(ids),
        "a scored row has another score than the server gave": all(
            row["score"] == score_of(row["document_id"]) for row in rows if row["status"] == "scored"
        ),
        "a failed row has a score or no error code": all(row["error"] and row["score"] is None for row in failed),
        "a hopeless document has another error than its own": {
            row["document_id"]: row["error"] for row in failed if row["document_id"] in hopeless
        }
        == hopeless,
    }
    return [problem for problem, passed in checks.items() if not passed]


def written_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of all shards, as the manifest lists them."""
    import pyarrow.parquet as pq

    manifest = output / "manifest.json"
    if not manifest.exists():
        return []
    shards = json.loads(manifest.read_text())["shards"]
    return [row for shard in shards for row in pq.read_table(output / shard["path"]).to_pylist()]


if __name__ == "__main__":
    main()
