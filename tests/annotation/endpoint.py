"""A real OpenAI-compatible endpoint on loopback that answers by rule and misbehaves on request."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[str, int], str]
"""From the document's text and how often it was asked about to what happens: "ok" or a kind of trouble."""


class Endpoint(ThreadingHTTPServer):
    """Counts requests by document. A document is the line that starts with `Doc`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behave: Behaviour = lambda text, times: "ok", delay_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave, self.delay_s = behave, delay_s
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Endpoint:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the test."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        document = next(line for line in question.splitlines() if line.startswith("Doc"))
        with self.server.lock:
            self.server.asked[document] += 1
            self.server.requests.append(body)
            times = self.server.asked[document]
        time.sleep(self.server.delay_s)
        match self.server.behave(document, times):
            case "ok":
                self._answer(200, _completion(f"It explains. Score: {len(document) % 6}"))
                with self.server.lock:
                    self.server.answered[document] += 1
            case "logprobs":
                self._answer(200, _completion("Score: 3", logprobs=True))
            case "empty":
                self._answer(200, _completion(""))
            case "chatter":
                self._answer(200, _completion("I would rather not say."))
            case "too_high":
                self._answer(200, _completion("Score: 9"))
            case "cut":
                self._send(200, b'{"id": "x", "choices": [{"index": 0, "mess')
            case "reset":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            case "hang":
                time.sleep(3)
            case "too_long":
                self._answer(400, {"error": {"message": "this model's maximum context length is 2048 tokens"}})
            case "limit":
                self._answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.1"})
            case status:
                self._answer(int(status), {"error": {"message": f"trouble {status}"}})

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _completion(text: str, *, logprobs: bool = False) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
    }
    if logprobs:
        last = {"token": "3", "logprob": -0.7, "bytes": None}
        top = [{"token": "3", "logprob": -0.6931, "bytes": None}, {"token": "5", "logprob": -0.6931, "bytes": None}]
        first = {"token": "Score: ", "logprob": 0.0, "bytes": None, "top_logprobs": []}
        choice["logprobs"] = {"content": [first, {**last, "top_logprobs": top}], "refusal": None}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "tester",
        "choices": [choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
