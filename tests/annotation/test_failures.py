"""From what servers say to an error code: the wordings are theirs, taken from public bug reports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.responses import Answer, read_answer, read_body
from tests.annotation.misbehaving import chat


def outcome(body: Any, status: int = 200) -> Answer | RequestFailed:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return read_answer(read_body(status, content))
    except RequestFailed as failure:
        return failure


def code(body: Any, status: int = 200) -> str:
    result = outcome(body, status)
    return result.code if isinstance(result, RequestFailed) else "scored"


TOO_LONG = {
    "OpenAI": (400, "This model's maximum context length is 4097 tokens. However, your messages resulted in 7575"),
    "OpenAI, per minute": (429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389."),
    "Azure": (400, "Invalid 'messages[1].content': string too long. Expected a string with maximum length 1048576"),
    "Anthropic": (400, "prompt is too long: 210000 tokens > 200000 maximum"),
    "Anthropic, with the answer": (400, "input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000"),
    "Mistral": (400, "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"),
    "DeepSeek": (400, "This model's maximum context length is 65536 tokens. However, you requested 69648 tokens"),
    "vLLM": (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
    "vLLM, old": (400, "max_tokens must be at least 1, got -186."),
    "vLLM, older": (400, "Input prompt (2664 tokens) is too long and exceeds limit of 2048"),
    "vLLM, new": (400, "You passed 74655 input characters. However, the model's context length is only 32000 tokens"),
    "llama.cpp": (400, "the request exceeds the available context size. try increasing the context size"),
    "llama.cpp, old": (500, "Context size has been exceeded."),
    "llama.cpp, batch": (500, "input is too large to process. increase the physical batch size"),
    "llama-cpp-python": (500, "Requested tokens (2285) exceed context window of 2048"),
    "Ollama": (500, "the input length exceeds the context length"),
    "Ollama, cloud": (400, "prompt too long; exceeded max context length by 4 tokens"),
    "TGI": (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1244"),
    "TGI, input": (422, "Input validation error: `inputs` must have less than 2048 tokens. Given: 2222"),
    "Gemini": (400, "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576)."),
    "Vertex": (400, "the input token count is 40000 but the model only supports up to 32768"),
    "Cohere": (400, "too many tokens: total number of tokens (prompt and prediction) cannot exceed 2048"),
    "Groq": (400, "Please reduce the length of the messages or completion."),
    "Groq, per minute": (413, "Request too large for model `llama` on tokens per minute (TPM): Limit 6000"),
    "SGLang": (400, "The input (61709 tokens) is longer than the model's context length (40960 tokens)."),
    "SGLang, memory": (400, "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens)."),
    "LMDeploy": (400, "internal error happened, status code ResponseType.INPUT_LENGTH_ERROR"),
    "TensorRT-LLM": (
        500,
        "The sum of prompt length (9351.0), query length (0) should not exceed max_num_tokens (8192)",
    ),
    "TensorRT-LLM, engine": (400, "Prompt length (200) exceeds maximum input length (1)"),
    "TensorRT-LLM, room": (400, "`default_max_tokens` (-12) must be greater than 0"),
    "xAI": (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens"),
    "Bedrock": (400, "Input is too long for requested model."),
    "Moonshot": (400, "Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)"),
    "DashScope": (400, "Range of input length should be [1, 30000]"),
    "a proxy": (413, "<html><head><title>413 Request Entity Too Large</title></head><body>nginx</body></html>"),
}


@pytest.mark.parametrize("server", TOO_LONG)
def test_a_text_that_is_too_long_has_one_code_whoever_says_so(server):
    status, said = TOO_LONG[server]
    body = said.encode() if said.startswith("<") else {"error": {"message": said}}
    assert code(body, status) == "context_too_long"
    if not said.startswith("<") and status != 429:
        assert (
            code({"object": "error", "message": said, "type": "BadRequestError", "code": status}) == "context_too_long"
        )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (429, "Too many tokens, please wait before trying again."),
        (429, "Rate limit reached on tokens per min (TPM): Limit 30000, Used 29000. Please try again in 6s."),
        (504, "upstream took too long to answer: context deadline exceeded"),
        (400, "Unsupported parameter: 'max_tokens' is not supported with this model."),
        (400, "max_tokens for `llama-3.1-8b-instant` must be less than or equal to 8000"),
    ],
)
def test_other_errors_about_tokens_and_time_are_not_a_long_text(status, said):
    assert code({"error": {"message": said}}, status) != "context_too_long"


NO_CREDIT = {
    "OpenAI": (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}),
    "OpenAI, limit": (400, {"error": {"message": "Billing hard limit has been reached", "code": "billing_hard_limit"}}),
    "OpenRouter": (402, {"error": {"code": 402, "message": "Insufficient credits. Add more using ..."}}),
    "DeepSeek": (402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}),
    "Anthropic": (400, {"error": {"message": "Your credit balance is too low to access the API"}}),
    "xAI": (403, {"error": "Your team has used all available credits or reached its monthly spending limit."}),
    "Moonshot": (429, {"error": {"type": "exceeded_current_quota_error", "message": "suspended due to balance"}}),
    "DashScope": (400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good"}),
    "in a 200": (200, {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}),
    "in a 200, by number": (200, {"error": {"code": 402, "message": "Payment required"}}),
    "no message": (402, b""),
}


@pytest.mark.parametrize("server", NO_CREDIT)
def test_an_account_out_of_credit_is_told_from_a_rate_limit(server):
    status, body = NO_CREDIT[server]
    assert code(body, status) == "out_of_credit"


def test_gemini_says_quota_for_a_rate_limit():
    said = "You exceeded your current quota, please check your plan and billing details. Please retry in 32s."
    assert code([{"error": {"code": 429, "message": said, "status": "RESOURCE_EXHAUSTED"}}], 429) == "rate_limited"


IN_A_200: dict[str, tuple[Any, str, str]] = {
    "a number": ({"error": {"code": 429, "message": "slow down"}}, "rate_limited", "429: slow down"),
    "a number as text": ({"error": {"code": "503", "message": "busy"}}, "server_error", "503: busy"),
    "a type": ({"error": {"type": "overloaded_error", "message": "Overloaded"}}, "server_error", "Overloaded"),
    "text": ({"error": "model is loading"}, "server_error", "model is loading"),
    "beside an answer": (
        {**chat("Score: 3"), "error": {"code": 502, "message": "Provider error"}},
        "server_error",
        "502",
    ),
    "null choices": ({"choices": None, "error": {"message": "Invalid prompt", "code": 400}}, "bad_request", "Invalid"),
    "empty choices": ({"choices": [], "message": "upstream reset", "type": "api_error"}, "server_error", "upstream"),
    "detail": ({"detail": "Not authenticated"}, "forbidden", "401: Not authenticated"),
    "detail in a list": ({"detail": [{"loc": ["body", "n"], "msg": "too small", "type": "value_error"}]}, "", "body.n"),
    "vLLM": ({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}, "bad_request", "400: bad"),
    "TGI": ({"error": "Request failed during generation", "error_type": "generation"}, "server_error", "generation"),
    "a wrong key": ({"error": {"type": "invalid_request_error", "code": "invalid_api_key"}}, "forbidden", "401"),
    "a wrong model": ({"error": {"code": "model_not_found", "message": "no such model"}}, "forbidden", "404"),
    "a list": ([{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}], "bad_request", "400: bad"),
    "MiniMax": (
        {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        "rate_limited",
        "rate",
    ),
    "Cloudflare": ({"success": False, "errors": [{"code": 1001, "message": "cannot reach"}]}, "server_error", "reach"),
    "in a choice": ({"choices": [{"error": {"code": 502, "message": "cut off"}}]}, "server_error", "502: cut off"),
    "in a message": ({"choices": [{"message": {"error": "content_filter"}}]}, "", "content_filter"),
    "of a provider": (
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": "prompt is too long: 9 > 8"},
            }
        },
        "context_too_long",
        "Provider returned error: prompt is too long",
    ),
    "a stream": (b'event: error\ndata: {"error": {"code": 429, "message": "slow down"}}\n\n', "rate_limited", "slow"),
    "a streamed answer": (
        b'data: {"choices": [{"delta": {"content": "S"}}]}\n\ndata: [DONE]\n',
        "streamed_answer",
        "st",
    ),
    "a web page": (b"<html><style>x{}</style><h1>Sign in</h1></html>", "malformed_answer", "not JSON, but 'Sign in'"),
    "nothing": (b"", "malformed_answer", "the body is empty"),
    "half": (b'{"choices": [{"mess', "malformed_answer", "not JSON"),
    "no choices": ({"id": "x", "model": "m"}, "malformed_answer", '"model": "m"'),
    "choices of nothing": ({"choices": [None]}, "malformed_answer", "not an answer"),
    "a blocked prompt": ({"promptFeedback": {"blockReason": "SAFETY"}}, "content_filter", "SAFETY"),
    "a blocked prompt with choices": (
        {"choices": [], "promptFeedback": {"blockReason": "OTHER"}},
        "content_filter",
        "OT",
    ),
}


@pytest.mark.parametrize("case", IN_A_200)
def test_an_error_in_a_response_with_status_200_counts_as_its_own_status(case):
    body, expected, says = IN_A_200[case]
    failure = outcome(body)
    assert isinstance(failure, RequestFailed)
    assert says in str(failure)
    assert failure.code == (expected or failure.code)


def test_an_error_with_usage_was_paid_for():
    failure = outcome({**chat("Score: 3"), "error": {"code": 502, "message": "cut off"}})
    assert isinstance(failure, RequestFailed)
    assert (failure.may_cost, failure.completion_tokens) == (True, 5)


@pytest.mark.parametrize("body", [{**chat("Score: 3"), "error": None}, {**chat("Score: 3"), "message": "ok"}])
def test_a_good_answer_with_odd_other_fields_is_no_error(body):
    assert code(body) == "scored"


def message(finish_reason: str = "stop", **fields: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": finish_reason, "message": {"role": "assistant", **fields}}]}


def parts(*content: Any) -> dict[str, Any]:
    return message(content=list(content))


THOUGHT = {"type": "thinking", "thinking": "Score: 5 at first sight"}
TEXT = {"type": "text", "text": "Score: 3"}


@pytest.mark.parametrize(
    "body",
    [
        parts(TEXT),
        parts(THOUGHT, TEXT),
        parts({"type": "output_text", "text": "Score: "}, "3"),
        parts({"type": "text", "text": {"value": "Score: 3", "annotations": []}}),
        parts({"type": "image_url", "image_url": {"url": "http://x"}}, TEXT),
        message(content=TEXT),
        message(content="Score: 3", reasoning_content="Score: 5", refusal=None, tool_calls=[]),
        message("tool_calls", content="Score: 3", tool_calls=[]),
        {"choices": [{"text": "Score: 3"}]},
    ],
)
def test_the_text_of_an_answer_is_read_from_its_text_parts_only(body):
    result = outcome(body)
    assert isinstance(result, Answer)
    assert result.text == "Score: 3"


CALL = [{"type": "function", "function": {"name": "search", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("body", "expected", "says"),
    [
        (message(content=None, refusal="I cannot help."), "refusal", "I cannot help."),
        (parts({"type": "refusal", "refusal": "I will not."}), "refusal", "I will not."),
        (message("refusal", content="I must stop"), "refusal", "I must stop"),
        (message("content_filter", content=""), "content_filter", "finish_reason content_filter"),
        (message("content_filter", content="Score: 3 and"), "content_filter", "Score: 3 and"),
        (message("PROHIBITED_CONTENT", content=None), "content_filter", "PROHIBITED_CONTENT"),
        (message("tool_calls", content=None, tool_calls=CALL), "tool_call", "search"),
        (message("tool_calls", content="Score: 1 so far", tool_calls=CALL), "tool_call", "search"),
        (message("function_call", content=None, function_call={"name": "f"}), "tool_call", '"f"'),
        (parts({"type": "tool_use", "name": "f", "input": {}}), "tool_call", '"f"'),
        (message(content=None, reasoning_content="Score: 4, but"), "only_reasoning", "Score: 4, but"),
        (message(content="", reasoning="let me think"), "only_reasoning", "let me think"),
        (parts(THOUGHT), "only_reasoning", "first sight"),
        (parts({"type": "image_url", "image_url": {"url": "http://x"}}), "not_text", "http://x"),
        (message("error", content="Sc"), "server_error", "finish_reason error"),
        (message("insufficient_system_resource", content=None), "server_error", "insufficient_system"),
        (message(content=None), "empty_answer", "wrote nothing"),
        (parts(), "empty_answer", "wrote nothing"),
    ],
)
def test_what_stands_in_place_of_text_has_its_own_code_and_the_words_of_the_server(body, expected, says):
    failure = outcome({**body, "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
    assert isinstance(failure, RequestFailed)
    assert (failure.code, failure.prompt_tokens) == (expected, 7)
    assert says in str(failure)


def test_an_answer_cut_off_while_it_reasons_is_cut_off():
    result = outcome(message("length", content=None, reasoning_content="Score: 4, but"))
    assert isinstance(result, Answer)
    assert (result.text, result.cut_off) == ("", True)


MODERATED = {
    "Azure": (400, {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    "OpenRouter": (403, {"error": {"message": "Your input was flagged for violence. No credits were charged."}}),
    "DeepSeek": (400, {"error": {"message": "Content Exists Risk"}}),
    "DashScope": (400, {"code": "data_inspection_failed", "message": "may contain inappropriate content"}),
}


@pytest.mark.parametrize("server", MODERATED)
def test_a_moderated_prompt_is_told_from_a_wrong_key(server):
    status, body = MODERATED[server]
    assert code(body, status) == "content_filter"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "detail", "choices", "code", "type", "content", "text", "object", "loc"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
BODIES = (
    JSON.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=60) | st.text(max_size=60).map(str.encode)
)


@given(BODIES, st.integers(200, 599))
def test_any_response_is_an_answer_or_a_failure_with_a_code_and_a_message(body, status):
    result = outcome(body, status)
    if isinstance(result, RequestFailed):
        assert result.code
        assert str(result)
    else:
        assert status < 300
