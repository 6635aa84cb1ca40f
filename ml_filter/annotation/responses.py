"""What came back for a request: an answer, or the reason for having no usable one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Token:
    """A generated token, and the log-probabilities of the likeliest tokens at its position."""

    text: str
    top: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """An answer of the model. `tokens` is empty and the token counts are None if the server does not report them.

    `cut_off`: the answer reached the most tokens allowed.
    """

    text: str
    tokens: Sequence[Token] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cut_off: bool = False
    attempts: int = 1
    latency_s: float = 0.0
    may_cost: ClassVar[bool] = True


class RequestFailed(Exception):
    """A request without a usable answer. `code` is the error code of the failed annotation.

    `refused`: a working server rejects this particular request, so that a retry is pointless.
    `may_cost`: the model may have processed it, so it may have to be paid for: it was sent, and no error came back.
    `prompt_tokens`, `completion_tokens`: tokens used despite the failure, if the server reports them.
    `attempts`: number of requests made.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        refused: bool = False,
        may_cost: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.refused, self.may_cost, self.retry_after_s = code, refused, may_cost, retry_after_s
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.attempts = 1


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


def reported_usage(payload: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Prompt and completion tokens from a response's body; None where they are missing or implausible."""
    usage = payload.get("usage")
    return _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**31 else None


def storable(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", "replace").decode()
