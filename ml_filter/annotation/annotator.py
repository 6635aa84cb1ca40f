"""The annotator: an LLM behind a pool of endpoints. Builds requests and sends them."""

from __future__ import annotations

from typing import Any

from loguru import logger

from ml_filter.annotation.budget import Budget, Spending
from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.endpoints import EndpointPool
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.responses import Answer
from ml_filter.annotation.windows import LocalTokenizer, Servers, ServerTokenizer, Tokenizer, Windows
from ml_filter.errors import ConfigError, EndpointError, MlFilterError

_CONSTRAINTS = ("response_format", "structured_outputs")
_CONSTRAINT_WORDS = (*_CONSTRAINTS, "json_schema", "grammar", "structured", "extra_forbidden", "unrecognized", "guided")


class Annotator:
    """Asks questions through a pool of endpoints."""

    def __init__(self, pool: EndpointPool, config: AskConfig) -> None:
        self.pool, self.config = pool, config
        self._servers = Servers(pool.client, pool.endpoints, config.max_outage_s)
        self.tokenizer: Tokenizer | None = None
        if config.tokenizer == "server":
            self.tokenizer = ServerTokenizer(self._servers)
        elif config.tokenizer:
            self.tokenizer = LocalTokenizer(config.tokenizer)
        self._is_constrained = config.structured != "off"

    async def windows(self, question: Question) -> Windows:
        """How documents are cut for a question.

        Raises:
            ConfigError: the context length is unknown, or the question alone fills it.
        """
        context = self.config.context_tokens
        if self.tokenizer is not None and context is None:
            try:
                context = await self._servers.first(self._context_tokens)
            except RequestFailed as error:
                if question.max_text_tokens is None:
                    raise ConfigError(
                        f"the endpoint does not report its context length ({error}); set context_tokens "
                        "(--context-tokens)"
                    ) from error
        return await Windows.fit(self.config, question, self.tokenizer, context)

    async def _context_tokens(self, endpoint: Endpoint) -> int:
        """The context length that the endpoint lists: vLLM's `max_model_len`, llama.cpp's `n_ctx`."""
        try:
            listed = (await self.pool.client.get(endpoint, endpoint.url("models"))).get("data")
        except EndpointError as error:
            raise RequestFailed("bad_request", str(error)) from error
        models = listed if isinstance(listed, list) else []
        for model in models:
            # llama.cpp lists its only model under its file name
            if isinstance(model, dict) and (len(models) == 1 or model.get("id") in (endpoint.model, None)):
                meta = model.get("meta")
                length = model.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
                if isinstance(length, int):
                    return length
        raise RequestFailed("malformed_answer", f"{endpoint.url('models')} lists none for {endpoint.model}")

    async def ask(
        self, question: Question, piece: str, vote: int, budget: Budget
    ) -> tuple[Answer | RequestFailed, Spending] | None:
        """The outcome of a question about a piece of a document, after all tries, and what they used of the budget.

        Returns:
            None if the budget has no room for the question.

        Raises:
            EndpointError: no request can succeed, or the endpoints have stopped answering.
        """
        spending = Spending(budget, question, piece)
        if budget.is_spent or not await spending.has_room():
            return None
        outcome: Answer | RequestFailed
        try:
            outcome = await self._answer(question, piece, vote, spending)
        except RequestFailed as error:
            outcome = error
        except MlFilterError as error:
            spending.end(RequestFailed("not_asked", str(error)))  # others may wait for its share of the budget
            raise
        spending.end(outcome)
        return outcome, spending

    async def _answer(self, question: Question, piece: str, vote: int, spending: Spending) -> Answer:
        path, body = request_for(question, piece, vote, self.config, self.tokenizer)
        constraint = constraint_for(question, self.config)

        def body_for(endpoint: Endpoint) -> dict[str, Any]:
            return body_to_send(endpoint.model, body, constraint if self._is_constrained else {}, self.config)

        try:
            return await self.pool.post(path, body_for, spending)
        except RequestFailed as error:
            if not (constraint and error.refused and any(word in str(error) for word in _CONSTRAINT_WORDS)):
                raise
            self._drop_constraint(question, error)
            return await self.pool.post(path, body_for, spending)

    def _drop_constraint(self, question: Question, error: RequestFailed) -> None:
        if self.config.structured == "on":
            raise EndpointError(
                f"the endpoint does not support structured output ({error}); set structured (--structured) to auto or "
                "off"
            ) from error
        if self._is_constrained:
            logger.warning(
                f"The endpoint does not support structured output ({error}); continuing without it for {question.name}"
            )
        self._is_constrained = False


def constraint_for(question: Question, config: AskConfig) -> dict[str, Any]:
    """The fields of a request that make the server enforce the form of the answer."""
    if config.structured == "off":
        return {}
    if question.mode == "json":
        schema = {"name": "verdict", "strict": True, "schema": question.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if question.mode == "choice" and not question.top_logprobs:
        return {"structured_outputs": {"choice": list(question.choices)}}
    return {}


def request_for(
    question: Question, piece: str, vote: int, config: AskConfig, tokenizer: Tokenizer | None
) -> tuple[str, dict[str, Any]]:
    """The API path and the body of a request, without the fields that depend on the server."""
    body: dict[str, Any] = {
        "max_tokens": 1 if question.mode == "choice" and question.top_logprobs else question.max_tokens,
        "temperature": config.temperature,
        "seed": config.seed + vote,
    }
    if config.top_p is not None:
        body["top_p"] = config.top_p
    text = question.render(piece)
    messages = [{"role": "system", "content": question.system}] if question.system else []
    messages.append({"role": "user", "content": text})
    if question.api == "chat" and config.chat_template == "server":
        body["messages"] = messages
        if question.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": question.top_logprobs}
        return "chat/completions", body
    if question.api == "chat":
        assert isinstance(tokenizer, LocalTokenizer)
        text = tokenizer.render_chat(messages, add_generation_prompt=config.add_generation_prompt)
    body["prompt"] = text
    if question.top_logprobs:
        body["logprobs"] = question.top_logprobs
    return "completions", body


def body_to_send(model: str, body: dict[str, Any], constraint: dict[str, Any], config: AskConfig) -> dict[str, Any]:
    """The full body. `extra_body` overrides all other fields; a field that it sets to null is left out."""
    fields = {"model": model} | body | constraint | config.extra_body
    return {name: value for name, value in fields.items() if config.extra_body.get(name, value) is not None}
