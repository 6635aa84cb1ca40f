"""What is asked of a server, and how whatever it answers is read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.parsing import read_verdict
from ml_filter.annotation.prompts import Prompt
from ml_filter.annotation.responses import read_answer
from ml_filter.config import Settings
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import criteria_of
from ml_filter.errors import ConfigError, EndpointError, TooManyFailures
from tests.annotation.misbehaving import (
    PROMPT,
    Reply,
    Request,
    chat,
    chat_logprobs,
    completion,
    legacy_logprobs,
    refused,
)

SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=None)
GOOD = chat("Score: 3")
AS_JSON = {"mode": "json", "pattern": ""}
WRITTEN = {"mode": "choice", "pattern": "", "choices": {"good": 5, "bad": 0}, "top_logprobs": 0}


def rows(manifest: Any) -> list[dict[str, Any]]:
    return pq.read_table(manifest.shard_paths()[0]).to_pylist()


# --- Structured output -----------------------------------------------------------------------------------------------


def test_json_mode_sends_its_schema(serve, pages, asking, prompt_file, tmp_path):
    server = serve(lambda _: chat('{"reason": "It explains.", "score": 4}'))
    manifest = annotate_documents(
        pages(1), asking(server, prompts=[prompt_file(**AS_JSON)]), tmp_path / "out", SETTINGS
    )
    assert server.requests[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "verdict",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "reason": {"type": "string"},
                    "score": {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]},
                },
                "required": ["reason", "score"],
                "additionalProperties": False,
            },
        },
    }
    assert [(row["score"], row["reason"]) for row in rows(manifest)] == [(4.0, "It explains.")]


def test_a_written_choice_is_constrained_and_read(serve, pages, asking, prompt_file, tmp_path):
    server = serve(lambda request: chat(" Good\n" if request.document == "d0" else "neither"))
    manifest = annotate_documents(
        pages(2), asking(server, prompts=[prompt_file(**WRITTEN)]), tmp_path / "out", SETTINGS
    )
    assert server.requests[0].body["structured_outputs"] == {"choice": ["bad", "good"]}
    assert "logprobs" not in server.requests[0].body
    assert [(row["score"], row["error"]) for row in rows(manifest)] == [(5.0, None), (None, "unparsable_score")]


def without_structure(request: Request) -> Reply | dict[str, Any]:
    if {"response_format", "structured_outputs"} & request.body.keys():
        return refused(400, "Unrecognized request argument supplied: response_format")
    return chat('{"reason": "It explains.", "score": 4}')


def test_without_support_for_structured_output_the_run_continues_with_one_warning(
    serve, pages, asking, prompt_file, tmp_path
):
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING")
    server = serve(without_structure)
    try:
        config = asking(server, prompts=[prompt_file(**AS_JSON)])
        manifest = annotate_documents(pages(20), config, tmp_path / "out", SETTINGS)
    finally:
        logger.remove(sink)
    assert [(row["score"], row["attempts"]) for row in rows(manifest)] == [(4.0, 1)] * 20
    assert len(server.requests) <= 24
    assert len(warnings) == 1
    assert "does not support structured output" in warnings[0]


def test_structured_on_requires_support_by_the_server(serve, pages, asking, prompt_file, tmp_path):
    config = asking(serve(without_structure), prompts=[prompt_file(**AS_JSON)], structured="on")
    with pytest.raises(EndpointError, match=r"does not support structured output .*\(--structured\) to auto or off"):
        annotate_documents(pages(3), config, tmp_path / "out", SETTINGS)


def test_structured_off_sends_no_constraints(serve, pages, asking, prompt_file, tmp_path):
    server = serve(without_structure)
    config = asking(server, prompts=[prompt_file(**AS_JSON)], structured="off")
    assert annotate_documents(pages(3), config, tmp_path / "out", SETTINGS).counts["scored"] == 3
    assert len(server.requests) == 3


# --- Fields that a server wants otherwise ----------------------------------------------------------------------------


def like_a_reasoning_model(request: Request) -> Reply | dict[str, Any]:
    if "max_tokens" in request.body:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        return refused(400, message)
    if {"temperature", "seed"} & request.body.keys():
        return refused(400, "Unsupported value: 'temperature' does not support 0.0 with this model.")
    return GOOD


RENAMED = {"max_tokens": None, "max_completion_tokens": 900, "temperature": None, "seed": None}


def test_extra_body_renames_and_removes_fields(serve, pages, asking, tmp_path):
    server = serve(like_a_reasoning_model)
    as_usual = annotate_documents(pages(2), asking(server), tmp_path / "usual", SETTINGS)
    assert [row["error"] for row in rows(as_usual)] == ["bad_request"] * 2
    manifest = annotate_documents(pages(2), asking(server, extra_body=RENAMED), tmp_path / "renamed", SETTINGS)
    assert manifest.counts["scored"] == 2
    body = server.requests[-1].body
    assert body["max_completion_tokens"] == 900
    assert not {"max_tokens", "temperature", "seed"} & body.keys()


def test_extra_body_overrides_all_other_fields(serve, pages, asking, prompt_file, tmp_path):
    server = serve(lambda _: chat('{"reason": "It explains.", "score": 4}'))
    extra = {"response_format": {"type": "json_object"}, "top_p": 0.5, "chat_template_kwargs": {"thinking": None}}
    config = asking(server, prompts=[prompt_file(**AS_JSON)], extra_body=extra, top_p=0.9)
    annotate_documents(pages(1), config, tmp_path / "out", SETTINGS)
    assert {name: server.requests[0].body[name] for name in extra} == extra


def test_extra_body_overrides_the_length_of_an_answer(serve, pages, asking, tmp_path):
    server = serve(lambda _: GOOD)
    with pytest.raises(TooManyFailures, match="budget of 500 tokens"):
        annotate_documents(pages(1), asking(server, extra_body=RENAMED, budget_tokens=500), tmp_path / "out", SETTINGS)
    assert not server.requests


def test_extra_body_is_part_of_the_key_in_the_ledger(serve, pages, asking, tmp_path):
    server = serve(lambda _: GOOD)
    ledger = tmp_path / "ledger.sqlite"
    config = asking(server, ledger=str(ledger))
    annotate_documents(pages(1), config, tmp_path / "usual", SETTINGS)
    annotate_documents(pages(1), config.model_copy(update={"extra_body": RENAMED}), tmp_path / "renamed", SETTINGS)
    with sqlite3.connect(ledger) as db:
        questions = {question for (question,) in db.execute("SELECT question FROM answers")}
    assert len(questions) == len(server.requests) == 2
    assert "14ff8ee4d5f3f4015ffda22223ee63b24833c1ccb9bef9fd4e8ec9304bba5d69" in questions, (
        "ledgers of earlier versions"
    )


# --- Whatever comes back ---------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("Score: 3"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WHOLE = [
    chat("Score: 3", chat_logprobs(("Score: ", {"Score: ": 1.0}), ("3", {"3": 0.5, "4": 0.5}))),
    completion("Score: 3", legacy_logprobs("Score: 3", {"3": 0.5})),
    chat('{"reason": "r", "score": 3}'),
]
SHORT = Prompt.model_validate(PROMPT)
PROMPTS = [
    SHORT,
    Prompt.model_validate({**PROMPT, **AS_JSON}),
    Prompt.model_validate({**PROMPT, **WRITTEN, "top_logprobs": 5}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A response in which one thing is replaced or missing."""
    payload = json.loads(json.dumps(draw(st.sampled_from(WHOLE))))
    *path, last = draw(st.sampled_from(places(payload)[1:]))
    part = payload
    for key in path:
        part = part[key]
    if draw(st.booleans()):
        part[last] = draw(JSON)
    else:
        del part[last]
    return payload


@given(damaged(), st.sampled_from(PROMPTS))
def test_a_damaged_response_is_read_or_malformed_but_never_crashes(payload, prompt):
    try:
        answer = read_answer(payload)
    except RequestFailed:
        return
    counts = [answer.prompt_tokens, answer.completion_tokens]
    assert all(count is None or 0 <= count < 2**31 for count in counts)
    try:
        verdict = read_verdict(answer, prompt)
    except AnswerError:
        return
    assert 0 <= verdict.score <= 5
    assert verdict.expected_score is None or 0 <= verdict.expected_score <= 5
    orjson.dumps([verdict.reason, answer.text])


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10**30, "completion_tokens": 2**40},
        {"prompt_tokens": -1, "completion_tokens": True},
        {"prompt_tokens": 1.5, "completion_tokens": "3"},
        [],
        "ten",
    ],
)
def test_impossible_usage_is_unknown(usage, serve, pages, asking, tmp_path):
    server = serve(lambda _: {**GOOD, "usage": usage})
    [row] = rows(annotate_documents(pages(1), asking(server), tmp_path / "out", SETTINGS))
    assert (row["score"], row["prompt_tokens"], row["completion_tokens"]) == (3.0, None, None)


def test_a_lone_surrogate_in_a_json_reason_does_not_stop_the_run(serve, pages, asking, prompt_file, tmp_path):
    server = serve(lambda _: chat('{"reason": "half \\ud83d of it", "score": 3}'))
    config = asking(server, prompts=[prompt_file(**AS_JSON)])
    [row] = rows(annotate_documents(pages(1), config, tmp_path / "out", SETTINGS))
    assert (row["score"], row["reason"]) == (3.0, "half ? of it")


# --- Several prompts -------------------------------------------------------------------------------------------------


@pytest.fixture
def languages(tmp_path) -> Callable[..., SourceConfig]:
    """Pages d0, d1, ... in the languages config."""

    def write(*codes: Any) -> SourceConfig:
        path = tmp_path / "languages.jsonl"
        lines = [json.dumps({"id": f"d{i}", "text": f"[d{i}] page", "language": c}) for i, c in enumerate(codes)]
        path.write_text("\n".join(lines) + "\n")
        return SourceConfig(paths=[str(path)])

    return write


def test_each_document_gets_the_prompt_in_its_language_or_the_first(serve, asking, prompt_file, languages, tmp_path):
    prompts = [prompt_file("english"), prompt_file("german", language="de"), prompt_file("chinese", language="zho")]
    source = languages("deu_Latn", "en", "fra_Latn", None, "de-AT", "DE", "zho_Hans", "zh", "unknown", "", "??")
    manifest = annotate_documents(source, asking(serve(lambda _: GOOD), prompts=prompts), tmp_path / "out", SETTINGS)
    assert [row["prompt"] for row in rows(manifest)] == [
        *("german", "english", "english", "english", "german", "german"),
        *("chinese", "chinese", "english", "english", "english"),
    ]
    assert {row["criterion"] for row in rows(manifest)} == {"educational_value"}


def test_documents_without_language_get_the_first_prompt(serve, pages, asking, prompt_file, tmp_path):
    prompts = [prompt_file("english"), prompt_file("german", language="de")]
    manifest = annotate_documents(pages(3), asking(serve(lambda _: GOOD), prompts=prompts), tmp_path / "out", SETTINGS)
    assert [row["prompt"] for row in rows(manifest)] == ["english"] * 3


def test_each_criterion_of_a_run_has_its_own_rows(serve, asking, prompt_file, languages, tmp_path):
    harm = {"criterion": "harm", "text": "How harmful is this?\n{text}"}
    prompts = [prompt_file("english"), prompt_file("german", language="de"), prompt_file("harm", **harm)]
    server = serve(lambda request: chat(f"Score: {1 if 'harmful' in str(request.body) else 4}"))
    manifest = annotate_documents(languages("de", "en"), asking(server, prompts=prompts), tmp_path / "out", SETTINGS)
    assert [(row["document_id"], row["criterion"], row["prompt"], row["score"]) for row in rows(manifest)] == [
        ("d0", "educational_value", "german", 4.0),
        ("d0", "harm", "harm", 1.0),
        ("d1", "educational_value", "english", 4.0),
        ("d1", "harm", "harm", 1.0),
    ]
    assert manifest.counts["documents"] == 2
    assert [prompt["criterion"] for prompt in manifest.config["prompts"]] == ["educational_value"] * 2 + ["harm"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"language": "en-GB"}, "both score educational_value in en"),
        ({"language": "de", "score": {"min": 0, "max": 3}}, "different score ranges or thresholds"),
        ({"language": "de", "threshold": 4}, "different score ranges or thresholds"),
    ],
)
def test_ambiguous_prompts_are_rejected(changes, says, serve, pages, asking, prompt_file, tmp_path):
    config = asking(serve(lambda _: GOOD), prompts=[prompt_file("one"), prompt_file("two", **changes)])
    with pytest.raises(ConfigError, match=says):
        annotate_documents(pages(1), config, tmp_path / "out", SETTINGS)


# --- Two outputs, one ledger -----------------------------------------------------------------------------------------


def test_with_a_shared_ledger_nothing_is_paid_for_twice(serve, pages, asking, tmp_path):
    server = serve(lambda request: Reply(GOOD))
    config = asking(server, ledger=str(tmp_path / "shared" / "ledger.sqlite"), temperature=1.0)
    annotate_documents(pages(5), config, tmp_path / "one", SETTINGS)
    more_votes = config.model_copy(update={"votes": 3})
    manifest = annotate_documents(pages(5), more_votes, tmp_path / "two", SETTINGS)
    assert (manifest.rows, len(server.requests)) == (15, 15)
    manifest = annotate_documents(pages(8), more_votes, tmp_path / "three", SETTINGS)
    assert (manifest.rows, len(server.requests)) == (24, 24)
    assert sorted(request.body["seed"] for request in server.requests) == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 1}, {"model": "other"}, {"top_p": 0.5}])
def test_a_shared_ledger_keeps_the_answers_to_different_questions_separate(change, serve, pages, asking, tmp_path):
    server = serve(lambda request: Reply(GOOD))
    config = asking(server, ledger=str(tmp_path / "ledger.sqlite"), temperature=1.0)
    annotate_documents(pages(2), config, tmp_path / "one", SETTINGS)
    annotate_documents(pages(2), config.model_copy(update=change), tmp_path / "two", SETTINGS)
    assert len(server.requests) == 4


def test_the_manifest_describes_prompts_and_criteria(serve, pages, asking, tmp_path):
    manifest = annotate_documents(pages(1), asking(serve(lambda _: GOOD)), Path(tmp_path / "out"), SETTINGS)
    [prompt] = manifest.config["prompts"]
    assert prompt == {
        "name": "short",
        "digest": SHORT.digest,
        "criterion": "educational_value",
        "language": "en",
    }
    assert criteria_of(manifest) == [Criterion(name="educational_value", low=0, high=5, threshold=2.5)]
