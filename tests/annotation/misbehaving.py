"""A real HTTP server on loopback that speaks OpenAI's JSON, well or as badly as a test asks."""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

PROMPT: dict[str, Any] = {
    "name": "short",
    "criterion": "educational_value",
    "language": "en",
    "score": {"min": 0, "max": 5},
    "text": "Judge this page:\n{text}\nEnd with: Score: <0 to 5>",
    "pattern": r"(?i)score\W{0,4}(\d+(?:[.,]\d+)?)",
}
"""A short prompt that asks for a score from 0 to 5."""


@dataclass(frozen=True)
class Request:
    """One request; a GET has no body. A document marks itself by `[id]`; `nth` counts the requests about it, from 1."""

    document: str
    nth: int
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What goes out. `fault`: `reset` the connection, `truncate` the body half way, `hang` until the test is over,
    `trickle` a byte every 50 ms, `close` the kept-alive connection without a word once the answer is out."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    fault: Literal["reset", "truncate", "hang", "trickle", "close"] | None = None


def chat(content: Any, logprobs: Any = None, usage: Any = None) -> dict[str, Any]:
    """A chat completion, as vLLM and OpenAI write it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = usage or {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "c", "object": "chat.completion", "choices": [{**choice, "logprobs": logprobs}], "usage": usage}


def completion(text: str, logprobs: Any = None) -> dict[str, Any]:
    """A text completion."""
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    choice = {"index": 0, "finish_reason": "length", "text": text, "logprobs": logprobs}
    return {"id": "c", "object": "text_completion", "choices": [choice], "usage": usage}


def chat_logprobs(*tokens: tuple[str, dict[str, float]]) -> dict[str, Any]:
    """Log-probabilities in the chat form, from tokens and the probabilities in their places."""
    content = [
        {"token": text, "logprob": -1.0, "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()]}
        for text, top in tokens
    ]
    return {"content": content}


def legacy_logprobs(text: str, top: dict[str, float]) -> dict[str, Any]:
    """Log-probabilities of one token in the older form of text completions."""
    return {
        "tokens": [text],
        "token_logprobs": [-1.0],
        "top_logprobs": [{t: math.log(p) for t, p in top.items()}],
        "text_offset": [0],
    }


def refused(status: int, message: str, **headers: str) -> Reply:
    """An error with its reason, as the APIs send it."""
    return Reply({"error": {"message": message, "type": "error"}}, status, headers)


class MisbehavingServer(ThreadingHTTPServer):
    """`answer` decides about each request; `requests` keeps them all."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Request], Reply | dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[Request] = []
        self.finished: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> Counter[str]:
        """Requests by document."""
        return Counter(request.document for request in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed in the middle of a request are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: MisbehavingServer

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        marks: Sequence[str] = re.findall(r"\[(\w+)\]", json.dumps(body))
        with self.server.lock:
            document = marks[-1] if marks else "?"
            request = Request(document, self.server.asked[document] + 1, self.path, body)
            self.server.requests.append(request)
            self.server.keys.add(self.headers["Authorization"])
        reply = self.server.answer(request)
        if not isinstance(reply, Reply):
            reply = Reply(reply)
        self.server.over.wait(60 if reply.fault == "hang" else reply.delay_s)
        if reply.fault in ("reset", "hang"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if reply.fault == "trickle":
            for i in range(len(content)):
                self.wfile.write(content[i : i + 1])
                self.wfile.flush()
                if self.server.over.wait(0.05):
                    return
        else:
            self.wfile.write(content[: len(content) // 2] if reply.fault == "truncate" else content)
        self.close_connection = reply.fault in ("truncate", "close")
        self.wfile.flush()
        with self.server.lock:
            self.server.finished[request.document] += 1

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
