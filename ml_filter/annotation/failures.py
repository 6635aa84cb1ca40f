"""Why a request has no usable answer: the table from what servers say to the error code of a failed annotation."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

FORBIDDEN, OUT_OF_CREDIT = "forbidden", "out_of_credit"
RETRIED = {"timeout", "connection_error", "rate_limited", "server_error", "malformed_answer", "empty_answer"}
"""Codes after which the same request may succeed. Malformed and empty answers were paid for and are likely to repeat,
so they get two retries at most."""
_SHOWN_CHARS = 300

# What servers say is a fact about each of them, named at the end of the line.
_TOO_LONG = re.compile(
    r"""(?xi)
    context[\s_-]?(length|size|window|limit)    # OpenAI, Azure, DeepSeek, Mistral, Anthropic, SGLang, llama.cpp, Ollama
    | maximum\ (context|model\ length|(input|prompt|sequence)\ length)               # vLLM, xAI, TensorRT-LLM
    | max_tokens\ must\ be\ at\ least\ 1,\ got\ -                                    # vLLM before 0.5
    | default_max_tokens.{0,40}must\ be\ greater                                     # TensorRT-LLM: no room is left
    | (prompt|input|query)\ length.*exceed | exceeds?\ session | session_len         # TensorRT-LLM, SGLang, LMDeploy
    | input_length_error | range\ of\ input\ length                                  # LMDeploy, DashScope
    | inputs?`?\ (tokens\ \+|must\ have\ less\ than)                                 # TGI, Together
    | token\ count.*(exceeds|supports\ up\ to)                                       # Gemini, Vertex, GitHub
    | too\ many\ tokens(:|\ in) | exceeded\ model\ token\ limit                      # Cohere, Moonshot
    | more\ than\ max\ tokens\ allowed | prompt\ ?超长                                # Zhipu
    | reduce\ (the\ length|your\ (prompt|message)) | request[\s_]too[\s_]large       # Groq, OpenAI, Anthropic
    | (prompt|input|string)(\ \([^)]*\))?(\ is)?\ too\ (long|large) | string_above_max_length  # Bedrock, vLLM, OpenAI
    """
)
_FILTERED = re.compile(
    r"""(?xi)
    content[\s_]?filter | content[\s_](management[\s_])?policy | responsible_?ai     # OpenAI, Azure, Anthropic
    | was\ flagged | data_inspection_failed | inappropriate\ content                 # OpenRouter, DashScope
    | content\ exists\ risk | considered\ high\ risk | 敏感内容                       # DeepSeek, Moonshot, Zhipu
    | prohibited_content | block_?reason | (blocked|rejected).{0,40}safety           # Gemini
    """
)
_NO_CREDIT = re.compile(
    r"""(?xi)
    insufficient[\s_](quota|balance|credits?|funds) | billing_(hard_limit|not_active)    # OpenAI, DeepSeek, Zhipu
    | billing\ hard\ limit | exceeded_current_quota | payment[\s_]required | arrearage   # Moonshot, DashScope
    | credit\ balance | (out\ of|any|not\ enough|more|all\ available)\ credits           # Anthropic, OpenRouter, xAI
    | monthly.{0,20}(credits|spending) | spending\ limit | (余额|额度)不足                 # Hugging Face, Fireworks
    """
)
_THROTTLED = re.compile(r"(?i)throttl|rate[\s_]?limit|too[\s_]?many[\s_]?requests|resource[\s_]?exhausted")
_REQUEST_TOO_LARGE = re.compile(r"(?i)request[\s_]too[\s_]large")
"""The only 429 that repeats forever: the request alone exceeds the tokens per minute."""
_ALWAYS = re.compile("")

# The first row with the status and the words decides.
_TABLE = (
    ("context_too_long", {*range(400, 600)} - {429}, _TOO_LONG),
    ("context_too_long", {429}, _REQUEST_TOO_LARGE),
    ("content_filter", {*range(400, 600)}, _FILTERED),
    ("context_too_long", {413}, _ALWAYS),
    (OUT_OF_CREDIT, {402}, _ALWAYS),
    (OUT_OF_CREDIT, {*range(400, 500)}, _NO_CREDIT),
    ("rate_limited", {429}, _ALWAYS),
    ("rate_limited", {400, 403}, _THROTTLED),
    ("server_error", {408, 409, 425, 499, *range(500, 600)}, _ALWAYS),
    (FORBIDDEN, {*range(300, 400), 401, 403, 404, 405, 407, 410, 451}, _ALWAYS),
    ("bad_request", {*range(400, 500)}, _ALWAYS),
)
# The status of an error inside a response with status 200, by the words in its codes, else in its message.
_STATUS_OF = (
    (re.compile(r"(?i)auth|api.?key"), 401),
    (re.compile(r"(?i)permission|forbidden|access.?denied"), 403),
    (re.compile(r"(?i)not.?found|unknown.?model|does.?not.?exist"), 404),
    (_NO_CREDIT, 402),
    (_THROTTLED, 429),
    (re.compile(r"(?i)invalid|bad.?request|validation|argument|unsupported"), 400),
)
_CODE_NAMES = ("code", "type", "status", "error_type", "error_code", "status_code", "object", "blockReason")
_MESSAGE_NAMES = (
    *("message", "Message", "msg", "error", "errors", "detail", "error_msg", "error_message", "error_description"),
    *("status_msg", "title", "raw"),
)
_INNER_NAMES = ("error", "errors", "detail", "base_resp", "innererror", "metadata", "promptFeedback")


class RequestFailed(Exception):
    """A request without a usable answer. `code` is the error code of the failed annotation.

    `status`: of the response, or of the error inside it; None without a response.
    `may_cost`: the model may have processed it, so it may have to be paid for: it was sent, and no error came back.
    `prompt_tokens`, `completion_tokens`: tokens used despite the failure, if the server reports them.
    `attempts`: number of requests made.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        may_cost: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.status, self.may_cost, self.retry_after_s = code, status, may_cost, retry_after_s
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.attempts = 1

    @property
    def refused(self) -> bool:
        """Whether a working server rejects this particular request, so that a retry is pointless."""
        return self.code not in RETRIED


def failure_of(status: int, body: Any, retry_after_s: float | None = None) -> RequestFailed:
    """The failure that a response means: its status and its body, JSON or text. The status of an error in a response
    with status 200 is found in its codes and its message."""
    codes, message = said_in(body)
    if status < 300:
        status = _status_in(codes, message)
    said = f"{' '.join(codes)} {message}"
    code = next((code for code, statuses, words in _TABLE if status in statuses and words.search(said)), "server_error")
    detail = message or (shown(body) if body else "no message")
    return RequestFailed(code, f"{status}: {detail}", status=status, retry_after_s=retry_after_s)


def _status_in(codes: list[str], message: str) -> int:
    for code in codes:
        if code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
    words = " ".join(code for code in codes if code != "error" and not code.isdecimal()) or message
    return next((status for pattern, status in _STATUS_OF if pattern.search(words)), 500)


def said_in(body: Any) -> tuple[list[str], str]:
    """The codes and the message of an error, wherever a server puts them; the message may be empty."""
    if isinstance(body, str):
        return [], plain_text(body)
    codes: list[str] = []
    messages: list[str] = []
    for layer in _layers(body):
        codes += [str(layer[name]) for name in _CODE_NAMES if isinstance(layer.get(name), str | int)]
        said = [layer[name] for name in _MESSAGE_NAMES if isinstance(layer.get(name), str) and layer[name].strip()]
        if said and isinstance(layer.get("loc"), list):  # FastAPI names the field here
            said.append(".".join(map(str, layer["loc"])))
        messages += [text for text in said if text not in messages]
    return codes, ": ".join(messages)


def _layers(body: Any) -> Iterator[dict[str, Any]]:
    for _ in range(5):
        if isinstance(body, list):  # Gemini, FastAPI, Cloudflare
            body = next(iter(body), None)
        if not isinstance(body, dict):
            return
        yield body
        body = next((body[name] for name in _INNER_NAMES if isinstance(body.get(name), dict | list)), None)


def plain_text(text: str) -> str:
    """A text without markup: load balancers and firewalls answer with web pages."""
    if text.lstrip()[:1] == "<":
        text = html.unescape(re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text[:10_000]))
    return " ".join(text.split())


def shown(value: Any) -> str:
    """A part of a response for a message: the start of its JSON."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
