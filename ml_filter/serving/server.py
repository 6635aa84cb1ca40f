"""The HTTP server, until SIGTERM or SIGINT; docs/serving.md describes its interface."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError, model_validator

from ml_filter import __version__
from ml_filter.config import problems_in
from ml_filter.documents.manifest import Parent
from ml_filter.errors import ConfigError
from ml_filter.heads.device import choose_device
from ml_filter.heads.kinds import Head, encoder_directory, load_head
from ml_filter.heads.store import HeadName, fetch_head
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.documents import Document, DocumentId, HeadDescription, ScoredDocument, Text, describe_head
from ml_filter.serving.service import ENGINE_ERROR, CountRequests, Service, unavailable


class ScoreRequest(BaseModel):
    """One document (`text`, optional `id`) or several (`documents`)."""

    id: DocumentId | None = None
    text: Text | None = None
    documents: list[Document] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.text is None) == (self.documents is None):
            raise ValueError("provide either text or documents")
        return self

    def all(self) -> list[Document]:
        """The documents, in order."""
        return self.documents if self.documents is not None else [Document(id=self.id, text=self.text)]


class ScoreResponse(BaseModel):
    """The documents of the request, in the same order."""

    documents: list[ScoredDocument]


def create_app(service: Service) -> FastAPI:
    """Create the application; the service runs from its startup to its shutdown."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        service.close()

    # No /docs and /redoc: these pages load scripts from a CDN.
    app = FastAPI(title="ml-filter", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(CountRequests, metrics=service.metrics)

    @app.post("/score", responses={200: {"model": ScoreResponse}}, openapi_extra=_request_body())
    async def score(request: Request) -> Response:
        """Score documents. On 500 the head failed on at least one document; the response is complete and names it."""
        deadline = asyncio.get_running_loop().time() + service.config.timeout_s
        async with service.request_body(request, deadline) as body:
            documents = _parse(body, service.config.request_documents)
            scored = await service.score(documents, request, deadline)
        head_failed = any((document.reason or "").startswith(ENGINE_ERROR) for document in scored)
        content = ScoreResponse(documents=scored).model_dump_json()
        return Response(content, 500 if head_failed else 200, media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 if the service accepts documents, else 503."""
        return JSONResponse({"status": service.status}, 200 if service.status == "ready" else 503)

    @app.get("/info")
    async def info() -> HeadDescription:
        """The head, how to interpret its scores, and what it runs on."""
        if service.description is None:
            raise unavailable(f"the service is {service.status}")
        return service.description

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _request_body() -> dict[str, Any]:
    """The request body of /score in OpenAPI. The route reads the body itself, to limit its size."""
    schema = ScoreRequest.model_json_schema()
    schema["properties"]["documents"]["anyOf"][0]["items"] = schema.pop("$defs")["Document"]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _parse(body: bytearray, max_documents: int) -> list[Document]:
    """The documents of a request.

    Raises:
        HTTPException: 422 if the body is not a valid request, 413 if it has too many documents.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is not JSON: {error}") from None
    documents = content.get("documents") if isinstance(content, dict) else None
    # Before validation, which is slow on many documents.
    if isinstance(documents, list) and len(documents) > max_documents:
        raise HTTPException(413, f"{len(documents):,} documents in a request; at most {max_documents:,} are accepted")
    try:
        return ScoreRequest.model_validate(content).all()
    except ValidationError as error:
        raise HTTPException(422, problems_in(error, "body")) from None


CPU_BATCH_TOKENS = 1024
"""Default of `batch_tokens` on a CPU. Small batches need less padding; docs/serving.md has measurements."""


def serve_head(head: HeadName, config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve a head until SIGTERM or SIGINT, then answer the requests in progress and return.

    `say` is called with one line when the head is loaded.

    Raises:
        InputError: the head does not exist or is incomplete.
        ConfigError: this machine does not have the device, or the address cannot be listened on.
    """
    local = fetch_head(head)  # only once: a Hub repository may change; and before listening, to report a wrong name
    with _listen(config) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        service = Service(
            lambda: _load(local.directory, local.parent, config),
            config,
            lambda about: say(f"{about.head} is ready at {address} ({about.engine}, {about.device}, {about.dtype})"),
        )
        # No access log: the metrics count requests. log_config=None keeps uvicorn from writing its own format.
        settings = uvicorn.Config(
            create_app(service),
            log_config=None,
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=math.ceil(config.timeout_s),  # for clients that read slowly
        )
        _Server(settings, service).run(sockets=[listener])
    if service.error is not None:
        raise service.error


class _Server(uvicorn.Server):
    """After the first signal, answers new requests with 503 until the requests in progress are done."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop the service on the first signal, end the process at once on the second."""
        if self.service.stopping:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.service.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; returning true ends the server."""
        idle = self.service.stopping and self.service.open_requests == 0
        self.should_exit = self.should_exit or idle or self.service.error is not None
        return await super().on_tick(counter)


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        # create_server adds the address to strerror, except for names that cannot be resolved.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another with --host and --port"
        ) from error


def _load(directory: Path, parent: Parent, config: ServeConfig) -> tuple[Head, HeadDescription]:
    """Runs in the scoring thread, because torch sets its number of threads per thread."""
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    score = config.score
    has_encoder = encoder_directory(directory) is not None  # without one, torch is not imported
    if has_encoder and config.batch_tokens is None and choose_device(config.device).type == "cpu":
        score = score.model_copy(update={"batch_tokens": CPU_BATCH_TOKENS})
    engine = load_head(directory, score)
    engine.score(["Warm up: the first call allocates buffers and loads kernels."])
    return engine, describe_head(parent, engine.info, config)
