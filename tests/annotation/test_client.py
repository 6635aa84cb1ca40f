"""One request to one server: every way in which it can go wrong has a name."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import SecretStr

from ml_filter.annotation import client
from ml_filter.annotation.client import Client, Endpoint
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.responses import storable
from ml_filter.errors import EndpointError
from tests.annotation.misbehaving import Reply, chat, refused

KEY = "sk-the-very-secret-key"


def endpoint(url: str) -> Endpoint:
    return Endpoint(url, "m", SecretStr(KEY))


def post(url: str, times: int = 1, timeout_s: float = 1.0, pause_s: float = 0.0) -> Any:
    async def run() -> Any:
        one = Client(timeout_s)
        try:
            for _ in range(times):
                answer = await one.ask(endpoint(url), "chat/completions", {"messages": []})
                await asyncio.sleep(pause_s)
            return answer
        finally:
            await one.close()

    return asyncio.run(run())


def failure(reply: Reply, serve: Any, **given: Any) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        post(serve(lambda _: reply).url, **given)
    return caught.value


def test_an_answer_that_trickles_in_ends_at_the_time_out(serve):
    start = time.monotonic()
    assert failure(Reply(chat("Score: 3"), fault="trickle"), serve, timeout_s=0.4).code == "timeout"
    assert time.monotonic() - start < 1.5


def test_a_huge_answer_is_not_read_into_memory(serve, monkeypatch):
    monkeypatch.setattr(client, "_MAX_BYTES", 10_000)
    assert post(serve(lambda _: Reply(chat("x" * 9_000))).url)
    assert failure(Reply(chat("x" * 11_000)), serve).code == "malformed_answer"


def test_a_small_archive_of_a_huge_answer_is_not_read_into_memory(serve, monkeypatch):
    monkeypatch.setattr(client, "_MAX_BYTES", 100_000)
    body = gzip.compress(json.dumps(chat("x" * 10_000_000)).encode())
    assert len(body) < 20_000
    assert failure(Reply(body, headers={"Content-Encoding": "gzip"}), serve).code == "malformed_answer"


def test_compressed_answers_are_unpacked_and_broken_ones_are_an_error(serve):
    body = gzip.compress(json.dumps(chat("Score: 3")).encode())
    server = serve(lambda _: Reply(body, headers={"Content-Encoding": "gzip"}))
    assert post(server.url).text == "Score: 3"
    assert failure(Reply(b"no zip", headers={"Content-Encoding": "gzip"}), serve).code == "connection_error"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_reported_and_not_followed(status, serve):
    other = serve(lambda _: chat("Score: 3"))
    server = serve(lambda _: Reply(b"", status, {"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(RequestFailed, match=rf"{status}: it redirects to {other.url}") as caught:
        post(server.url)
    assert caught.value.code == "forbidden"
    assert other.requests == []


def test_connections_are_reused_and_reopened_when_the_server_closes_them(serve):
    server = serve(lambda _: chat("Score: 3"))
    ports = set()
    check = server.verify_request
    server.verify_request = lambda request, address: ports.add(address[1]) is None and check(request, address)
    assert post(server.url, times=20)
    assert len(ports) == 1
    forgetful = serve(lambda _: Reply(chat("Score: 3"), fault="close"))
    assert post(forgetful.url, times=5, pause_s=0.05)


@pytest.mark.parametrize("deep", ['{"choices":' + "[" * 100_000, '{"a":' * 100_000])
def test_deeply_nested_json_is_malformed(deep, serve):
    assert failure(Reply(deep.encode()), serve).code == "malformed_answer"
    assert failure(Reply(deep.encode(), 400), serve).code == "bad_request"


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 4000 tokens",
        "the request exceeds the available context size. try increasing the context size",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "prompt is too long: 210000 tokens > 200000 maximum",
    ],
)
def test_the_ways_in_which_servers_report_a_text_that_is_too_long(said, serve):
    error = failure(refused(400, said), serve)
    assert (error.code, error.refused) == ("context_too_long", True)


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 503, 504, 529])
def test_temporary_errors_are_not_rejections(status, serve):
    error = failure(refused(status, "later", Retry_After="7"), serve)
    assert (error.code, error.refused, error.retry_after_s) == ("server_error", False, 7)


def test_retry_after_is_seconds_or_a_date_and_anything_else_is_ignored(serve):
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    waits = {"1.5": 1.5, "-3": 0.0, "soon": None, "nan": None, "inf": None, "1e999": None, "": None}
    for said, seconds in waits.items():
        assert failure(refused(429, "later", Retry_After=said), serve).retry_after_s == seconds
    assert failure(refused(429, "later", Retry_After=in_a_minute), serve).retry_after_s == pytest.approx(60, abs=5)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://", "", "http://user:password@127.0.0.1:9/v1", "v1"])
def test_an_invalid_url_is_reported_without_its_password(url):
    with pytest.raises(EndpointError, match="--endpoint") as caught:
        post(url)
    assert "password@" not in str(caught.value)


def test_keys_in_netrc_are_not_used(serve, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve(lambda _: chat("Score: 3"))
    assert post(server.url)
    assert server.keys == {f"Bearer {KEY}"}


def test_the_proxy_of_the_environment_is_used_except_for_excluded_hosts(serve, monkeypatch):
    proxy, server = serve(lambda _: chat("by the proxy")), serve(lambda _: chat("straight"))
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    for exception in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(exception, "")
    assert post(server.url).text == "by the proxy"
    for exception in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(exception, "127.0.0.1")
    assert post(server.url).text == "straight"


def test_a_failing_proxy_is_reported_without_its_password(serve, monkeypatch):
    proxy = serve(lambda _: chat("no tunnels here")).url.removesuffix("/v1").replace("//", "//someone:the-password@")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(EndpointError, match=r"the proxy http://\*\*\*@127\.0\.0\.1.* refuses.*HTTPS_PROXY") as caught:
        post("https://judge.invalid/v1")
    assert "the-password" not in str(caught.value)
    assert "someone" not in str(caught.value)


def test_an_error_without_a_message_reports_its_status(serve):
    assert str(failure(Reply(b"", 418), serve)) == "418: no message"


def test_lone_surrogates_become_question_marks():
    assert storable("a\ud83db \N{GRINNING FACE}") == "a?b \N{GRINNING FACE}"
