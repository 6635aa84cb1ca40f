"""Prometheus metrics of a service; docs/serving.md describes them."""

from __future__ import annotations

import time
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
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("ml_filter_requests", "Requests answered", ("path", "code"), registry=registry)
        self.score_seconds = Histogram(
            "ml_filter_score_seconds", "Duration of requests to /score", buckets=_SECONDS, registry=registry
        )
        self.documents = Counter("ml_filter_documents", "Documents answered", ("status", "reason"), registry=registry)
        self.characters = Counter("ml_filter_characters", "Characters scored", registry=registry)
        self.batch_documents = Histogram(
            "ml_filter_batch_documents", "Documents in a batch", buckets=_DOCUMENTS, registry=registry
        )
        self.batch_seconds = Histogram(
            "ml_filter_batch_seconds", "Time to score a batch", buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("ml_filter_queue_documents", "Documents waiting", registry=registry)
        self.held_bytes = Gauge("ml_filter_held_bytes", "Bytes of requests in progress", registry=registry)
        self.ready = Gauge("ml_filter_ready", "1 if the service accepts documents", registry=registry)


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
