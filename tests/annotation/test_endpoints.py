"""A pool of endpoints: which requests a server gets that slows down, rejects, dies and comes back."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Sequence
from typing import Any

import pytest
from loguru import logger
from pydantic import SecretStr

from ml_filter.annotation import endpoints
from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.endpoints import Circuit, EndpointPool
from ml_filter.annotation.failures import RequestFailed
from ml_filter.errors import EndpointError
from tests.annotation.misbehaving import MisbehavingServer, Reply, Request, chat, refused

# --- The circuit -----------------------------------------------------------------------------------------------------


def test_the_circuit_opens_after_failures_in_a_row_without_an_answer_for_two_seconds():
    circuit = Circuit(0.0)
    assert [circuit.failed(1.0) for _ in range(10)] == [False] * 10
    assert [circuit.failed(2.0) for _ in range(3)] == [True, False, False]
    circuit.answered(5.0)
    assert not circuit.is_open
    assert [circuit.failed(9.0) for _ in range(5)] == [False, False, False, False, True]


def test_the_circuit_stays_closed_while_a_quarter_of_the_requests_fails():
    circuit, rng = Circuit(0.0), random.Random(3)
    for i in range(100_000):
        if rng.random() < 0.25:
            assert not circuit.failed(i * 0.001)
        else:
            circuit.answered(i * 0.001)


# --- The pool, against real servers ----------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """The same pool with shorter times, so that outages can be tested in a second."""
    monkeypatch.setattr(endpoints, "_OPEN_AFTER_S", 0.2)
    monkeypatch.setattr(endpoints, "_PING_AFTER_S", (0.1, 1.0))
    monkeypatch.setattr(endpoints, "_FIRST_ANSWER_WITHIN_S", 1.0)
    monkeypatch.setattr(endpoints, "_backoff_s", lambda attempts: random.uniform(0.05, 0.15))


def ask(urls: Sequence[str], documents: Sequence[str], *, in_flight: int = 20, **changes: Any) -> list[Any]:
    """The answer about each document, or what was raised; never more than 20 s."""
    settings: dict[str, Any] = {"max_concurrency": in_flight, "timeout_s": 1.0, "max_retries": 5, "max_outage_s": 5.0}

    async def run() -> list[Any]:
        async with EndpointPool(
            [Endpoint(url, "m", SecretStr("none")) for url in urls], AskConfig(**settings | changes)
        ) as pool:
            places = asyncio.Semaphore(in_flight)

            async def one(document: str) -> str:
                def body_for(endpoint: Endpoint) -> dict[str, Any]:
                    return {"model": endpoint.model, "messages": [{"role": "user", "content": f"[{document}]"}]}

                async with places:
                    return (await pool.post("chat/completions", body_for)).text

            return await asyncio.gather(*map(one, documents), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(run(), timeout=20))


def echo(request: Request) -> Reply:
    return Reply(chat(request.document), delay_s=0.01)


def closed_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"


DOCUMENTS = [f"d{i}" for i in range(200)]


@pytest.mark.parametrize(
    "down",
    [Reply(None, fault="reset"), refused(503, "loading"), Reply(None, fault="hang")],
    ids=["reset", "503", "hang"],
)
@pytest.mark.usefixtures("impatient")
def test_a_server_outage_fails_no_document_and_costs_few_requests(down, serve):
    died: list[float] = []
    while_dead = 0

    def answer(request: Request) -> Reply:
        nonlocal while_dead
        if len(server.requests) > 60 and not died:
            died.append(time.monotonic())
        if died and time.monotonic() < died[0] + 1.0:
            while_dead += 1
            return down
        return echo(request)

    server: MisbehavingServer = serve(answer)
    assert ask([server.url], DOCUMENTS) == DOCUMENTS
    assert while_dead < 120


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_that_never_answered_ends_the_run_soon():
    start = time.monotonic()
    results = ask([closed_port()], DOCUMENTS, max_outage_s=60)
    assert time.monotonic() - start < 12
    assert all(isinstance(error, EndpointError) for error in results)
    assert "--endpoint (ML_FILTER_ENDPOINT)" in str(results[0])


@pytest.mark.usefixtures("impatient")
def test_an_outage_that_lasts_too_long_fails_all_waiting_requests(serve):
    server = serve(lambda request: echo(request) if len(server.requests) <= 50 else Reply(None, fault="reset"))
    results = ask([server.url], DOCUMENTS, in_flight=100, max_outage_s=1)
    answered = [result for result in results if isinstance(result, str)]
    assert len(answered) == 50
    assert sum(isinstance(error, EndpointError) for error in results) == 150
    assert len(server.requests) < 500


@pytest.mark.usefixtures("impatient")
def test_when_one_of_two_endpoints_dies_the_other_takes_over(serve):
    dying = serve(lambda request: echo(request) if len(dying.requests) <= 20 else Reply(None, fault="reset"))
    well = serve(echo)
    assert ask([dying.url, well.url], DOCUMENTS, max_retries=1) == DOCUMENTS
    assert len(well.requests) >= 180


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_that_is_down_from_the_start_does_not_affect_the_other(serve):
    well = serve(echo)
    assert ask([closed_port(), well.url], DOCUMENTS, max_retries=1) == DOCUMENTS


@pytest.mark.usefixtures("impatient")
def test_a_failed_try_waits_for_room_at_another_endpoint(serve):
    broken = serve(lambda request: refused(500, "out of memory"))
    busy = serve(lambda request: Reply(chat(request.document), delay_s=0.2))
    assert ask([broken.url, busy.url], DOCUMENTS[:40], max_retries=1) == DOCUMENTS[:40]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_rejects_key_or_model_is_excluded(status, serve):
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING")
    wrong, well = serve(lambda _: refused(status, "no")), serve(echo)
    try:
        assert ask([wrong.url, well.url], DOCUMENTS, max_retries=0) == DOCUMENTS
    finally:
        logger.remove(sink)
    assert len(wrong.requests) <= 20
    [warning] = [warning for warning in warnings if "The run continues without it" in warning]
    assert wrong.url in warning
    assert f"continues without it, with {well.url}" in warning


@pytest.mark.usefixtures("impatient")
def test_excluding_the_last_endpoint_fails_all_waiting_requests(serve):
    wrong = [serve(lambda _: refused(401, "no")), serve(lambda _: refused(404, "no such model"))]
    results = ask([server.url for server in wrong], DOCUMENTS)
    assert all(isinstance(error, EndpointError) for error in results)
    assert sum(len(server.requests) for server in wrong) <= 40


@pytest.mark.usefixtures("impatient")
def test_a_rate_limited_endpoint_rests_while_the_other_works(serve):
    limited = serve(lambda _: refused(429, "slow down", Retry_After="3"))
    well = serve(echo)
    assert ask([limited.url, well.url], DOCUMENTS, in_flight=10) == DOCUMENTS
    assert len(limited.requests) <= 10


@pytest.mark.usefixtures("impatient")
def test_a_long_rate_limit_is_waited_for_at_most_as_long_as_an_outage(serve):
    server = serve(
        lambda request: refused(429, "quota", Retry_After="86400") if len(server.requests) < 5 else echo(request)
    )
    assert ask([server.url], ["a"], max_outage_s=0.5) == ["a"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("others", [0, 100])
def test_documents_that_crash_the_server_fail_and_are_not_an_outage(others, serve):
    server = serve(
        lambda request: refused(500, "assertion failed") if request.document.startswith("bad") else echo(request)
    )
    documents = [f"bad{i}" for i in range(12)] + DOCUMENTS[:others]
    results = ask([server.url], documents, max_retries=2, max_outage_s=1.0)
    assert [error.code for error in results[:12] if isinstance(error, RequestFailed)] == ["server_error"] * 12
    assert results[12:] == DOCUMENTS[:others]


@pytest.mark.usefixtures("impatient")
def test_a_rate_limit_costs_a_tenth_of_a_try(serve):
    server = serve(lambda request: refused(429, "slow down") if len(server.requests) < 8 else echo(request))
    assert ask([server.url], ["a"], max_retries=2) == ["a"]
    assert server.asked["a"] > 3


@pytest.mark.usefixtures("impatient")
def test_a_malformed_answer_is_retried(serve):
    server = serve(lambda request: Reply({"choices": []}) if request.nth == 1 else echo(request))
    assert ask([server.url], ["a"], max_retries=1) == ["a"]
