"""Prometheus metrics of a service; docs/serving.md describes them."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/score", "/health", "/info", "/metrics")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DOCUMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters, gauges and histograms. Each service has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="ml_filter", registry=self.registry)
        histogram = partial(Histogram, namespace="ml_filter", registry=self.registry)
        gauge = partial(Gauge, namespace="ml_filter", registry=self.registry)
        self.requests = counter("requests", "Requests answered", ("path", "code"))
        self.score_seconds = histogram("score_seconds", "Duration of requests to /score", buckets=_SECONDS)
        self.documents = counter("documents", "Documents answered", ("status", "reason"))
        self.characters = counter("characters", "Characters scored")
        self.batch_documents = histogram("batch_documents", "Documents in a batch", buckets=_DOCUMENTS)
        self.batch_seconds = histogram("batch_seconds", "Time to score a batch", buckets=_SECONDS)
        self.queue = gauge("queue_documents", "Documents waiting")
        self.held_bytes = gauge("held_bytes", "Bytes of requests in progress")
        self.ready = gauge("ready", "1 if the service accepts documents")


class CountRequests:
    """ASGI middleware that counts every request by path and status code, including requests to unknown paths."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, code = time.perf_counter(), 500

        async def send_and_note_code(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_code)
        finally:
            # One label for all unknown paths: a client could fill the memory with invented ones.
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.requests.labels(path, code).inc()
            if path == "/score":
                self.metrics.score_seconds.observe(time.perf_counter() - started)
