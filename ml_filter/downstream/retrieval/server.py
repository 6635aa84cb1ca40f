"""Answers over HTTP: POST /ask, streamed as server-sent events if asked for, and a page that uses it."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from ml_filter import __version__
from ml_filter.config import Settings
from ml_filter.downstream.retrieval.answer import Answer, Answerer
from ml_filter.downstream.retrieval.config import AnswerConfig, AnswerServerConfig, SearchConfig, Where
from ml_filter.downstream.retrieval.index import Index
from ml_filter.errors import ConfigError, MlFilterError
from ml_filter.rendering.html import render


class AskRequest(BaseModel):
    """A question, with conditions such as `language=de`; `stream`: answer as server-sent events."""

    question: Annotated[str, Field(min_length=1)]
    where: list[Where] = []
    stream: bool = False


def create_app(answerer: Answerer, config: AnswerServerConfig) -> FastAPI:
    """Create the application. The answerer is entered at its startup."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with answerer:
            yield

    # No /docs and /redoc: these pages load scripts from a CDN.
    app = FastAPI(title="ml-filter ask", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    page = render("downstream/retrieval/templates/ask.html", index=answerer.searcher.index.manifest)

    @app.post("/ask", response_model=None)
    async def ask(request: AskRequest) -> Response | Answer:
        """Answer a question. Events: `sources`, `text` (a sentence each), then `answer` or `error`."""
        if len(request.question) > config.max_question_chars:
            raise HTTPException(413, f"the question is longer than {config.max_question_chars:,} characters")
        for condition in request.where:
            if problem := answerer.searcher.problem_with(condition):
                raise HTTPException(422, problem)
        if request.stream:
            return StreamingResponse(_events(answerer, request), media_type="text/event-stream")
        try:
            answer = await answerer.answer(request.question, request.where)
        except MlFilterError as error:
            raise HTTPException(502, str(error)) from error
        return JSONResponse(answer.model_dump(mode="json"))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The index that answers."""
        return {"status": "ready", "passages": answerer.searcher.index.manifest.rows}

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> str:
        """A page to ask questions on."""
        return page

    return app


async def _events(answerer: Answerer, request: AskRequest) -> AsyncIterator[str]:
    try:
        async for event in answerer.events(request.question, request.where):
            if isinstance(event, Answer):
                yield _event("answer", event.model_dump(mode="json"))
            elif isinstance(event, str):
                yield _event("text", event)
            else:
                yield _event("sources", [source.model_dump(mode="json") for source in event])
    except MlFilterError as error:
        yield _event("error", str(error))


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def serve_answers(
    index: Index,
    search: SearchConfig,
    answer: AnswerConfig,
    config: AnswerServerConfig,
    say: Callable[[str], None],
    settings: Settings | None = None,
) -> None:
    """Serve answers until SIGTERM or SIGINT. `say` is called with one line when it listens.

    Raises:
        ConfigError: a setting is wrong, or the address cannot be listened on.
    """
    answerer = Answerer(index, search, answer, settings or Settings())
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; choose another with --host and "
            "--port"
        ) from error
    with listener:
        host, port = listener.getsockname()[:2]
        say(f"answers from {index.manifest.root} at http://{f'[{host}]' if ':' in host else host}:{port}")
        settings_of_server = uvicorn.Config(
            create_app(answerer, config), log_config=None, log_level="warning", access_log=False, ws="none"
        )
        _Server(settings_of_server).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends without an error after a signal, when the answers in progress are done; at once after a second one."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGTERM and SIGINT."""
        self.force_exit, self.should_exit = self.should_exit, True
