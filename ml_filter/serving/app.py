"""The HTTP interface; docs/serving.md describes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Self

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError, model_validator

from ml_filter import __version__
from ml_filter.config import problems_in
from ml_filter.serving.batcher import ENGINE_ERROR
from ml_filter.serving.documents import Document, DocumentId, HeadDescription, ScoredDocument, Text
from ml_filter.serving.metrics import CountRequests
from ml_filter.serving.service import Service, unavailable


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
