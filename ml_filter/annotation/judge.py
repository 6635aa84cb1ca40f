"""The client that puts a prompt to an OpenAI-compatible endpoint.

Retries with exponential backoff and jitter, and Retry-After, are the openai library's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import openai
from pydantic import SecretStr

from ml_filter.annotation.parsing import Answer, Token
from ml_filter.annotation.prompts import Prompt
from ml_filter.errors import EndpointError
from ml_filter.settings import AnnotateConfig


@dataclass(frozen=True)
class Endpoint:
    """Where the model is. `annotator` is what its annotations are signed with."""

    base_url: str
    model: str
    api_key: SecretStr
    annotator: str


class JudgeError(Exception):
    """A request that stayed without answer. `code` is the error code of the failed annotation."""

    def __init__(self, code: str, detail: str, *, outage: bool = False) -> None:
        super().__init__(detail)
        self.code, self.outage = code, outage


class Judge:
    """Asks one endpoint over one reused connection pool."""

    def __init__(self, endpoint: Endpoint, config: AnnotateConfig) -> None:
        self.endpoint, self.config = endpoint, config
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key.get_secret_value(),
            timeout=config.timeout_s,
            max_retries=config.max_retries,
            http_client=openai.DefaultAioHttpClient(),
        )

    async def __aenter__(self) -> Judge:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, prompt: Prompt, document: str, vote: int) -> Answer:
        """The model's answer about one document.

        Raises:
            JudgeError: no answer after all retries: `timeout`, `connection_error`, `rate_limited`, `server_error`,
                `context_too_long`, `bad_request` or `malformed_answer`.
            EndpointError: no request can succeed: the key or the model's name is refused.
        """
        start = time.monotonic()
        try:
            raw = await self._request(prompt, prompt.render(document), vote)
            answer = raw.parse()
            choice = answer.choices[0]
            text = choice.text if prompt.api == "completion" else choice.message.content
            if not isinstance(text, str | None):
                raise TypeError(f"the answer's text is of type {type(text).__name__}")
            return Answer(
                text=_storable(text or ""),
                tokens=_tokens(choice.logprobs),
                prompt_tokens=_count(answer.usage, "prompt_tokens"),
                completion_tokens=_count(answer.usage, "completion_tokens"),
                attempts=raw.retries_taken + 1,
                latency_s=time.monotonic() - start,
            )
        except openai.APITimeoutError as error:
            if not _timed_out(error):
                raise self._error("connection_error", str(error.__cause__ or error), outage=True) from error
            raise self._error("timeout", f"no answer within {self.config.timeout_s:g} s", outage=True) from error
        except openai.APIConnectionError as error:
            raise self._error("connection_error", str(error.__cause__ or error), outage=True) from error
        except openai.RateLimitError as error:
            raise self._error("rate_limited", error.message, outage=True) from error
        except openai.InternalServerError as error:
            raise self._error("server_error", error.message, outage=True) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EndpointError(
                f"{self.endpoint.base_url} refuses the key ({error.status_code}); set ML_FILTER_API_KEY"
            ) from error
        except openai.NotFoundError as error:
            raise EndpointError(
                f"{self.endpoint.base_url} does not know the model {self.endpoint.model!r} or the path; check --model "
                f"(ML_FILTER_MODEL) and --endpoint (ML_FILTER_ENDPOINT): {self._public(error.message)}"
            ) from error
        except openai.APIStatusError as error:
            too_long = "context" in error.message.lower() and error.status_code in (400, 413, 422)
            raise self._error("context_too_long" if too_long else "bad_request", error.message) from error
        except (openai.APIError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._error("malformed_answer", f"{type(error).__name__}: {error}") from error

    def _error(self, code: str, detail: str, *, outage: bool = False) -> JudgeError:
        return JudgeError(code, self._public(detail), outage=outage)

    def _public(self, detail: str) -> str:
        """What a server said, without the key, which some repeat in their errors, and not at any length."""
        key = self.endpoint.api_key.get_secret_value()
        return _storable(detail.replace(key, "***") if len(key) >= 8 else detail)[:1000]

    async def _request(self, prompt: Prompt, question: str, vote: int) -> Any:
        common: dict[str, Any] = {
            "model": self.endpoint.model,
            "max_tokens": 1 if prompt.mode == "choice" else prompt.max_tokens,
            "temperature": self.config.temperature,
            "seed": self.config.seed + vote,
        }
        if prompt.api == "completion":
            logprobs = prompt.top_logprobs or None
            return await self._client.completions.with_raw_response.create(prompt=question, logprobs=logprobs, **common)
        if prompt.top_logprobs:
            common |= {"logprobs": True, "top_logprobs": prompt.top_logprobs}
        messages: list[Any] = [{"role": "system", "content": prompt.system}] if prompt.system else []
        messages.append({"role": "user", "content": question})
        return await self._client.chat.completions.with_raw_response.create(messages=messages, **common)


def _timed_out(error: BaseException | None) -> bool:
    """Whether a clock ran out; the aiohttp transport also calls a dropped connection a time-out."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__
    return False


def _tokens(logprobs: Any) -> list[Token]:
    """Log-probabilities in the chat form (also llama.cpp's for completions) or the older completion form."""
    if logprobs is None:
        return []
    content = getattr(logprobs, "content", None)
    if isinstance(content, list):
        entries = [entry if isinstance(entry, dict) else entry.model_dump() for entry in content]
        tops = [{t["token"]: t["logprob"] for t in entry.get("top_logprobs") or []} for entry in entries]
        tokens = [Token(entry["token"], _known(top)) for entry, top in zip(entries, tops, strict=True)]
        return tokens if all(isinstance(token.text, str) for token in tokens) else []
    texts = getattr(logprobs, "tokens", None) or []
    tops = getattr(logprobs, "top_logprobs", None) or [{}] * len(texts)
    return [Token(text, _known(top or {})) for text, top in zip(texts, tops, strict=True)]


def _known(top: Mapping[str, Any]) -> dict[str, float]:
    """Without the tokens to which a server gives no log-probability, or minus infinity."""
    return {text: p for text, p in top.items() if isinstance(p, int | float) and math.isfinite(p)}


def _count(usage: Any, name: str) -> int:
    count = getattr(usage, name, None)
    return count if isinstance(count, int) else 0


def _storable(text: str) -> str:
    """With a question mark for each half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
