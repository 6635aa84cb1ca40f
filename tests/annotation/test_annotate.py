"""Annotating documents: what a run promises whatever the endpoint does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loguru import logger
from pydantic import SecretStr, ValidationError

from ml_filter.annotation import endpoints
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.annotation.prompts import load_prompt
from ml_filter.annotation.run import answers_of
from ml_filter.config import Settings, problems_in
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.documents.sources import list_shards
from ml_filter.errors import ConfigError, EndpointError, InputError, MlFilterError, TooManyFailures
from tests.annotation.misbehaving import Reply, Request, chat, chat_logprobs, completion, legacy_logprobs, refused

KEY = "sk-the-very-secret-key"
SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=SecretStr(KEY))
GOOD = chat("It explains. Score: 3")


@pytest.fixture
def hasty(monkeypatch):
    """Retries follow immediately."""
    monkeypatch.setattr(endpoints, "_backoff_s", lambda attempts: 0.0)


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    return pq.read_table(manifest.shard_paths()[0]).to_pylist()


def always(reply: Any) -> Callable[[Request], Reply]:
    return lambda request: reply if isinstance(reply, Reply) else Reply(reply)


def only(document: str, reply: Any) -> Callable[[Request], Reply]:
    return lambda request: always(reply if request.document == document else GOOD)(request)


# --- Every document comes out once, in its place ---------------------------------------------------------------------


def test_answers_arrive_in_any_order_and_are_written_in_input_order(serve, pages, asking, tmp_path):
    delay = random.Random(1)
    server = serve(lambda request: Reply(chat(f"Score: {int(request.document[1:]) % 6}"), delay_s=delay.random() / 20))
    manifest = annotate_documents(pages(40), asking(server, max_concurrency=10), tmp_path / "out", SETTINGS)
    assert list(server.finished) != sorted(server.finished, key=lambda d: int(d[1:]))
    assert [(row["document_id"], row["score"]) for row in rows(manifest)] == [(f"d{i}", i % 6) for i in range(40)]
    assert set(server.asked.values()) == {1}


def test_the_output_keeps_the_prompt_that_was_used_after_its_file_is_edited(
    serve, pages, asking, prompt_file, tmp_path
):
    server = serve(always(refused(400, "no")))
    files = [prompt_file(), prompt_file("adult", criterion="adult")]
    source, stopped = pages(1), asking(server, prompts=files, max_failed_share=0)
    with pytest.raises(TooManyFailures):
        annotate_documents(source, stopped, tmp_path / "out", SETTINGS)
    assert len(list((tmp_path / "out/prompts").iterdir())) == 2
    server.answer = always(GOOD)
    again = asking(server, prompts=files, retry_failed=True)
    manifest = annotate_documents(source, again, tmp_path / "out", SETTINGS)
    prompt_file(text="Is it good?\n{text}")
    kept = {load_prompt(str(path)).digest: path.name for path in (tmp_path / "out/prompts").iterdir()}
    assert kept == {row["prompt_digest"]: f"{row['prompt']}-{row['prompt_digest'][:8]}.yaml" for row in rows(manifest)}
    assert len(kept) == 2


def test_max_concurrency_bounds_the_requests_in_flight(serve, pages, asking, tmp_path):
    flying, most = 0, 0

    def answer(request: Request) -> Reply:
        nonlocal flying, most
        with server.lock:
            flying += 1
            most = max(most, flying)
        time.sleep(0.02)
        with server.lock:
            flying -= 1
        return Reply(GOOD)

    server = serve(answer)
    annotate_documents(pages(20), asking(server, max_concurrency=3), tmp_path / "out", SETTINGS)
    assert most == 3


def test_a_request_has_the_fields_of_the_prompt_and_the_configuration(serve, pages, asking, prompt_file, tmp_path):
    server = serve(always(GOOD))
    prompt = prompt_file(system="Be strict.", max_tokens=9, top_logprobs=4)
    config = asking(server, prompts=[prompt], temperature=0.5, seed=7, model="the-model")
    annotate_documents(pages(1), config, tmp_path / "out", SETTINGS)
    [request] = server.requests
    assert request.path == "/v1/chat/completions"
    system, user = request.body.pop("messages")
    assert system == {"role": "system", "content": "Be strict."}
    assert "[d0] a page about subject 0" in user["content"]
    assert request.body == {
        "model": "the-model",
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 4,
    }


def test_each_endpoint_can_have_its_own_model_name_and_key(serve, pages, asking, tmp_path, monkeypatch):
    mine, theirs = serve(always(Reply(GOOD, delay_s=0.02))), serve(always(Reply(GOOD, delay_s=0.02)))
    entry = {"url": theirs.url, "model": "vendor/the-model-fp8", "api_key_env": "VENDOR_KEY"}
    config = asking(mine, endpoints=[mine.url, entry], model="the-model")
    source, settings = pages(20), SETTINGS.model_copy(update={"api_key": SecretStr("the-usual-key")})
    with pytest.raises(ConfigError, match=f"variable VENDOR_KEY, which holds the key of {theirs.url}, is not set"):
        annotate_documents(source, config, tmp_path / "out", settings)
    monkeypatch.setenv("VENDOR_KEY", "a-key-of-the-vendor")
    manifest = annotate_documents(source, config, tmp_path / "out", settings)
    assert (mine.keys, theirs.keys) == ({"Bearer the-usual-key"}, {"Bearer a-key-of-the-vendor"})
    assert {request.body["model"] for request in mine.requests} == {"the-model"}
    assert {request.body["model"] for request in theirs.requests} == {"vendor/the-model-fp8"}
    assert {row["annotator"] for row in rows(manifest)} == {"the-model"}
    assert not any(b"a-key-of-the-vendor" in file.read_bytes() for file in (tmp_path / "out").rglob("*.*"))


def test_a_rejected_key_is_reported_with_its_environment_variable(serve, pages, asking, tmp_path, monkeypatch):
    server = serve(lambda _: refused(401, "wrong key"))
    monkeypatch.setenv("VENDOR_KEY", "a-key-of-the-vendor")
    config = asking(server, endpoints=[{"url": server.url, "api_key_env": "VENDOR_KEY"}])
    with pytest.raises(EndpointError, match=r"rejected the key \(401: wrong key\); set VENDOR_KEY$"):
        annotate_documents(pages(1), config, tmp_path / "out", SETTINGS)


def test_a_key_given_as_variable_name_is_rejected_and_not_repeated_in_the_error():
    with pytest.raises(ValidationError) as caught:
        AnnotateConfig(endpoints=[{"url": "http://x/v1", "api_key_env": "sk-secret"}])
    assert "api_key_env" in problems_in(caught.value, "annotate")
    assert "sk-secret" not in problems_in(caught.value, "annotate")


def test_log_probabilities_are_not_requested_unless_configured(serve, pages, asking, prompt_file, tmp_path):
    server = serve(always(GOOD))
    annotate_documents(pages(1), asking(server, prompts=[prompt_file(top_logprobs=0)]), tmp_path / "out", SETTINGS)
    assert not {"logprobs", "top_logprobs"} & server.requests[0].body.keys()


def test_each_vote_has_its_own_seed_and_row(serve, pages, asking, tmp_path):
    server = serve(lambda request: chat(f"Score: {request.body['seed'] - 100}"))
    manifest = annotate_documents(
        pages(3), asking(server, votes=3, temperature=1.0, seed=100), tmp_path / "out", SETTINGS
    )
    expected = [(f"d{i}", vote, float(vote)) for i in range(3) for vote in range(3)]
    assert [(row["document_id"], row["vote"], row["score"]) for row in rows(manifest)] == expected


def test_a_row_records_annotator_prompt_answer_and_cost(serve, pages, asking, tmp_path):
    server = serve(lambda request: Reply(GOOD, delay_s=0.05))
    config = asking(server)
    [row] = rows(annotate_documents(pages(1), config, tmp_path / "out", SETTINGS))
    prompt = load_prompt(config.prompts[0])
    assert (row["annotator"], row["prompt"], row["prompt_digest"]) == ("m", "short", prompt.digest)
    assert (row["raw"], row["reason"], row["error"]) == ("It explains. Score: 3", "It explains.", None)
    assert (row["prompt_tokens"], row["completion_tokens"], row["attempts"]) == (10, 5, 1)
    assert row["latency_s"] >= 0.05
    assert datetime.now(UTC) - datetime.fromisoformat(row["created_at"]) < timedelta(minutes=1)


# --- Answers ---------------------------------------------------------------------------------------------------------

TOP = {" good": 0.6, " bad": 0.3, " other": 0.1}
CHOICE = {"api": "completion", "mode": "choice", "pattern": "", "choices": {" good": 4, " bad": 1}}
FORMS = {
    "chat form": chat_logprobs((" good", TOP)),
    "older form": legacy_logprobs(" good", TOP),
}


@pytest.mark.parametrize("form", FORMS)
def test_choice_mode_reads_both_formats_of_log_probabilities(form, serve, pages, asking, prompt_file, tmp_path):
    server = serve(always(completion(" good", FORMS[form])))
    manifest = annotate_documents(pages(1), asking(server, prompts=[prompt_file(**CHOICE)]), tmp_path / "out", SETTINGS)
    [row] = rows(manifest)
    assert row["score"] == 4.0
    assert row["expected_score"] == pytest.approx((4 * 0.6 + 1 * 0.3) / 0.9)
    assert server.requests[0].path == "/v1/completions"
    assert server.requests[0].body["max_tokens"] == 1


def test_choice_mode_fails_without_log_probabilities(serve, pages, asking, prompt_file, tmp_path):
    server = serve(always(completion(" good")))
    manifest = annotate_documents(pages(1), asking(server, prompts=[prompt_file(**CHOICE)]), tmp_path / "out", SETTINGS)
    assert [(row["status"], row["error"], row["score"]) for row in rows(manifest)] == [("failed", "no_logprobs", None)]


def entry(**changes: Any) -> dict[str, Any]:
    return {"content": [{"token": "Score: ", "top_logprobs": []}, {"token": "3", "logprob": -1.0, **changes}]}


ODD_BUT_USABLE = {
    "no log-probabilities": chat("Score: 3"),
    "log-probabilities of the chosen token only": chat("Score: 3", entry()),
    "null for the others": chat("Score: 3", entry(top_logprobs=None)),
    "null for one": chat("Score: 3", entry(top_logprobs=[{"token": "3", "logprob": None}])),
    "minus infinity": chat("Score: 3", entry(top_logprobs=[{"token": t, "logprob": -float("inf")} for t in "34"])),
    "log-probabilities of nameless tokens": chat("Score: 3", {"content": [{"top_logprobs": []}]}),
    "log-probabilities that are text": chat("Score: 3", "none"),
    "usage without numbers": chat("Score: 3", usage={"prompt_tokens": None, "completion_tokens": "many"}),
    "no usage": {**chat("Score: 3"), "usage": None},
    "half a surrogate pair": chat("\ud83d Score: 3"),
    "a NUL": chat("\0 Score: 3"),
}


@pytest.mark.parametrize("case", ODD_BUT_USABLE)
def test_an_answer_with_odd_other_fields_is_used(case, serve, pages, asking, tmp_path):
    server = serve(always(ODD_BUT_USABLE[case]))
    manifest = annotate_documents(pages(1), asking(server), tmp_path / "out", SETTINGS)
    assert [(row["score"], row["expected_score"]) for row in rows(manifest)] == [(3.0, None)]


UNUSABLE = {
    "null": (None, "malformed_answer"),
    "a list": ([], "malformed_answer"),
    "no choice": ({**GOOD, "choices": []}, "malformed_answer"),
    "choices of text": ({**GOOD, "choices": ["Score: 3"]}, "malformed_answer"),
    "no message": ({**GOOD, "choices": [{"message": None}]}, "malformed_answer"),
    "a web page": (Reply(b"<html>Score: 3</html>", headers={"Content-Type": "text/html"}), "malformed_answer"),
    "half of the JSON": (Reply(b'{"choices": [{"message": {"con'), "malformed_answer"),
    "no JSON": (Reply(b"\xff\xfe\x00"), "malformed_answer"),
    "nothing": (Reply(b"", 204), "malformed_answer"),
    "less than announced": (Reply(GOOD, fault="truncate"), "connection_error"),
    "a reset": (Reply(GOOD, fault="reset"), "connection_error"),
    "silence": (Reply(GOOD, fault="hang"), "timeout"),
    "no content": (chat(None), "empty_answer"),
    "white space": (chat(" \n"), "empty_answer"),
    "500": (refused(500, "out of memory"), "server_error"),
    "429": (refused(429, "slow down"), "rate_limited"),
    "400": (refused(400, "bad \ud83d request"), "bad_request"),
    "too long": (refused(400, "maximum context length is 2048"), "context_too_long"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_bad_answer_fails_only_its_own_document_with_an_error_code(case, serve, pages, asking, tmp_path):
    reply, error = UNUSABLE[case]
    server = serve(only("d1", reply))
    manifest = annotate_documents(pages(3), asking(server, timeout_s=0.5), tmp_path / "out", SETTINGS)
    first, bad, last = rows(manifest)
    assert (first["score"], last["score"]) == (3.0, 3.0)
    assert (bad["document_id"], bad["status"], bad["error"]) == ("d1", "failed", error)
    assert bad["score"] is None
    assert bad["expected_score"] is None
    assert bad["reason"]
    assert (manifest.counts["documents"], manifest.counts["scored"], manifest.counts["failed"]) == (3, 2, 1)


# --- Retries ---------------------------------------------------------------------------------------------------------


def test_retry_after_is_respected(serve, pages, asking, tmp_path):
    at: list[float] = []

    def answer(request: Request) -> Reply:
        at.append(time.monotonic())
        return refused(429, "slow down", Retry_After="1") if request.nth == 1 else Reply(GOOD)

    server = serve(answer)
    manifest = annotate_documents(pages(1), asking(server, max_retries=1, max_outage_s=9), tmp_path / "out", SETTINGS)
    assert [(row["score"], row["attempts"]) for row in rows(manifest)] == [(3.0, 2)]
    assert at[1] - at[0] >= 1


@pytest.mark.usefixtures("hasty")
def test_temporary_errors_are_retried(serve, pages, asking, tmp_path):
    server = serve(lambda request: refused(500, "out of memory") if request.nth == 1 else GOOD)
    manifest = annotate_documents(pages(3), asking(server, max_retries=1), tmp_path / "out", SETTINGS)
    assert [(row["score"], row["attempts"]) for row in rows(manifest)] == [(3.0, 2)] * 3


def test_a_rejected_request_is_not_retried(serve, pages, asking, tmp_path):
    server = serve(always(refused(400, "no such parameter")))
    manifest = annotate_documents(pages(2), asking(server, max_retries=3), tmp_path / "out", SETTINGS)
    assert [row["attempts"] for row in rows(manifest)] == [1, 1]
    assert len(server.requests) == 2


@pytest.mark.usefixtures("hasty")
def test_the_attempts_of_a_failed_document_are_counted(serve, pages, asking, tmp_path):
    server = serve(always(Reply(None, fault="reset")))
    manifest = annotate_documents(pages(1), asking(server, max_retries=1), tmp_path / "out", SETTINGS)
    assert [(row["error"], row["attempts"]) for row in rows(manifest)] == [("connection_error", 2)]
    assert len(server.requests) == 2


# --- Ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset", "hang", None])
def test_an_outage_ends_the_run_and_the_next_run_finishes_it(fault, serve, pages, asking, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoints, "_OPEN_AFTER_S", 0.5)  # an outage is noticed earlier
    down = Reply({"error": {"message": "down"}}, 503, fault=fault)
    server = serve(lambda request: Reply(GOOD) if int(request.document[1:]) < 5 else down)
    config, source = asking(server, max_concurrency=8, timeout_s=0.3, max_retries=5), pages(60)
    with pytest.raises(EndpointError, match=r"has not answered for \d+ s .* run the same command again"):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert find_manifest(str(tmp_path / "out")) is None
    server.answer = always(GOOD)
    manifest = annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert manifest.counts["scored"] == 60
    assert {server.asked[f"d{i}"] for i in range(5)} == {1}


def test_rejections_are_not_an_outage(serve, pages, asking, tmp_path):
    server = serve(lambda request: refused(400 if int(request.document[1:]) % 3 == 0 else 500, "no"))
    manifest = annotate_documents(pages(60), asking(server), tmp_path / "out", SETTINGS)
    assert manifest.counts["failed"] == 60


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        (refused(401, f"Incorrect API key provided: {KEY}"), "ML_FILTER_API_KEY"),
        (refused(403, "not allowed"), "ML_FILTER_API_KEY"),
        (refused(404, f"The model does not exist for {KEY}"), "ML_FILTER_MODEL"),
    ],
)
def test_a_wrong_key_or_model_ends_the_run_immediately_and_names_the_setting(
    reply, names, serve, pages, asking, tmp_path
):
    server = serve(always(reply))
    with pytest.raises(EndpointError, match=names) as caught:
        annotate_documents(pages(60), asking(server, max_retries=5), tmp_path / "out", SETTINGS)
    assert len(server.requests) <= 5  # four in flight and a ping
    assert server.url in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_run_ends_when_its_first_requests_are_rejected(serve, pages, asking, tmp_path):
    server = serve(lambda request: refused(400, f"Unsupported parameter: 'seed' (request req-{request.document})"))
    config, source = asking(server), pages(200)
    with pytest.raises(
        EndpointError,
        match=r"first 20 answers have all failed with the code bad_request.*Unsupported.*extra_body.*--retry-failed",
    ):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert 20 <= len(server.requests) <= 24
    server.answer = always(GOOD)
    again = config.model_copy(update={"retry_failed": True})
    assert annotate_documents(source, again, tmp_path / "out", SETTINGS).counts["scored"] == 200


def test_rejections_without_a_message_end_the_run(serve, pages, asking, tmp_path):
    server = serve(always(Reply(b"", 400)))
    with pytest.raises(
        EndpointError, match=r"first 20 answers have all failed with the code bad_request.*400: no message"
    ):
        annotate_documents(pages(60), asking(server), tmp_path / "out", SETTINGS)


@pytest.mark.parametrize("other", [GOOD, refused(403, "another reason")], ids=["an answer", "another code"])
def test_rejections_with_anything_else_among_them_do_not_end_the_run(other, serve, pages, asking, tmp_path):
    server = serve(lambda request: other if request.document == "d10" else refused(400, "this page is not allowed"))
    manifest = annotate_documents(pages(28), asking(server, max_concurrency=1), tmp_path / "out", SETTINGS)
    assert manifest.counts["documents"] == 28


def test_a_column_missing_in_a_later_file_is_an_input_error(serve, asking, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.table({"id": ["a"], "text": ["[a] page"]}), corpus / "1.parquet")
    pq.write_table(pa.table({"id": ["b"], "body": ["[b] page"]}), corpus / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet has no column 'text'"):
        annotate_documents(SourceConfig(paths=[str(corpus)]), asking(serve(always(GOOD))), tmp_path / "out", SETTINGS)


def test_too_many_failures_end_the_run_and_retry_failed_asks_only_for_them(serve, pages, asking, tmp_path):
    server = serve(
        lambda request: refused(400, "no") if request.document in ("d2", "d5") and request.nth == 1 else GOOD
    )
    config, source = asking(server, max_failed_share=0.1), pages(10)
    with pytest.raises(TooManyFailures, match=r"2 of 10 answers failed \(bad_request 2\)"):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    with pytest.raises(TooManyFailures, match="run again with --retry-failed"):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert len(server.requests) == 10
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [(row["document_id"], row["error"], row["reason"]) for row in failed] == [
        ("d2", "bad_request", "400: no"),
        ("d5", "bad_request", "400: no"),
    ]
    again = config.model_copy(update={"retry_failed": True})
    manifest = annotate_documents(source, again, tmp_path / "out", SETTINGS)
    assert manifest.counts["scored"] == 10
    assert {document for document, times in server.asked.items() if times == 2} == {"d2", "d5"}


def test_the_failures_of_a_finished_run_can_be_retried(serve, pages, asking, tmp_path):
    server = serve(lambda request: refused(400, "no") if request.document == "d2" and request.nth == 1 else GOOD)
    config, source = asking(server), pages(5)
    assert annotate_documents(source, config, tmp_path / "out", SETTINGS).counts["failed"] == 1
    again = config.model_copy(update={"retry_failed": True})
    assert annotate_documents(source, again, tmp_path / "out", SETTINGS).counts["scored"] == 5
    assert annotate_documents(source, again, tmp_path / "out", SETTINGS).counts["scored"] == 5
    assert server.asked == {"d0": 1, "d1": 1, "d2": 2, "d3": 1, "d4": 1}


def test_failures_up_to_max_failed_share_are_tolerated(serve, pages, asking, tmp_path):
    server = serve(only("d2", chat("Who knows?")))
    manifest = annotate_documents(pages(10), asking(server, max_failed_share=0.1), tmp_path / "out", SETTINGS)
    assert manifest.counts["failed"] == 1


# --- Budget ----------------------------------------------------------------------------------------------------------


SPARING = {"max_tokens": 5}
"""A prompt whose requests use 10 + 5 tokens, and reserve some 11 + 5."""


def test_a_sufficient_budget_does_not_stop_the_run(serve, pages, asking, prompt_file, tmp_path):
    server = serve(always(GOOD))
    config = asking(server, prompts=[prompt_file(**SPARING)], budget_tokens=180)
    manifest = annotate_documents(pages(10), config, tmp_path / "out", SETTINGS)
    assert manifest.counts["prompt_tokens"] + manifest.counts["completion_tokens"] == 150


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": None, "completion_tokens": None}])
def test_the_budget_holds_across_runs_and_with_many_requests_in_flight(
    usage, serve, pages, asking, prompt_file, tmp_path
):
    answer = GOOD if usage is None else {**GOOD, "usage": usage}
    server, source = serve(lambda request: Reply(answer, delay_s=0.02)), pages(40)
    config = asking(server, prompts=[prompt_file(**SPARING)], budget_tokens=300, max_concurrency=30)
    for _ in range(2):
        with pytest.raises(TooManyFailures, match=r"300 tokens \(--budget-tokens\) is used up: .* not asked again"):
            annotate_documents(source, config, tmp_path / "out", SETTINGS)
        assert 5 <= len(server.requests) <= 20
    more = config.model_copy(update={"budget_tokens": 3_000})
    assert annotate_documents(source, more, tmp_path / "out", SETTINGS).counts["scored"] == 40
    assert set(server.asked.values()) == {1}


def test_each_output_of_a_shared_ledger_has_the_budget_for_itself(serve, pages, asking, prompt_file, tmp_path):
    server = serve(always(GOOD))
    config = asking(server, prompts=[prompt_file(**SPARING)], budget_tokens=300, at_budget="finish", max_concurrency=1)
    counts = []
    for output, source in (("first", pages(60)), ("second", pages(90))):
        annotate_documents(source, config, tmp_path / output, SETTINGS, ledgers=str(tmp_path / "ledgers"))
        counts.append(len(server.finished))
    assert 0 < counts[0] < counts[1]


def test_a_budget_in_usd_needs_prices(serve, pages, asking, prompt_file, tmp_path):
    server, source = serve(always(GOOD)), pages(40)
    with pytest.raises(ValueError, match="budget_usd needs usd_per_million_prompt_tokens"):
        asking(server, budget_usd=1.0)
    prices = {"usd_per_million_prompt_tokens": 1e4, "usd_per_million_completion_tokens": 2e4}  # 20 cents a request
    config = asking(server, prompts=[prompt_file(**SPARING)], budget_usd=2.1, **prices)
    with pytest.raises(TooManyFailures, match=r"2\.10 USD \(--budget-usd\)"):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert 8 <= len(server.requests) <= 10


def test_tokens_of_failed_answers_count_towards_the_budget(serve, pages, asking, prompt_file, tmp_path):
    server, source = serve(always(chat("Who knows?"))), pages(4)
    config = asking(
        server, prompts=[prompt_file(**SPARING)], budget_tokens=150, max_failed_share=0.0, retry_failed=True
    )
    for least in (4, 8, 9):
        with pytest.raises(TooManyFailures):
            annotate_documents(source, config, tmp_path / "out", SETTINGS)
        assert least <= len(server.requests) <= min(least, 9) + 1


# --- Documents without text ------------------------------------------------------------------------------------------

WITHOUT_TEXT = [{"id": "a", "text": ""}, {"id": "b", "text": " \n"}, {"id": "c", "text": None}]
NAMELESS = [{"id": None, "text": ""}, {"id": None, "text": None}]


@pytest.fixture(params=["jsonl", "parquet"])
def half_empty(request, tmp_path) -> SourceConfig:
    """Three documents with text, three without, and two without that have no id either."""
    path = tmp_path / f"pages.{request.param}"
    documents = [{"id": f"d{i}", "text": f"[d{i}] a page"} for i in range(3)] + WITHOUT_TEXT + NAMELESS
    if request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in documents))
    else:
        pq.write_table(pa.Table.from_pylist(documents), path)
    return SourceConfig(paths=[str(path)])


def test_a_document_without_text_fails_and_is_not_missing(half_empty, serve, asking, tmp_path):
    server = serve(always(GOOD))
    manifest = annotate_documents(half_empty, asking(server, votes=2, temperature=1.0), tmp_path / "out", SETTINGS)
    found = [(row["document_id"], row["vote"], row["status"], row["error"]) for row in rows(manifest)]
    assert found == [(f"d{i}", vote, "scored", None) for i in range(3) for vote in range(2)] + [
        (one, vote, "failed", "no_text") for one in "abc" for vote in range(2)
    ]
    assert set(server.asked) == {"d0", "d1", "d2"}
    assert (manifest.counts["documents"], manifest.counts["failed_no_text"], manifest.counts["rejected"]) == (6, 6, 2)


def test_documents_without_text_count_as_failed(half_empty, serve, asking, tmp_path):
    server = serve(always(GOOD))
    with pytest.raises(TooManyFailures, match=r"3 of 6 answers failed \(no_text 3\)"):
        annotate_documents(half_empty, asking(server, max_failed_share=0.1), tmp_path / "out", SETTINGS)
    again = asking(server, max_failed_share=0.5, retry_failed=True)
    assert annotate_documents(half_empty, again, tmp_path / "out", SETTINGS).counts["scored"] == 3
    assert len(server.requests) == 3


EMPTY = chat("")


@pytest.mark.parametrize(
    "bad",
    [
        EMPTY,
        {**EMPTY, "usage": None},
        {**GOOD, "choices": []},
        Reply(b"half of the JSO"),
        Reply(GOOD, fault="truncate"),
        Reply(GOOD, delay_s=0.6),
    ],
    ids=["empty", "empty without usage", "malformed", "no JSON", "cut off", "too late"],
)
@pytest.mark.usefixtures("hasty")
def test_failed_tries_that_may_have_cost_something_count_towards_the_budget(
    bad, serve, pages, asking, prompt_file, tmp_path
):
    def answer(request: Request) -> Any:
        return bad if len(server.requests) % 3 == 0 else GOOD

    server, source = serve(answer), pages(60)
    changes = {"budget_tokens": 600, "max_concurrency": 8, "max_retries": 4, "timeout_s": 0.5}
    config = asking(server, prompts=[prompt_file(**SPARING)], **changes)
    for _ in range(2):
        with pytest.raises(TooManyFailures, match="is used up"):
            annotate_documents(source, config, tmp_path / "out", SETTINGS)
        assert 20 <= len(server.requests) <= 600 / 15


@pytest.mark.usefixtures("hasty")
def test_reported_tokens_include_retries_and_replaced_answers(serve, pages, asking, tmp_path):
    wrong = {("d1", 1): EMPTY, ("d2", 1): chat("Who knows?"), ("d3", 1): refused(500, "no"), ("d4", 1): EMPTY}
    server, source = serve(lambda request: wrong.get((request.document, request.nth), GOOD)), pages(6)
    config = asking(server, max_retries=1)
    manifest = annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert (manifest.counts["scored"], manifest.counts["failed_unparsable_score"]) == (5, 1)
    assert (manifest.counts["prompt_tokens"], manifest.counts["completion_tokens"]) == (80, 40)
    assert [row["prompt_tokens"] for row in rows(manifest)] == [10, 20, 10, 10, 20, 10]
    manifest = annotate_documents(source, config.model_copy(update={"retry_failed": True}), tmp_path / "out", SETTINGS)
    assert manifest.counts["scored"] == 6
    assert (manifest.counts["prompt_tokens"], manifest.counts["completion_tokens"]) == (90, 45)
    assert "tokens_unreported" not in manifest.counts


def test_unreported_tokens_are_counted_separately(serve, pages, asking, prompt_file, tmp_path):
    server = serve(only("d1", Reply(GOOD, fault="hang")))
    config = asking(server, prompts=[prompt_file(**SPARING)], timeout_s=0.3)
    manifest = annotate_documents(pages(3), config, tmp_path / "out", SETTINGS)
    assert (manifest.counts["prompt_tokens"], manifest.counts["completion_tokens"]) == (20, 10)
    assert 15 <= manifest.counts["tokens_unreported"] <= 60
    assert rows(manifest)[1]["prompt_tokens"] is None


def test_a_run_can_finish_at_its_budget_and_a_later_one_asks_for_the_rest(serve, pages, asking, prompt_file, tmp_path):
    server, source = serve(always(GOOD)), pages(20)
    config = asking(server, prompts=[prompt_file(**SPARING)], budget_tokens=200, at_budget="finish", retry_failed=True)
    manifest = annotate_documents(source, config, tmp_path / "out", SETTINGS)
    asked = len(server.requests)
    assert asked * 15 <= 200
    assert (manifest.counts["scored"], manifest.counts["failed_not_asked"]) == (asked, 20 - asked)
    assert manifest.rows == 20
    missing = [row for row in rows(manifest) if row["status"] == "failed"]
    assert {(row["error"], row["score"], row["attempts"]) for row in missing} == {("not_asked", None, 0)}
    assert "200 tokens (--budget-tokens) had no room" in missing[0]["reason"]
    more = config.model_copy(update={"budget_tokens": 2_000})
    assert annotate_documents(source, more, tmp_path / "out", SETTINGS).counts["scored"] == 20
    assert set(server.asked.values()) == {1}


def test_a_run_that_finished_at_its_budget_checks_max_failed_share_each_time(
    serve, pages, asking, prompt_file, tmp_path
):
    server, source = serve(always(GOOD)), pages(20)
    config = asking(server, prompts=[prompt_file(**SPARING)], budget_tokens=200, at_budget="finish")
    strict = config.model_copy(update={"max_failed_share": 0.05})
    for _ in range(2):
        with pytest.raises(TooManyFailures, match=r"not_asked .* with a higher budget and --retry-failed") as ended:
            annotate_documents(source, strict, tmp_path / "out", SETTINGS)
        assert "the other answers can be used" in str(ended.value)
        manifest = find_manifest(str(tmp_path / "out"))
        assert manifest is not None
        assert manifest.counts["failed_not_asked"] == 20 - len(server.requests)
    assert annotate_documents(source, config, tmp_path / "out", SETTINGS).digest == manifest.digest


def test_a_run_stopped_by_its_budget_can_be_finished_without_requests(serve, pages, asking, prompt_file, tmp_path):
    server, source = serve(always(GOOD)), pages(20)
    config = asking(server, prompts=[prompt_file(**SPARING)], budget_tokens=200)
    with pytest.raises(TooManyFailures, match=r"higher budget.*--at-budget finish"):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    asked = len(server.requests)
    finish = config.model_copy(update={"at_budget": "finish"})
    assert annotate_documents(source, finish, tmp_path / "out", SETTINGS).counts["scored"] == asked


# --- Again, killed, and beside another run ---------------------------------------------------------------------------


def test_a_finished_run_sends_no_requests(serve, pages, asking, tmp_path):
    server = serve(always(GOOD))
    config, source = asking(server), pages(5)
    first = annotate_documents(source, config, tmp_path / "out", SETTINGS)
    server.answer = always(Reply(None, fault="reset"))
    again = annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert again.digest == first.digest
    assert answers_of(first) == {"answers_asked": 5, "answers_from_ledger": 0}
    assert answers_of(again) == {"answers_asked": 0, "answers_from_ledger": 5}
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 1.0},
        {"seed": 1},
        {"votes": 2, "temperature": 1.0},
        {"model": "other"},
        {"prompts": ["personal_data"]},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_directory_of_a_run_with_different_settings_is_refused(change, finished, serve, pages, asking, tmp_path):
    source = pages(2)
    server = serve(lambda request: GOOD if finished or request.document == "d0" else chat("no idea"))
    if finished:
        annotate_documents(source, asking(server), tmp_path / "out", SETTINGS)
    else:
        with pytest.raises(TooManyFailures):
            annotate_documents(source, asking(server, max_failed_share=0.0), tmp_path / "out", SETTINGS)
    before = len(server.requests)
    with pytest.raises(InputError, match="choose another --output"):
        annotate_documents(source, asking(server, **change), tmp_path / "out", SETTINGS)
    assert len(server.requests) == before


@pytest.mark.parametrize("first", ["no such column", "no answer", "all refused"])
def test_a_directory_without_any_answer_can_be_used_with_corrected_settings(first, serve, pages, asking, tmp_path):
    source = pages(25)
    server = serve(lambda request: refused(400, "Unsupported parameter: 'seed'") if "seed" in request.body else GOOD)
    corrected = asking(server, extra_body={"seed": None})
    with pytest.raises(MlFilterError):
        if first == "no such column":
            wrong = source.model_copy(update={"text_column": "content"})
            annotate_documents(wrong, corrected, tmp_path / "out", SETTINGS)
        elif first == "no answer":
            dead = asking(server, endpoints=["http://127.0.0.1:9/v1"], model="typo", max_failed_share=0)
            annotate_documents(source, dead, tmp_path / "out", SETTINGS)
        else:
            annotate_documents(source, asking(server), tmp_path / "out", SETTINGS)
    manifest = annotate_documents(source, corrected, tmp_path / "out", SETTINGS)
    assert (manifest.counts["scored"], manifest.counts["failed"]) == (25, 0)


def test_the_error_for_a_taken_directory_says_how_to_reuse_its_ledger(serve, pages, asking, tmp_path):
    server, source = serve(always(GOOD)), pages(3)
    annotate_documents(source, asking(server, temperature=1.0), tmp_path / "out", SETTINGS)
    more = asking(server, temperature=1.0, votes=2)
    ledger = tmp_path / "out" / "ledger.sqlite"
    with pytest.raises(InputError, match=rf"Do not delete .* with --ledger {ledger}") as told:
        annotate_documents(source, more, tmp_path / "out", SETTINGS)
    assert "start over" not in str(told.value)
    taken = more.model_copy(update={"ledger": str(ledger)})
    assert annotate_documents(source, taken, tmp_path / "more", SETTINGS).counts["scored"] == 6
    assert len(server.requests) == 6


def test_a_changed_prompt_needs_another_directory(serve, pages, asking, prompt_file, tmp_path):
    server, source = serve(always(GOOD)), pages(2)
    annotate_documents(source, asking(server), tmp_path / "out", SETTINGS)
    described = prompt_file(description="Says more about it.")
    assert annotate_documents(source, asking(server, prompts=[described]), tmp_path / "out", SETTINGS).rows == 2
    with pytest.raises(InputError, match="different settings"):
        annotate_documents(source, asking(server, prompts=[prompt_file(max_tokens=3)]), tmp_path / "out", SETTINGS)


def command(server: Any, source: SourceConfig, prompt: str, out: Path) -> list[str]:
    line = [sys.executable, "-m", "ml_filter.cli", "-v", "annotate", *source.paths, "--prompt", prompt]
    return [*line, "--endpoint", server.url, "--model", "m", "--max-concurrency", "5", "--output", str(out)]


@pytest.mark.slow
def test_after_a_kill_only_requests_in_flight_are_made_again(serve, pages, asking, prompt_file, tmp_path):
    out, source = tmp_path / "out", pages(60)
    # the 31st document and those after it hang, so that the kill meets exactly five requests on their way
    server = serve(lambda request: Reply(GOOD, fault="hang" if int(request.document[1:]) >= 30 else None))
    line = command(server, source, prompt_file(), out)
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while len(server.requests) < 35:
            assert running.poll() is None
            time.sleep(0.01)
        with pytest.raises(InputError, match="being written by another process"):
            annotate_documents(source, asking(server), out, SETTINGS)
        os.kill(running.pid, signal.SIGKILL)
    on_their_way = {request.document for request in server.requests} - set(server.finished)
    assert on_their_way == {f"d{i}" for i in range(30, 35)}
    with SqliteLedger(out / "ledger.sqlite") as ledger:
        [kept] = ledger._db.execute("SELECT COUNT(*) FROM answers WHERE status = 'scored'").fetchone()
    assert kept == 30
    server.answer = always(GOOD)
    subprocess.run(line, check=True, capture_output=True)
    assert {document for document, times in server.asked.items() if times > 1} == on_their_way
    manifest = find_manifest(str(out))
    assert manifest is not None
    assert [(row["document_id"], row["status"]) for row in rows(manifest)] == [(f"d{i}", "scored") for i in range(60)]


# --- Input -----------------------------------------------------------------------------------------------------------


def test_a_repeated_document_is_rejected_and_another_one_with_its_id_gets_its_own(serve, asking, tmp_path):
    path = tmp_path / "pages.jsonl"
    texts = [("a", "[a] first"), ("b", "[b] page"), ("a", "[c] other text"), ("a", "[a] first")]
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in texts))
    server = serve(always(GOOD))
    manifest = annotate_documents(SourceConfig(paths=[str(path)]), asking(server), tmp_path / "out", SETTINGS)
    assert [row["document_id"] for row in rows(manifest)] == [
        "a",
        "b",
        f"a@{list_shards(SourceConfig(paths=[str(path)]))[0][0].name}",
    ]
    assert server.asked == {"a": 1, "b": 1, "c": 1}
    assert manifest.counts["renamed_ids"] == 1
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["place"], reject["reason"]) for reject in rejects] == [("a", "duplicate_id")]


def test_a_source_without_any_document_is_an_input_error(serve, asking, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"id": "a", "text": " "}\n')
    source = SourceConfig(paths=[str(tmp_path / "empty.jsonl")])
    with pytest.raises(
        InputError, match=r"could be read from .*empty\.jsonl: no_text 1; name the column .*--text-column"
    ):
        annotate_documents(source, asking(serve(always(GOOD))), tmp_path / "out", SETTINGS)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"could be read from .*empty\.jsonl: the source is empty$"):
        annotate_documents(source, asking(serve(always(GOOD))), tmp_path / "out", SETTINGS)


def test_endpoint_and_model_can_come_from_the_environment(serve, pages, prompt_file, tmp_path, monkeypatch):
    server = serve(always(GOOD))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ML_FILTER_ENDPOINT", server.url)
    monkeypatch.delenv("ML_FILTER_MODEL", raising=False)
    with pytest.raises(ConfigError, match="--model or set ML_FILTER_MODEL"):
        annotate_documents(pages(1), AnnotateConfig(prompts=[prompt_file()]), tmp_path / "out")
    monkeypatch.setenv("ML_FILTER_MODEL", "from-the-environment")
    manifest = annotate_documents(pages(1), AnnotateConfig(prompts=[prompt_file()]), tmp_path / "out")
    assert rows(manifest)[0]["annotator"] == "from-the-environment"


# --- The key ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [f"http://me:{KEY}@host/v1", f"http://{KEY}@host/v1", f"http://host/v1?key={KEY}"])
def test_a_key_in_the_url_of_an_endpoint_is_rejected(url, pages, tmp_path):
    for endpoint in (url, {"url": url}):
        with pytest.raises(ValidationError, match="put the key into ML_FILTER_API_KEY") as caught:
            AnnotateConfig.model_validate({"endpoints": [endpoint]})
        assert KEY not in f"{caught.value}{problems_in(caught.value, 'annotate')}"
    settings = Settings(_env_file=None, endpoint=f"http://fine/v1,{url}", model="m", api_key=None)
    with pytest.raises(ConfigError, match=r"ML_FILTER_ENDPOINT: url: .*put the key into ML_FILTER_API_KEY") as told:
        annotate_documents(pages(1), AnnotateConfig(), tmp_path / "out", settings)
    assert KEY not in "".join(traceback.format_exception(told.value))


def test_white_space_around_a_key_is_ignored_and_an_invalid_key_is_reported(serve, pages, asking, tmp_path):
    """Secrets from files tend to end with a line break."""
    server = serve(always(GOOD))
    settings = Settings(_env_file=None, endpoint=None, model=None, api_key=SecretStr(f" {KEY}\n"))
    annotate_documents(pages(1), asking(server), tmp_path / "out", settings)
    assert server.keys == {f"Bearer {KEY}"}
    broken = Settings(_env_file=None, endpoint=None, model=None, api_key=SecretStr(f"{KEY}\nmore"))
    with pytest.raises(ConfigError, match="ML_FILTER_API_KEY contains characters that are not allowed") as caught:
        annotate_documents(pages(1), asking(server), tmp_path / "other", broken)
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_file_message_or_log(serve, pages, asking, tmp_path):
    logged: list[str] = []
    sink = logger.add(logged.append, level="TRACE")
    troubles = [
        refused(400, f"key {KEY} may not do this"),
        refused(500, f"Authorization: Bearer {KEY}"),
        refused(429, f"quota of {KEY} exceeded"),
        Reply(f"<html>{KEY}</html>".encode(), headers={"Content-Type": "text/html"}),
    ]
    server = serve(lambda request: (troubles + [Reply(GOOD)] * 9)[int(request.document[1:])])
    source = pages(8)
    try:
        with pytest.raises(TooManyFailures) as caught:
            annotate_documents(source, asking(server, max_failed_share=0.1), tmp_path / "out", SETTINGS)
        annotate_documents(source, asking(server, max_failed_share=0.9), tmp_path / "out", SETTINGS)
    finally:
        logger.remove(sink)
    assert server.keys == {f"Bearer {KEY}"}
    assert "may not do this" in "".join(logged)
    assert KEY not in "".join(logged) + str(caught.value)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"annotations.parquet", "ledger.sqlite", "manifest.json"} <= {path.name for path in files}
    assert [path.name for path in files if KEY.encode() in path.read_bytes()] == []
    assert not any(KEY in str(row) for row in pq.read_table(tmp_path / "out" / "shards").to_pylist())
