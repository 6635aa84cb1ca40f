"""The annotator: an LLM behind a pool of endpoints. Builds requests, sends them and reads the responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loguru import logger

from ml_filter.annotation.budget import Budget, Spending
from ml_filter.annotation.client import Endpoint, RequestFailed, reported_usage, storable
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.endpoints import EndpointPool
from ml_filter.annotation.parsing import Answer, Token
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.tokenizers import LocalTokenizer, Servers, ServerTokenizer, Tokenizer
from ml_filter.annotation.windows import Windows
from ml_filter.errors import ConfigError, EndpointError

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
            raise RequestFailed("bad_request", str(error), refused=True) from error
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
        spending.end(outcome)
        return outcome, spending

    async def _answer(self, question: Question, piece: str, vote: int, spending: Spending) -> Answer:
        path, body = request_for(question, piece, vote, self.config, self.tokenizer)
        constraint = constraint_for(question, self.config)

        def body_for(endpoint: Endpoint) -> dict[str, Any]:
            return body_to_send(endpoint.model, body, constraint if self._is_constrained else {}, self.config)

        try:
            response = await self.pool.post(path, body_for, _read_nonempty, spending)
        except RequestFailed as error:
            if not (constraint and error.refused and any(word in str(error) for word in _CONSTRAINT_WORDS)):
                raise
            self._drop_constraint(question, error)
            response = await self.pool.post(path, body_for, _read_nonempty, spending)
        return replace(response.answer, attempts=response.attempts, latency_s=response.latency_s)

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


def read_answer(payload: dict[str, Any]) -> Answer:
    """The answer in the body of a response.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the body does not have the form of a response.
    """
    choice = payload["choices"][0]
    text = choice["text"] if "message" not in choice else choice["message"]["content"]
    if not isinstance(text, str | None):
        raise TypeError(f"the answer's text is of type {type(text).__name__}")
    prompt_tokens, completion_tokens = reported_usage(payload)
    return Answer(
        text=storable(text or ""),
        tokens=_tokens(choice.get("logprobs")),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cut_off=choice.get("finish_reason") == "length",
    )


def _read_nonempty(payload: dict[str, Any]) -> Answer:
    """The answer; an empty one is worth another try, unless it was cut off at the allowed length."""
    answer = read_answer(payload)
    if not (answer.text.strip() or answer.tokens or answer.cut_off):
        raise RequestFailed("empty_answer", "the model wrote nothing", may_cost=True)
    return answer


def _tokens(logprobs: Any) -> list[Token]:
    """Log-probabilities in the format of chat completions (llama.cpp: also of completions) or of completions."""
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        tops = [{t["token"]: t["logprob"] for t in entry.get("top_logprobs") or []} for entry in content]
        tokens = [Token(entry.get("token"), _usable(top)) for entry, top in zip(content, tops, strict=True)]
        return tokens if all(isinstance(token.text, str) for token in tokens) else []
    texts = logprobs.get("tokens") or []
    tops = logprobs.get("top_logprobs") or [{}] * len(texts)
    return [Token(str(text), _usable(top or {})) for text, top in zip(texts, tops, strict=True)]


def _usable(top: Mapping[str, Any]) -> dict[str, float]:
    """Drop tokens that are not text or have no finite log-probability; vLLM marks masked tokens with -9999."""
    numbers = {text: p for text, p in top.items() if isinstance(text, str) and isinstance(p, int | float)}
    return {text: float(p) for text, p in numbers.items() if -9999 < p <= 1}
