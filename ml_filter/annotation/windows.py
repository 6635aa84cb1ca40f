"""How much of a document goes into a question: cut to what the model's context holds, or split into windows."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import count
from typing import Any, Protocol, TypeVar

from ml_filter.annotation.client import Client, Endpoint, RequestFailed
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.endpoints import outage, patience_s
from ml_filter.annotation.prompts import SLOT, Question
from ml_filter.errors import ConfigError, EndpointError

_TEMPLATE_TOKENS = 32
"""Left free for a chat template that only the server knows and for tokens that merge at the text's ends."""
_MAY_PASS = {"timeout", "connection_error", "rate_limited", "server_error"}

T = TypeVar("T")


class Tokenizer(Protocol):
    """Counts and cuts text by a model's tokens.

    `special_token` finds the first sign of each special token in a text, where the tokenizer tells which it has.
    """

    special_token: re.Pattern[str] | None

    async def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""

    async def head(self, text: str, size: int) -> str:
        """About the longest start of a text that has at most `size` tokens; one character at least."""


class LocalTokenizer:
    """A Hugging Face tokenizer, by name or directory."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"tokenizer {name!r} cannot be loaded; give a Hub name or a directory: {error}"
            ) from error
        if not self.tokenizer.is_fast:
            raise ConfigError(f"tokenizer {name!r} does not say where its tokens stand in the text (no fast tokenizer)")
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self.special_token = _starts_of([*added, *self.tokenizer.all_special_tokens])

    async def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self._encode(text))

    async def head(self, text: str, size: int) -> str:
        """About the longest start of a text that has at most `size` tokens; one character at least."""
        start, found = _start(text, size), self._encode(_start(text, size))
        if len(found) <= size:
            return start
        return await _shorten(self, text[: max(found[size][0], 1)], size)

    def _encode(self, text: str) -> Sequence[tuple[int, int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["offset_mapping"]  # type: ignore[no-any-return]

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """Messages in the tokenizer's chat template."""
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except (ValueError, TemplateError) as error:
            raise ConfigError(f"the tokenizer's chat template cannot be filled in: {error}") from error


class Servers:
    """Asks the endpoints for what stands beside their answers, such as `/tokenize`: the first that answers it, and that
    one first the next time. Where all are out of order it waits for them as long as a run waits for an answer."""

    def __init__(self, client: Client, endpoints: Sequence[Endpoint], max_outage_s: float) -> None:
        self.client, self.max_outage_s = client, max_outage_s
        self.endpoints = list(endpoints)
        self._has_answered = False

    async def first(self, ask: Callable[[Endpoint], Awaitable[T]]) -> T:
        """What one of the endpoints says.

        Raises:
            RequestFailed: each refuses, or gives no such answer; what the first of them said.
            EndpointError: none has answered for `max_outage_s`.
        """
        began = time.monotonic()
        for nth in count():
            failures: list[RequestFailed] = []
            for endpoint in list(self.endpoints):
                try:
                    found = await ask(endpoint)
                except RequestFailed as error:
                    failures.append(error)
                    continue
                self._has_answered = True
                self.endpoints.sort(key=lambda other: other is not endpoint)
                return found
            silent = next((failure for failure in failures if failure.code in _MAY_PASS), None)
            if silent is None:
                raise failures[0]
            patience = patience_s(self.max_outage_s, self._has_answered)
            left = began + patience - time.monotonic()
            if left <= 0:
                raise outage(self.endpoints, patience, f"{silent.code}: {silent}") from silent
            await asyncio.sleep(min(2.0**nth, 30.0, left))
        raise AssertionError("unreachable")


class ServerTokenizer:
    """The endpoints' own tokenizer: `/tokenize` and `/detokenize` of vLLM and of llama.cpp's server."""

    special_token: re.Pattern[str] | None = None

    def __init__(self, servers: Servers) -> None:
        self.servers = servers

    async def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(await self._encode(text))

    async def head(self, text: str, size: int) -> str:
        """About the longest start of a text that has at most `size` tokens; one character at least."""
        start = _start(text, size)
        tokens = await self._encode(start)
        if len(tokens) <= size:
            return start
        # Tokens may end inside a character or be written otherwise; the length of what they spell is the cut.
        spelt = (await self._decode(tokens[:size])).rstrip("\ufffd")
        return await _shorten(self, text[: max(len(spelt), 1)], size)

    async def _encode(self, text: str) -> list[int]:
        # llama.cpp reads `content`, vLLM `prompt`
        body = {"prompt": text, "content": text, "add_special_tokens": False, "add_special": False}
        return list(await self._post("tokenize", body, "tokens"))

    async def _decode(self, tokens: Sequence[int]) -> str:
        return str(await self._post("detokenize", {"tokens": list(tokens)}, "prompt", "content"))

    async def _post(self, path: str, body: dict[str, Any], *names: str) -> Any:
        async def ask(endpoint: Endpoint) -> Any:
            url = endpoint.server_url(path)
            try:
                answer = await self.servers.client.post(endpoint, url, {"model": endpoint.model, **body})
                return next(answer[name] for name in names if isinstance(answer.get(name), str | list))
            except EndpointError as error:
                raise RequestFailed("bad_request", f"{url} does not work ({error})", refused=True) from error
            except StopIteration:
                wanted = " or ".join(names)
                raise RequestFailed("malformed_answer", f"{url} does not work (its answer has no {wanted})") from None
            except RequestFailed as error:
                raise RequestFailed(error.code, f"{url} does not work ({error})") from error

        try:
            return await self.servers.first(ask)
        except RequestFailed as error:
            raise ConfigError(f"{error}; give --tokenizer a Hub name or directory") from error


def _starts_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """What finds the first sign of each token; words and single signs, which text is made of, are left out."""
    marked = sorted({token for token in tokens if len(token.strip()) > 1 and not token.strip().isalnum()})
    if not marked:
        return None
    return re.compile("|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in marked))


def _start(text: str, size: int) -> str:
    """What is sure to be worth a look: tokens of a run of spaces or signs are long, those of words are not."""
    return text[: 16 * size]


async def _shorten(tokenizer: Tokenizer, text: str, size: int) -> str:
    """Take off what a text has above `size` tokens: the start of a text may have other tokens once it stands alone."""
    while len(text) > 1 and (surplus := await tokenizer.count(text) - size) > 0:
        text = text[: max(len(text) - surplus, 1)]
    return text


class Windows:
    """Cuts documents for one prompt.

    Args:
        limit: tokens a piece may have, or characters where there is no tokenizer.
    """

    def __init__(self, config: AskConfig, prompt: Question, tokenizer: Tokenizer | None, limit: int) -> None:
        self.prompt, self.tokenizer, self.limit = prompt, tokenizer, limit
        self.most = config.most_windows

    @classmethod
    async def of(
        cls, config: AskConfig, prompt: Question, tokenizer: Tokenizer | None, context_tokens: int | None
    ) -> Windows:
        """Work out how much text fits beside the question and the answer.

        Raises:
            ConfigError: the context is not known, or the question alone fills it.
        """
        if tokenizer is None:
            return cls(config, prompt, None, prompt.max_text_chars)
        if context_tokens is None and prompt.max_text_tokens is None:
            raise ConfigError(
                "the endpoint does not say how long its context is; set context_tokens (--context-tokens)"
            )
        limit = prompt.max_text_tokens
        if context_tokens is not None:
            question = await tokenizer.count((prompt.system or "") + prompt.text.replace(SLOT, ""))
            answer = config.answer_tokens(prompt.max_tokens)
            room = context_tokens - question - answer - _TEMPLATE_TOKENS
            if room < 1:
                raise ConfigError(
                    f"prompt {prompt.name} ({question:,} tokens) and its answer ({answer:,}) leave no room "
                    f"for text in a context of {context_tokens:,} tokens"
                )
            limit = min(limit or room, room)
        assert limit is not None
        return cls(config, prompt, tokenizer, limit)

    def clean(self, document: str) -> str:
        """The document as it may stand in the question, the tokenizer's own special tokens defused as well."""
        text = self.prompt.clean(document)
        special = self.tokenizer.special_token if self.tokenizer else None
        return special.sub(lambda m: m[0] + " ", text) if special else text

    async def pieces(self, document: str) -> tuple[Sequence[str], bool]:
        """What is asked about, and whether part of the document is left out."""
        text = self.clean(document)
        pieces: list[str] = []
        while text and len(pieces) < self.most:
            pieces.append(await self._head(text))
            text = text[len(pieces[-1]) :]
        return pieces, bool(text)

    async def _head(self, text: str) -> str:
        if self.tokenizer is None:
            return text[: self.limit]
        if len(text) <= self.limit and len(text.encode()) <= self.limit:  # a token is at least one byte
            return text
        return await self.tokenizer.head(text, self.limit)


def combine(values: Sequence[float], how: str) -> float:
    """One score of the scores of a document's windows."""
    methods: dict[str, Callable[[Sequence[float]], float]]
    methods = {"mean": statistics.fmean, "max": max, "min": min, "median": statistics.median}
    return methods[how](values)
