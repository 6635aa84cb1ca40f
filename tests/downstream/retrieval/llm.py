"""A small OpenAI-compatible server: it streams if asked to, and answers by a rule."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Llm(ThreadingHTTPServer):
    """`answer` gets the body of a request and returns the text; `bodies` keeps all of them."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.bodies, self.streams = answer, [], True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Llm

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        text = self.server.answer(body)
        is_stream = body.get("stream") and self.server.streams
        if is_stream:
            parts = [text[start : start + 7] for start in range(0, len(text), 7)]
            events = [
                {"choices": [{"delta": {"role": "assistant"}}]},
                *({"choices": [{"delta": {"content": p}}]} for p in parts),
            ]
            content = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        else:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            content = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if is_stream else "application/json")
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def running(answer: Callable[[dict[str, Any]], str]) -> Iterator[Llm]:
    """A server for the time of a test."""
    with Llm(answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
