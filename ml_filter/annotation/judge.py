"""Puts a prompt about a document to an endpoint and brings back the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loguru import logger

from ml_filter.annotation.budget import Spending
from ml_filter.annotation.client import Endpoint, RequestFailed, reported_usage, storable
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.endpoints import EndpointPool
from ml_filter.annotation.parsing import Answer, Token
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.windows import LocalTokenizer, Servers, ServerTokenizer, Tokenizer, Windows
from ml_filter.errors import ConfigError, EndpointError

_CONSTRAINTS = ("response_format", "structured_outputs")
_CONSTRAINT_WORDS = (*_CONSTRAINTS, "json_schema", "grammar", "structured", "extra_forbidden", "unrecognized", "guided")


class Judge:
    """Asks over one pool of endpoints."""

    def __init__(self, pool: EndpointPool, config: AskConfig) -> None:
        self.pool, self.config = pool, config
        self._servers = Servers(pool.client, pool.endpoints, config.max_outage_s)
        self.tokenizer: Tokenizer | None = None
        if config.tokenizer == "server":
            self.tokenizer = ServerTokenizer(self._servers)
        elif config.tokenizer:
            self.tokenizer = LocalTokenizer(config.tokenizer)
        self._unconstrained: set[str] = set()

    async def windows(self, prompt: Question) -> Windows:
        """What cuts documents for a prompt."""
        context = self.config.context_tokens
        if self.tokenizer is not None and context is None:
            try:
                context = await self._servers.first(self._context_tokens)
            except RequestFailed as error:
                if prompt.max_text_tokens is None:
                    raise ConfigError(
                        f"the endpoint does not say how long its context is ({error}); set context_tokens "
                        "(--context-tokens)"
                    ) from error
        return await Windows.of(self.config, prompt, self.tokenizer, context)

    async def _context_tokens(self, endpoint: Endpoint) -> int:
        """The context of the model, where the endpoint lists it: vLLM's `max_model_len`, llama.cpp's `n_ctx`."""
        try:
            listed = (await self.pool.client.get(endpoint, endpoint.url("models"))).get("data")
        except EndpointError as error:
            raise RequestFailed("bad_request", str(error), refused=True) from error
        models = listed if isinstance(listed, list) else []
        for model in models:
            # llama.cpp lists its only model under the name of its file
            if isinstance(model, dict) and (len(models) == 1 or model.get("id") in (endpoint.model, None)):
                meta = model.get("meta")
                length = model.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
                if isinstance(length, int):
                    return length
        raise RequestFailed("malformed_answer", f"{endpoint.url('models')} gives none for {endpoint.model}")

    async def ask(self, prompt: Question, piece: str, vote: int, spending: Spending | None = None) -> Answer:
        """The model's answer about a piece of a document.

        Args:
            spending: what each try may use, and has used; not given: there is no budget.

        Raises:
            RequestFailed: no usable answer after all tries; its `code` is the error code of the failed annotation.
            EndpointError: no request can succeed, or the endpoints have stopped answering.
        """
        path, body = request_for(prompt, piece, vote, self.config, self.tokenizer)
        constraint = constraint_for(prompt, self.config)

        def body_for(endpoint: Endpoint) -> dict[str, Any]:
            allowed = {} if endpoint.base_url in self._unconstrained else constraint
            return body_to_send(endpoint.model, body, allowed, self.config)

        try:
            response = await self.pool.post(path, body_for, _read_words, spending)
        except RequestFailed as error:
            if not (constraint and error.refused and any(word in str(error) for word in _CONSTRAINT_WORDS)):
                raise
            self._drop_constraint(prompt, error)
            response = await self.pool.post(path, body_for, _read_words, spending)
        return replace(response.answer, attempts=response.attempts, latency_s=response.latency_s)

    def _drop_constraint(self, prompt: Question, error: RequestFailed) -> None:
        if self.config.structured == "on":
            raise EndpointError(
                f"the endpoint refuses structured output ({error}); set structured to auto or off (--structured)"
            ) from error
        if not self._unconstrained:
            logger.warning(f"The endpoint refuses structured output ({error}); {prompt.name} goes on without it")
        self._unconstrained |= {endpoint.base_url for endpoint in self.pool.endpoints}


def constraint_for(prompt: Question, config: AskConfig) -> dict[str, Any]:
    """The fields of a request that let the server only give answers of the right form."""
    if config.structured == "off":
        return {}
    if prompt.mode == "json":
        schema = {"name": "verdict", "strict": True, "schema": prompt.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if prompt.mode == "choice" and not prompt.top_logprobs:
        return {"structured_outputs": {"choice": list(prompt.choices)}}
    return {}


def request_for(
    prompt: Question, piece: str, vote: int, config: AskConfig, tokenizer: Tokenizer | None
) -> tuple[str, dict[str, Any]]:
    """The API path and what of the body asks about a piece of a document, whatever the server."""
    body: dict[str, Any] = {
        "max_tokens": 1 if prompt.mode == "choice" and prompt.top_logprobs else prompt.max_tokens,
        "temperature": config.temperature,
        "seed": config.seed + vote,
    }
    if config.top_p is not None:
        body["top_p"] = config.top_p
    question = prompt.render(piece)
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages.append({"role": "user", "content": question})
    if prompt.api == "chat" and config.chat_template == "server":
        body["messages"] = messages
        if prompt.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": prompt.top_logprobs}
        return "chat/completions", body
    if prompt.api == "chat":
        assert isinstance(tokenizer, LocalTokenizer)
        question = tokenizer.render_chat(messages, add_generation_prompt=config.add_generation_prompt)
    body["prompt"] = question
    if prompt.top_logprobs:
        body["logprobs"] = prompt.top_logprobs
    return "completions", body


def body_to_send(model: str, body: dict[str, Any], constraint: dict[str, Any], config: AskConfig) -> dict[str, Any]:
    """The whole body; `extra_body` has the last word, and a field that it sets to null is left out."""
    whole = {"model": model} | body | constraint | config.extra_body
    return {name: value for name, value in whole.items() if config.extra_body.get(name, value) is not None}


def read_answer(payload: dict[str, Any]) -> Answer:
    """The answer in a response's body.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: it is not formed like a response.
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


def _read_words(payload: dict[str, Any]) -> Answer:
    """The answer, but for one without a word, which is worth another try unless the length allowed ended it."""
    answer = read_answer(payload)
    if not (answer.text.strip() or answer.tokens or answer.cut_off):
        raise RequestFailed("empty_answer", "the model wrote nothing", may_cost=True)
    return answer


def _tokens(logprobs: Any) -> list[Token]:
    """Log-probabilities in the chat form (also llama.cpp's for completions) or the older completion form."""
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        tops = [{t["token"]: t["logprob"] for t in entry.get("top_logprobs") or []} for entry in content]
        tokens = [Token(entry.get("token"), _known(top)) for entry, top in zip(content, tops, strict=True)]
        return tokens if all(isinstance(token.text, str) for token in tokens) else []
    texts = logprobs.get("tokens") or []
    tops = logprobs.get("top_logprobs") or [{}] * len(texts)
    return [Token(str(text), _known(top or {})) for text, top in zip(texts, tops, strict=True)]


def _known(top: Mapping[str, Any]) -> dict[str, float]:
    """Without tokens that are no text, and those to which a server gives no log-probability, minus infinity, or the
    -9999 of vLLM's masked tokens."""
    numbers = {text: p for text, p in top.items() if isinstance(text, str) and isinstance(p, int | float)}
    return {text: float(p) for text, p in numbers.items() if -9999 < p <= 1}
