"""One bad document does not end a run; a key, a model or an account that stops working does, and loses nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from pydantic import SecretStr

from ml_filter.annotation import endpoints
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.batch import collect_batch, write_batch
from ml_filter.annotation.config import BatchConfig
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.cli import main
from ml_filter.config import Settings
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import EndpointError, TooManyFailures
from tests.annotation.misbehaving import Reply, Request, chat, refused
from tests.annotation.test_failures import BODIES

KEY = "sk-the-very-secret-key"
SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=SecretStr(KEY))
GOOD = chat("Score: 3")


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Retries follow immediately."""
    monkeypatch.setattr(endpoints, "_backoff_s", lambda attempts: 0.0)


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    return pq.read_table(manifest.shard_paths()[0]).to_pylist()


def number(request: Request) -> int:
    return int(request.document[1:]) if request.document[1:].isdecimal() else -1  # a ping is about no document


def statuses(output: Path) -> list[str]:
    with SqliteLedger(output / "ledger.sqlite") as ledger:
        return [status for (status,) in ledger._execute("SELECT status FROM answers")]


# --- One document --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 410, 451])
@pytest.mark.parametrize("bad", ["d0", "d2"])
def test_a_document_that_is_refused_fails_with_the_words_of_the_server(status, bad, serve, pages, asking, tmp_path):
    no = refused(status, "blocked by the firewall", Location="http://blocked.example/page")
    server = serve(lambda request: no if request.document == bad else GOOD)
    config, source = asking(server, max_concurrency=1, max_retries=3), pages(4)
    manifest = annotate_documents(source, config, tmp_path / "out", SETTINGS)
    [failed] = [row for row in rows(manifest) if row["status"] == "failed"]
    assert (failed["document_id"], failed["error"], manifest.counts["scored"]) == (bad, "forbidden", 3)
    assert failed["reason"].startswith(f"{status}: ")
    assert ("blocked by the firewall" if status != 302 else "http://blocked.example/page") in failed["reason"]
    assert server.asked[bad] == 1
    again = config.model_copy(update={"retry_failed": True})
    assert annotate_documents(source, again, tmp_path / "out", SETTINGS).counts["failed"] == 1


def test_refused_documents_cost_at_most_a_ping_each(serve, pages, asking, tmp_path):
    server = serve(lambda request: Reply(b"blocked", 403, delay_s=0.1) if number(request) % 10 == 0 else GOOD)
    manifest = annotate_documents(pages(40), asking(server, max_concurrency=8), tmp_path / "out", SETTINGS)
    assert manifest.counts["failed_forbidden"] == 4
    assert len(server.requests) <= 40 + 4


# --- All documents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "rejected the key"), (404, "does not know the model 'm' or the path"), (302, "redirects every request")],
)
def test_a_key_or_model_that_stops_working_ends_the_run_and_fails_no_document(
    status, says, serve, pages, asking, tmp_path
):
    server = serve(lambda request: GOOD if len(server.requests) <= 10 else refused(status, KEY, Location=f"/{KEY}"))
    config, source = asking(server, max_retries=3), pages(40)
    with pytest.raises(EndpointError, match=rf"{says} \({status}: .*\*\*\*"):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert statuses(tmp_path / "out") == ["scored"] * 10
    assert len(server.requests) <= 10 + 5
    server.answer = lambda request: GOOD
    assert annotate_documents(source, config, tmp_path / "out", SETTINGS).counts["scored"] == 40


CREDIT = [
    refused(402, "Insufficient credits"),
    Reply({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429),
    Reply({"error": {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached"}}, 400),
    Reply({"error": {"message": "Insufficient credits", "code": 402}}),
]


@pytest.mark.parametrize("reply", CREDIT)
def test_out_of_credit_ends_the_run_and_the_next_run_asks_for_the_rest(reply, serve, pages, asking, tmp_path):
    def answer(request: Request) -> Any:
        return Reply(GOOD, delay_s=0.05) if len(server.requests) <= 12 else reply

    server, source = serve(answer), pages(60)
    config = asking(server, max_retries=5, max_concurrency=8)
    with pytest.raises(EndpointError, match=r"is out of credit \(4\d\d: .*run the same command again to ask for the"):
        annotate_documents(source, config, tmp_path / "out", SETTINGS)
    assert statuses(tmp_path / "out") == ["scored"] * 12, "answers on their way are paid for, so they are kept"
    assert len(server.requests) <= 12 + 8
    server.answer = lambda request: GOOD
    assert annotate_documents(source, config, tmp_path / "out", SETTINGS).counts["scored"] == 60
    assert server.finished.total() <= 60 + 8


def test_a_run_that_ends_does_not_wait_for_its_budget(serve, pages, asking, prompt_file, tmp_path):
    server = serve(lambda _: Reply({"error": {"message": "Insufficient credits"}}, 402, delay_s=0.05))
    config = asking(server, prompts=[prompt_file(max_tokens=5)], budget_tokens=60, max_concurrency=8)
    with pytest.raises(EndpointError, match="is out of credit"):
        annotate_documents(pages(20), config, tmp_path / "out", SETTINGS)


def test_an_endpoint_out_of_credit_leaves_its_work_to_another(serve, pages, asking, tmp_path):
    poor, rich = serve(lambda _: refused(402, "Insufficient credits")), serve(lambda _: GOOD)
    config = asking(poor, endpoints=[poor.url, rich.url])
    assert annotate_documents(pages(20), config, tmp_path / "out", SETTINGS).counts["scored"] == 20
    assert len(poor.requests) <= 4


def test_the_command_says_that_credit_is_missing_and_exits_with_2(serve, pages, asking, tmp_path, capfd, monkeypatch):
    server = serve(lambda _: refused(402, "Insufficient credits"))
    monkeypatch.setenv("ML_FILTER_API_KEY", KEY)
    [page], [prompt] = pages(3).paths, asking(server).prompts
    line = ["annotate", page, "--prompt", prompt, "--endpoint", server.url, "--model", "m"]
    assert main([*line, "--output", str(tmp_path / "out")]) == 2
    assert "out of credit (402: Insufficient credits)" in " ".join(capfd.readouterr().err.split())


# --- The first answers fail alike ----------------------------------------------------------------------------------

ALIKE = {
    "bad_request": refused(400, "Unsupported parameter: 'seed'"),
    "unparsable_score": chat("I cannot say"),
    "only_reasoning": {"choices": [{"message": {"content": None, "reasoning_content": "Score: 4"}}]},
    "content_filter": {"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]},
    "refusal": {"choices": [{"message": {"content": None, "refusal": "I cannot help."}}]},
    "context_too_long": refused(400, "maximum context length is 10"),
    "empty_answer": chat(""),
    "malformed_answer": Reply(b"<html>Sign in</html>"),
    "rate_limited": refused(429, "slow down"),
    "server_error": {"error": {"code": 500, "message": "broken"}},
}


@pytest.mark.parametrize("code", ALIKE)
def test_a_run_stops_if_its_first_answers_fail_alike_and_goes_on_after_the_fix(code, serve, pages, asking, tmp_path):
    server = serve(lambda _: ALIKE[code])
    config, source = asking(server, max_outage_s=60, timeout_s=10), pages(100)
    for done in (20, 40):
        with pytest.raises(EndpointError, match=rf"first 20 answers .* code {code}\..*--retry-failed") as stopped:
            annotate_documents(source, config, tmp_path / "out", SETTINGS)
        assert "run the same command again" in str(stopped.value)
        assert done <= len(statuses(tmp_path / "out")) <= done + 6
    assert max(server.asked.values()) == 1
    server.answer = lambda request: GOOD
    manifest = annotate_documents(source, config.model_copy(update={"retry_failed": True}), tmp_path / "out", SETTINGS)
    assert manifest.counts["scored"] == 100
    assert max(server.asked.values()) <= 2


def test_a_run_with_earlier_answers_stops_too_if_its_first_ones_fail_alike(serve, pages, asking, tmp_path):
    server = serve(lambda request: GOOD if number(request) < 30 else chat("I cannot say"))
    config = asking(server, max_concurrency=1, timeout_s=10, ledger=str(tmp_path / "ledger.sqlite"))
    annotate_documents(pages(30), config, tmp_path / "first", SETTINGS)
    with pytest.raises(EndpointError, match="first 20 answers have all failed with the code unparsable_score"):
        annotate_documents(pages(100), config, tmp_path / "second", SETTINGS)
    assert len(server.requests) == 30 + 20


# --- Batches -------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(serve, pages, asking, tmp_path) -> Callable[..., Callable[..., Manifest]]:
    """Write a batch of N documents; the result collects local results, a status and a body for each request."""

    def write(count: int) -> Callable[..., Manifest]:
        write_batch(pages(count), asking(serve(lambda _: GOOD)), BatchConfig(), tmp_path / "batch", SETTINGS)
        text = (tmp_path / "batch/requests-00000.jsonl").read_text()
        ids = [json.loads(line)["custom_id"] for line in text.splitlines()]

        def collect(answer: Callable[[int], tuple[int, Any]]) -> Manifest:
            results = ({"custom_id": i, "response": dict(zip(("status_code", "body"), answer(n), strict=True))}
                       for n, i in enumerate(ids))  # fmt: skip
            (tmp_path / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
            files = [tmp_path / "results.jsonl"]
            return collect_batch(tmp_path / "batch", tmp_path / "out", results=files, settings=SETTINGS)

        return collect

    return write


def test_collecting_stops_if_the_first_results_fail_alike_and_can_be_repeated(batch, tmp_path):
    collect = batch(50)
    with pytest.raises(
        EndpointError, match=r"first 20 answers .* code bad_request.*run ml-filter annotate on the same"
    ):
        collect(lambda n: (400, {"error": {"message": "Unsupported parameter: 'seed'"}}))
    assert len(statuses(tmp_path / "out")) == 20
    manifest = collect(lambda n: (200, GOOD))
    assert (manifest.counts["scored"], manifest.counts["failed"]) == (50, 0)


def test_requests_of_a_batch_that_found_no_credit_stay_open(batch, tmp_path):
    collect = batch(5)
    with pytest.raises(TooManyFailures, match=r"2 answers are open; 2 requests .*no credit"):
        collect(lambda n: (429, {"error": {"code": "insufficient_quota"}}) if n >= 3 else (200, GOOD))
    assert statuses(tmp_path / "out") == ["scored"] * 3


def test_results_of_a_batch_are_read_like_live_answers(batch):
    answers = [
        (200, {"error": {"code": 400, "message": "prompt is too long"}}),
        (200, {"choices": [{"message": {"content": [{"type": "text", "text": "Score: 2"}]}}]}),
        (403, {"error": {"message": "not for you"}}),
        (200, {"choices": [{"message": {"refusal": "no"}}]}),
        (200, None),
        (200, GOOD),
    ]
    found = [(row["score"], row["error"]) for row in rows(batch(6)(lambda n: answers[n]))]
    expected = [(None, "context_too_long"), (2.0, None), (None, "forbidden"), (None, "refusal")]
    assert found == [*expected, (None, "malformed_answer"), (3.0, None)]


# --- Whatever comes back -------------------------------------------------------------------------------------------


@pytest.mark.slow
@how(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replies=st.lists(st.tuples(st.integers(200, 599), BODIES), min_size=3, max_size=3))
def test_each_document_is_scored_failed_or_open_after_a_bounded_number_of_requests(
    replies, serve, pages, asking, tmp_path_factory
):
    def answer(request: Request) -> Reply:
        status, body = replies[number(request)] if number(request) >= 0 else (200, json.dumps(GOOD).encode())
        return Reply(b"" if status in (204, 205, 304) else body, status)

    server, out = serve(answer), tmp_path_factory.mktemp("out")
    tries = math.ceil(10 * 2) + 1  # a rate limit uses a tenth of the two tries
    try:
        manifest = annotate_documents(pages(3), asking(server, max_retries=1), out, SETTINGS)
        assert manifest.counts["scored"] + manifest.counts["failed"] == len(rows(manifest)) == 3
        assert all((row["score"] is None) == bool(row["error"]) for row in rows(manifest))
    except EndpointError:
        assert len(statuses(out)) < 3
    assert all(asked <= tries for document, asked in server.asked.items())
