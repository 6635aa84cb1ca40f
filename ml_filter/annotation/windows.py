"""Windows: how long documents are cut to fit into a question, by the model's tokens, or by characters.

Tokens are those of a local tokenizer or of the endpoints.
"""

from __future__ import annotations

import re
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, wait_exponential

from ml_filter.annotation.client import Client, Endpoint
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.endpoints import outage, patience_s
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.prompts import SLOT, Question
from ml_filter.errors import ConfigError, EndpointError

_TEMPLATE_TOKENS = 32
"""Reserve for a chat template that only the server knows, and for tokens that merge at the ends of the text."""
_CUT = " [...]"
_LEAST_BEGINNING = 200
"""Least of a beginning that is cut before an end that is not, in tokens or characters."""
_TEMPORARY = {"timeout", "connection_error", "rate_limited", "server_error"}
_BACKOFF = wait_exponential(multiplier=1.0, max=30.0)

T = TypeVar("T")


class Tokenizer(ABC):
    """Counts and cuts text in tokens. `special_token` finds the first character of special tokens in a text."""

    special_token: re.Pattern[str] | None = None

    @abstractmethod
    async def count(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""

    async def head(self, text: str, size: int) -> str:
        """Approximately the longest prefix of a text with at most `size` tokens; at least one character."""
        # A token of words is far shorter than 16 characters, only runs of spaces or punctuation are longer, so this
        # much text is enough to look at and the cost does not grow with the document.
        start = text[: 16 * size]
        prefix = await self._prefix(start, size)
        if prefix is None:
            return start
        # Cutting can change how the text before the cut is tokenized: "token" cut to "tok" may need more tokens. So
        # count the prefix again and shorten it until it fits.
        head = start[: max(prefix, 1)]
        while len(head) > 1 and (surplus := await self.count(head) - size) > 0:
            head = head[: max(len(head) - surplus, 1)]
        return head

    @abstractmethod
    async def _prefix(self, text: str, size: int) -> int | None:
        """Number of characters that the first `size` tokens of a text cover; None if it has no more tokens."""


class LocalTokenizer(Tokenizer):
    """A Hugging Face tokenizer, by Hub name or directory.

    Raises:
        ConfigError: the tokenizer cannot be loaded or does not report the offsets of its tokens.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"cannot load tokenizer {name!r}; give a Hub name or a directory: {reason}") from error
        if not self.tokenizer.is_fast:
            raise ConfigError(f"tokenizer {name!r} is not a fast tokenizer, which is required to cut text by tokens")
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self.special_token = _first_characters([*added, *self.tokenizer.all_special_tokens])

    async def count(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return len(self._offsets(text))

    async def _prefix(self, text: str, size: int) -> int | None:
        offsets = self._offsets(text)
        return None if len(offsets) <= size else offsets[size][0]

    def _offsets(self, text: str) -> Sequence[tuple[int, int]]:
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
            raise ConfigError(f"cannot render the tokenizer's chat template: {error}") from error


def _first_characters(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the first character of each token; plain words and single characters, which text consists of, do not
    count."""
    marked = sorted({token for token in tokens if len(token.strip()) > 1 and not token.strip().isalnum()})
    if not marked:
        return None
    return re.compile("|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in marked))


class Servers:
    """Asks the endpoints outside of their chat API, for example `/tokenize`. The endpoint that answered is asked first
    the next time. If all are out of order, it waits for them as long as a run waits for an answer."""

    def __init__(self, client: Client, endpoints: Sequence[Endpoint], max_outage_s: float) -> None:
        self.client, self.max_outage_s = client, max_outage_s
        self.endpoints = list(endpoints)
        self._has_answered = False

    async def first(self, ask: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The first answer of any endpoint.

        Raises:
            RequestFailed: every endpoint rejects the request; the error of the first.
            EndpointError: no endpoint has answered for `max_outage_s`.
        """
        start = time.monotonic()

        def remaining_s() -> float:
            return start + patience_s(self.max_outage_s, self._has_answered) - time.monotonic()

        retrying = AsyncRetrying(
            stop=lambda _: remaining_s() <= 0,
            wait=lambda state: max(min(_BACKOFF(state), remaining_s()), 0),
            retry=retry_if_exception(_is_temporary),
            reraise=True,
        )
        try:
            return await retrying(self._try_each, ask)
        except RequestFailed as error:
            if not _is_temporary(error):
                raise
            patience = patience_s(self.max_outage_s, self._has_answered)
            raise outage(self.endpoints, patience, f"{error.code}: {error}") from error

    async def _try_each(self, ask: Callable[[Endpoint], Awaitable[T]]) -> T:
        failures: list[RequestFailed] = []
        for endpoint in list(self.endpoints):
            try:
                answer = await ask(endpoint)
            except RequestFailed as error:
                failures.append(error)
                continue
            self._has_answered = True
            self.endpoints.sort(key=lambda other: other is not endpoint)
            return answer
        raise next(filter(_is_temporary, failures), failures[0])


def _is_temporary(error: BaseException) -> bool:
    return isinstance(error, RequestFailed) and error.code in _TEMPORARY


class ServerTokenizer(Tokenizer):
    """The tokenizer of the endpoints: `/tokenize` and `/detokenize` of vLLM and of llama.cpp's server.

    Raises:
        ConfigError: no endpoint has these paths.
    """

    def __init__(self, servers: Servers) -> None:
        self.servers = servers

    async def count(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return len(await self._encode(text))

    async def _prefix(self, text: str, size: int) -> int | None:
        tokens = await self._encode(text)
        if len(tokens) <= size:
            return None
        # The server reports no offsets, so decode and measure. The last token may end inside a character.
        decoded = str(await self._post("detokenize", {"tokens": tokens[:size]}, "prompt", "content"))
        return len(decoded.rstrip("\ufffd"))

    async def _encode(self, text: str) -> list[int]:
        # llama.cpp reads `content`, vLLM `prompt`
        body = {"prompt": text, "content": text, "add_special_tokens": False, "add_special": False}
        return list(await self._post("tokenize", body, "tokens"))

    async def _post(self, path: str, body: dict[str, Any], *names: str) -> Any:
        async def ask(endpoint: Endpoint) -> Any:
            url = endpoint.server_url(path)
            try:
                answer = await self.servers.client.post(endpoint, url, {"model": endpoint.model, **body})
                return next(answer[name] for name in names if isinstance(answer.get(name), str | list))
            except EndpointError as error:
                raise RequestFailed("bad_request", f"{url} does not work ({error})") from error
            except StopIteration:
                fields = " or ".join(names)
                raise RequestFailed("malformed_answer", f"{url} does not work (its answer has no {fields})") from None
            except RequestFailed as error:
                raise RequestFailed(error.code, f"{url} does not work ({error})") from error

        try:
            return await self.servers.first(ask)
        except RequestFailed as error:
            raise ConfigError(f"{error}; give --tokenizer a Hub name or directory") from error


class Windows:
    """Cuts documents for one question into windows of at most `limit` tokens, or characters without a tokenizer.

    `kept_from`: a mark. What follows the last one in a document is not cut: the text before it is cut instead.
    """

    kept_from: str | None = None

    def __init__(self, config: AskConfig, question: Question, tokenizer: Tokenizer | None, limit: int) -> None:
        self.question, self.tokenizer, self.limit = question, tokenizer, limit
        self.max_windows = config.windows_per_document

    @classmethod
    async def fit(
        cls, config: AskConfig, question: Question, tokenizer: Tokenizer | None, context_tokens: int | None
    ) -> Windows:
        """Windows that fit into the context next to the question and the answer.

        Raises:
            ConfigError: the context length is unknown, or the question and its answer alone fill it.
        """
        if tokenizer is None:
            return cls(config, question, None, question.max_text_chars)
        if context_tokens is None:
            if question.max_text_tokens is None:
                raise ConfigError(
                    "the endpoint does not report its context length; set context_tokens (--context-tokens)"
                )
            return cls(config, question, tokenizer, question.max_text_tokens)
        frame = await tokenizer.count((question.system or "") + question.text.replace(SLOT, ""))
        answer = config.answer_tokens(question.max_tokens)
        room = context_tokens - frame - answer - _TEMPLATE_TOKENS
        if room < 1:
            raise ConfigError(
                f"prompt {question.name} ({frame:,} tokens) and its answer ({answer:,}) leave no room for text in a "
                f"context of {context_tokens:,} tokens"
            )
        return cls(config, question, tokenizer, min(question.max_text_tokens or room, room))

    def clean(self, document: str) -> str:
        """Neutralise what could end the document inside the question, with the tokenizer's own special tokens."""
        text = self.question.clean(document)
        special = self.tokenizer.special_token if self.tokenizer else None
        return special.sub(lambda match: match[0] + " ", text) if special else text

    async def pieces(self, document: str) -> tuple[Sequence[str], bool]:
        """The windows of a document, and whether text is left out: after the last one, or before `kept_from`.

        Raises:
            RequestFailed: what follows `kept_from` is too long (`text_too_long`).
        """
        # Clean before cutting: neutralising adds characters, and a cut through a special token could hide it.
        text = self.clean(document)
        if self.kept_from is not None:
            return await self._with_its_end(document, text, self.kept_from)
        pieces: list[str] = []
        while text and len(pieces) < self.max_windows:
            pieces.append(await self._head(text, self.limit))
            text = text[len(pieces[-1]) :]
        return pieces, bool(text)

    async def _with_its_end(self, document: str, text: str, mark: str) -> tuple[Sequence[str], bool]:
        if await self._head(text, self.limit) == text:
            return [text], False
        beginning, _, end = document.rpartition(mark)
        beginning, end = self.clean(beginning), _CUT + self.clean(mark + end)
        size = len(end) if self.tokenizer is None else await self.tokenizer.count(end)
        if self.limit - size < min(len(beginning), _LEAST_BEGINNING):
            unit = "characters" if self.tokenizer is None else "tokens"
            error = RequestFailed(
                "text_too_long",
                f"the text from {mark.strip()!r} on has {size:,} {unit} and is not cut; with the beginning of the text "
                f"before it, at most {self.limit:,} {unit} fit",
            )
            error.attempts = 0
            raise error
        return [await self._head(beginning, self.limit - size) + end], True

    async def _head(self, text: str, limit: int) -> str:
        if self.tokenizer is None:
            return text[:limit]
        if len(text) <= limit and len(text.encode()) <= limit:  # no token is shorter than a byte
            return text
        return await self.tokenizer.head(text, limit)


_COMBINE: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "median": statistics.median,
}


def combine(scores: Sequence[float], method: str) -> float:
    """Combine the scores of the windows of a document: `mean`, `max`, `min` or `median`."""
    return _COMBINE[method](scores)
