"""The HTTP interface: what is asked and answered. docs/serving.md describes it."""

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
from ml_filter.serving.describe import HeadDescription
from ml_filter.serving.documents import Document, DocumentId, ScoredDocument, Text, scored_document
from ml_filter.serving.metrics import CountRequests
from ml_filter.serving.service import Service, unavailable


class ScoreRequest(BaseModel):
    """One document (`text`, perhaps `id`), or several (`documents`)."""

    id: DocumentId | None = None
    text: Text | None = None
    documents: list[Document] | None = None

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.text is None) == (self.documents is None):
            raise ValueError("give either text or documents")
        return self

    def all(self) -> list[Document]:
        """The documents, in order."""
        return self.documents if self.documents is not None else [Document(id=self.id, text=self.text)]


class ScoreAnswer(BaseModel):
    """The documents of the request, in its order."""

    documents: list[ScoredDocument]


def create_app(service: Service) -> FastAPI:
    """The application around a service, which it runs as long as it runs itself."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        service.close()

    # The pages of /docs would be fetched from elsewhere.
    app = FastAPI(title="ml-filter", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(CountRequests, metrics=service.metrics)

    @app.post("/score", responses={200: {"model": ScoreAnswer}}, openapi_extra=_request_body())
    async def score(request: Request) -> Response:
        """Score documents. 500: the head broke on a document; the answer is complete, and says which."""
        until = asyncio.get_running_loop().time() + service.config.timeout_s
        async with service.request_body(request, until) as body:
            documents = _parse(body, service.config.most_documents)
            outcomes = await service.score([document.text for document in documents], request, until)
        assert service.description is not None
        criteria = [criterion.name for criterion in service.description.criteria]
        pairs = zip(documents, outcomes, strict=True)
        answer = ScoreAnswer(documents=[scored_document(document, outcome, criteria) for document, outcome in pairs])
        broke = any((outcome.reason or "").startswith(ENGINE_ERROR) for outcome in outcomes)
        return Response(answer.model_dump_json(), 500 if broke else 200, media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 when documents are taken, else 503."""
        return JSONResponse({"status": service.status}, 200 if service.status == "ready" else 503)

    @app.get("/info")
    async def info() -> HeadDescription:
        """The head, how its scores are to be read, and what it runs on."""
        if service.description is None:
            raise unavailable(f"the service is {service.status}")
        return service.description

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _request_body() -> dict[str, Any]:
    """The body of /score in OpenAPI. It is no parameter of the route, which reads it under a limit."""
    schema = ScoreRequest.model_json_schema()
    schema["properties"]["documents"]["anyOf"][0]["items"] = schema.pop("$defs")["Document"]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _parse(body: bytearray, most_documents: int) -> list[Document]:
    """The documents of a request.

    Raises:
        HTTPException: 422 it is not what a request looks like, 413 it holds too many.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is no JSON: {error}") from None
    found = content.get("documents") if isinstance(content, dict) else None
    if isinstance(found, list) and len(found) > most_documents:
        raise HTTPException(413, f"{len(found):,} documents in a request, at most {most_documents:,} are taken")
    try:
        return ScoreRequest.model_validate(content).all()
    except ValidationError as error:
        raise HTTPException(422, problems_in(error, "body")) from None
