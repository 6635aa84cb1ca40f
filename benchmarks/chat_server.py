"""A chat completion server on loopback that misbehaves as requested and logs every request.

It serves `/v1/models` and `/v1/chat/completions`, answers after a fixed time, and picks faults by a seeded hash of
document and attempt. It runs as a separate process that ends with its parent. `write_documents` writes the documents
to send; each contains its own name.

Each line of the log is an event: `asked` (a whole request was read; `kind` is the response it will get), `answered` (a
well-formed response was sent in full), `dead` and `alive` (the listening socket and all connections were closed; it
was opened again). `life` is the API key of the request: each start of a client uses another key.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "fineweb_edu_llm_scored_1000.jsonl"
PROMPT = """\
name: benchmark
criterion: educational_value
language: en
score: {min: 0, max: 5}
system: You judge web pages.
text: "How educational is this page, from 0 to 5?\\n\\n{text}\\n\\nEnd with: Score: <0 to 5>"
pattern: '(?i)score\\W{0,4}(\\d+)'
max_tokens: 64
top_logprobs: 5
"""
HOPELESS = {"no_score": "unparsable_score", "wrong_score": "out_of_range", "too_long": "context_too_long"}
"""What a hopeless document gets each time -> the error code that its annotation must have."""
_MARK = re.compile(rb"page-(\d{7})")
_LIFETIME_S = 4 * 3600


@dataclass(frozen=True)
class Behaviour:
    """What the server does; all but the times are shares of the requests, `hopeless` of the documents."""

    latency_s: float = 0.0
    seed: int = 0
    server_error: float = 0.0
    hang: float = 0.0
    malformed: float = 0.0
    cut_off: float = 0.0
    reset: float = 0.0
    rate_limited: float = 0.0
    hopeless: float = 0.0
    dead_after: int = 0
    """Answers until it dies, once; 0: never."""
    dead_s: float = 0.0

    def kind(self, document: str, attempt: int) -> str:
        """What the n-th request about a document gets: `good`, a fault, or a way to be hopeless."""
        if self.draw(document, "hopeless") < self.hopeless:
            return list(HOPELESS)[int(self.draw(document, "way") * len(HOPELESS))]
        left = self.draw(document, attempt)
        for fault in ("server_error", "hang", "malformed", "cut_off", "reset", "rate_limited"):
            left -= getattr(self, fault)
            if left < 0:
                return fault
        return "good"

    def draw(self, *what: object) -> float:
        """A number in [0, 1) that depends on the seed and on `what` alone."""
        digest = hashlib.blake2b(repr((self.seed, *what)).encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64


def write_documents(path: Path, count: int, characters: int = 3000) -> list[str]:
    """A JSONL file of `count` pieces of real text, each starting with its mark; gives their ids in order."""
    if SHARED.exists():
        texts = [json.loads(line)["text"] for line in SHARED.read_text().splitlines()]
    else:
        from ml_filter.documents.readers.installed import read_installed

        texts = [row["text"] for row in islice(read_installed(), 1000)]
    corpus = "\n\n".join(texts)
    starts = cycle(range(0, max(len(corpus) - characters, 1), 997))
    ids = [f"page-{number:07d}" for number in range(count)]
    with path.open("w") as file:
        for name, start in zip(ids, starts, strict=False):
            file.write(json.dumps({"id": name, "text": f"{name}\n{corpus[start : start + characters]}"}) + "\n")
    return ids


def score_of(document: str) -> int:
    """The score that the server gives a document, from 0 to 5."""
    return int(Behaviour().draw(document, "score") * 6)


def good_answer(document: str, *, logprobs: bool = True) -> dict[str, Any]:
    """A whole chat completion, with log-probabilities of its five tokens."""
    score = score_of(document)
    tokens = [f"{document} explains", " its subject.", "\n", "Score: ", str(score)]
    found = [{"token": t, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": -0.1}]} for t in tokens]
    found[-1]["top_logprobs"] = [{"token": str(s), "logprob": -1.0 * abs(s - score) - 0.5} for s in range(6)]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "".join(tokens)},
        "logprobs": {"content": found} if logprobs else None,
    }
    usage = {"prompt_tokens": 800, "completion_tokens": 12, "total_tokens": 812}
    return {"id": document, "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


def _malformed(document: str, which: float) -> bytes:
    """One of several answers with status 200 that are none."""
    answer = good_answer(document)
    whole = json.dumps(answer).encode()
    wrong_types = {**answer, "choices": {"message": [1, 2, 3]}}
    no_choice = {**answer, "choices": []}
    empty = {**answer, "choices": [{**answer["choices"][0], "message": {"role": "assistant", "content": ""}}]}
    bodies = [whole[: len(whole) // 3], *(json.dumps(body).encode() for body in (wrong_types, no_choice, empty)), b""]
    return [*bodies, b"<html><body>upstream</body></html>"][int(which * (len(bodies) + 1))]


# --- The process -----------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, behaviour: Behaviour, port: int, log: Path) -> None:
        self.behaviour, self.port = behaviour, port
        self.log = log.open("a", buffering=1)
        self.attempts: dict[str, int] = {}
        self.answered = 0
        self.dying: asyncio.Task[None] | None = None

    async def run(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        self.runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=600)
        await self.runner.setup()
        await self.open()
        print(self.port, flush=True)
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, over.set)  # nothing is ever written to it: it ends with the process that holds it
        loop.call_later(_LIFETIME_S, over.set)
        await over.wait()
        os._exit(0)

    async def open(self) -> None:
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port, backlog=4096, reuse_port=True)
        await self.site.start()
        self.port = self.runner.addresses[0][1]

    def note(self, event: str, life: str = "", document: str = "", kind: str = "") -> None:
        line = {"event": event, "time": time.monotonic(), "life": life, "document": document, "kind": kind}
        self.log.write(json.dumps(line) + "\n")

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 32768}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = json.loads(body)
        mark = _MARK.search(body)
        document = mark[0].decode() if mark else "?"
        life = request.headers.get("Authorization", "").removeprefix("Bearer ")
        attempt = self.attempts[document] = self.attempts.get(document, 0) + 1
        kind = self.behaviour.kind(document, attempt)
        self.note("asked", life, document, kind)
        await asyncio.sleep(3600 if kind == "hang" else self.behaviour.latency_s)
        if kind == "reset":
            _abort(request.transport)
            return web.Response()
        response = self.response(kind, document, attempt, logprobs=bool(asked.get("logprobs")))
        try:
            await response.prepare(request)
            if kind == "cut_off":
                await response.write(json.dumps(good_answer(document)).encode()[:100])
                _abort(request.transport)
                return response
            await response.write_eof()
        except ConnectionResetError:  # the client is gone
            return response
        if kind in ("good", "no_score", "wrong_score"):
            self.note("answered", life, document, kind)
            self.answered += 1
            if self.answered == self.behaviour.dead_after:
                self.dying = asyncio.create_task(self.die())
        return response

    def response(self, kind: str, document: str, attempt: int, *, logprobs: bool) -> web.StreamResponse:
        if kind == "cut_off":
            return web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        if kind == "server_error":
            return web.json_response({"error": {"message": "out of memory", "type": "server_error"}}, status=500)
        if kind == "rate_limited":
            error = {"error": {"message": "too many requests", "type": "rate_limit"}}
            return web.json_response(error, status=429, headers={"Retry-After": "1"})
        if kind == "too_long":
            message = "This model's maximum context length is 512 tokens; the request has 812"
            error = {"error": {"message": message, "type": "BadRequestError", "code": "context_length_exceeded"}}
            return web.json_response(error, status=400)
        if kind == "malformed":
            which = self.behaviour.draw(document, attempt, "malformed")
            return web.Response(body=_malformed(document, which), content_type="application/json")
        answer = good_answer(document, logprobs=logprobs)
        if kind != "good":
            said = "I would rather not judge it." if kind == "no_score" else "Score: 17"
            answer["choices"][0] |= {"message": {"role": "assistant", "content": said}, "logprobs": None}
        return web.json_response(answer)

    async def die(self) -> None:
        self.note("dead")
        await self.site.stop()
        for connection in self.runner.server.connections if self.runner.server else ():
            _abort(connection.transport)
        await asyncio.sleep(self.behaviour.dead_s)
        await self.open()
        self.note("alive")


def _abort(transport: Any) -> None:
    """Reset a connection, as a crashed peer does."""
    if transport is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


# --- The side that starts it -----------------------------------------------------------------------------------------


class ChatServer:
    """The server in `processes` processes on one port, within a `with` block; its log lies in `folder`."""

    def __init__(self, behaviour: Behaviour, folder: Path, processes: int = 1) -> None:
        self.behaviour, self.folder, self.count = behaviour, folder, processes
        self.processes: list[subprocess.Popen[str]] = []
        self.port = 0

    def __enter__(self) -> ChatServer:
        for number in range(self.count):
            argument = json.dumps(asdict(self.behaviour))
            command = [sys.executable, __file__, argument, str(self.port), str(self.folder / f"server{number}.jsonl")]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.processes.append(process)
            assert process.stdout is not None
            self.port = int(process.stdout.readline())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            process.communicate()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def cpu_s(self) -> float:
        """CPU time of its processes so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        stats = [Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split() for process in self.processes]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats) / ticks

    def events(self) -> list[dict[str, Any]]:
        """Everything that is in the logs, in the order of time."""
        found = [json.loads(line) for path in sorted(self.folder.glob("server*.jsonl")) for line in path.open()]
        return sorted(found, key=lambda event: event["time"])


class Follow:
    """The events of a log file that were written since the last look."""

    def __init__(self, path: Path) -> None:
        self._file = path.open()
        self._rest = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._rest += self._file.read()
        *lines, self._rest = self._rest.split("\n")
        return map(json.loads, lines)


if __name__ == "__main__":
    asyncio.run(_Server(Behaviour(**json.loads(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])).run())
