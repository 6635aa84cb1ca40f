"""From a response to an answer, or to the failure that it means; the same for live responses and results of a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from ml_filter.annotation.failures import RequestFailed, failure_of, plain_text, said_in, shown

_CUT_OFF = {"length", "max_tokens", "model_length", "max_output_tokens"}
# Reasons to end an answer that make it unusable: of OpenAI, then Gemini, Zhipu, DeepSeek, vLLM and OpenRouter.
_FINISH = {
    **dict.fromkeys(("content_filter", "safety", "recitation", "prohibited_content", "blocklist"), "content_filter"),
    **dict.fromkeys(("spii", "sensitive", "content_filtered"), "content_filter"),
    **dict.fromkeys(("insufficient_system_resource", "network_error", "abort", "error"), "server_error"),
    "refusal": "refusal",
}
_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "redacted_thinking")
_TOOLS = ("tool_calls", "function_call", "tool_use", "tool_call", "function")
_NO_TEXT = {"refusal": "refusal", **dict.fromkeys(_TOOLS, "tool_call"), **dict.fromkeys(_REASONING, "only_reasoning")}
"""Error codes of what a message may hold instead of text; of anything else it is `not_text`."""


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


def read_body(status: int, content: bytes, retry_after_s: float | None = None) -> dict[str, Any]:
    """The JSON object of a response; raises RequestFailed as `checked` does, or if it is not JSON."""
    text = content.decode("utf-8", "replace")
    try:
        body = _loads(content)
    except (ValueError, RecursionError) as error:
        events = list(_events(text))
        if status >= 300:
            body = text
        elif error_event := next((event for event in events if said_in(event)[1]), None):
            body = {"error": error_event}
        elif events:
            raise RequestFailed(
                "streamed_answer", "the server streams its answer; set extra_body: {stream: false}", may_cost=True
            ) from error
        else:
            start = plain_text(text)[:200]
            detail = f"not JSON, but {start!r}" if start else f"the body is empty (status {status})"
            raise RequestFailed("malformed_answer", detail, may_cost=True) from error
    return checked(status, body, retry_after_s)


def _events(text: str) -> Iterator[Any]:
    """The JSON of the lines of a stream of server-sent events."""
    for line in text.splitlines():
        if line.startswith("data:"):
            try:
                yield _loads(line[5:].encode())
            except (ValueError, RecursionError):
                continue


def checked(status: int, body: Any, retry_after_s: float | None = None) -> dict[str, Any]:
    """The body of a response.

    Raises:
        RequestFailed: the response is an error, by its status or its body, or not a JSON object.
    """
    if isinstance(body, dict):
        is_error = bool(body.get("error")) or body.get("object") == "error"
    else:
        is_error = isinstance(body, list) and bool(said_in(body)[1])
    if status >= 300 or is_error:
        raise _with_usage(failure_of(status, body, retry_after_s), body)
    if not isinstance(body, dict):
        raise RequestFailed("malformed_answer", f"not a JSON object, but {shown(body)}", may_cost=True)
    return body


def _with_usage(failure: RequestFailed, body: Any) -> RequestFailed:
    failure.prompt_tokens, failure.completion_tokens = _usage(body)
    failure.may_cost = failure.may_cost or bool(failure.completion_tokens)
    return failure


def read_answer(body: Mapping[str, Any]) -> Answer:
    """The answer in the body of a response.

    Raises:
        RequestFailed: the body is an error or has no answer; with the usage that it reports.
    """
    try:
        choice = _choice_in(body)
        text, tokens, cut_off = _text_in(choice, body), _tokens(choice.get("logprobs")), _is_cut_off(choice)
        if not (text.strip() or tokens or cut_off):
            raise RequestFailed("empty_answer", "the model wrote nothing", may_cost=True)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        detail = f"not an answer ({type(error).__name__}: {error}): {shown(body)}"
        raise _with_usage(RequestFailed("malformed_answer", detail, may_cost=True), body) from error
    except RequestFailed as failure:
        raise _with_usage(failure, body) from None
    return Answer(text, tokens, *_usage(body), cut_off)


def read_part(data: bytes) -> str:
    """The text in one event of a streamed answer; empty if it has none.

    Raises:
        RequestFailed: the event is an error, or not JSON.
    """
    if data == b"[DONE]":
        return ""
    choices = read_body(200, data).get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return storable(str(delta.get("content") or choices[0].get("text") or ""))


def _choice_in(body: Mapping[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not choices and (blocked := body.get("promptFeedback") or body.get("prompt_feedback")):
        raise RequestFailed("content_filter", f"the prompt was blocked: {shown(blocked)}")
    if not choices and said_in(body)[1]:
        raise failure_of(200, body)
    choice: dict[str, Any] = body["choices"][0]
    message = choice.get("message")
    for part in (choice, message):
        if isinstance(part, dict) and part.get("error"):
            raise failure_of(200, {"error": part["error"]})
    return choice


def _is_cut_off(choice: Mapping[str, Any]) -> bool:
    return str(choice.get("finish_reason")).lower() in _CUT_OFF


def _text_in(choice: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """The text of a choice. Raises RequestFailed if it is unusable, or if there is something else instead."""
    message = choice["message"] if "message" in choice else {"content": choice["text"]}
    text, others = _parts(message.get("content"))
    others |= {name: message[name] for name in (*_NO_TEXT, "audio") if message.get(name)}
    reason = choice.get("finish_reason")
    code = _FINISH.get(str(reason).lower())
    if code:
        words = [choice.get("content_filter_results"), body.get("prompt_filter_results"), *others.values(), text]
        said = shown(next(filter(None, words), "no message"))
        raise RequestFailed(code, f"finish_reason {reason}: {said}", may_cost=True)
    if reason in ("tool_calls", "function_call") and others.keys() & set(_TOOLS):
        others = {name: value for name, value in others.items() if name in _TOOLS}
    elif text.strip() or _is_cut_off(choice):
        return text
    if not others:
        return text
    name = next((name for name in _NO_TEXT if name in others), next(iter(others)))
    raise RequestFailed(_NO_TEXT.get(name, "not_text"), f"{name} instead of text: {shown(others[name])}", may_cost=True)


def _parts(content: Any) -> tuple[str, dict[str, Any]]:
    """The text of a message's content, which is text or a list of parts, and its other parts by their type."""
    if isinstance(content, str | None):
        return storable(content or ""), {}
    text: list[str] = []
    others: dict[str, Any] = {}
    for part in content if isinstance(content, list) else [content]:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        value = part if isinstance(part, str) else part.get(kind, part.get("text", part))
        if kind in ("text", "output_text"):
            text.append(value["value"] if isinstance(value, dict) else value)
        else:
            others[kind] = value
    return storable("".join(text)), others


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


def _usage(body: Any) -> tuple[int | None, int | None]:
    """Prompt and completion tokens from a response's body; None where they are missing or implausible."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and 0 <= count < 2**31 else None for count in counts)
    return prompt, completion


def _loads(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)  # more tolerant: accepts infinities and lone surrogates, which some servers write


def storable(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", "replace").decode()
