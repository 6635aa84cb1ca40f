"""Annotating through batch files: what is written, sent once, and brought back whatever comes back."""

import email
import json
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import given as for_all
from hypothesis import settings as how
from hypothesis import strategies as st
from pydantic import SecretStr

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.batch import batch_status, batch_usd, collect_batch, submission, submit_batch, write_batch
from ml_filter.annotation.config import AnnotateConfig, BatchConfig
from ml_filter.cli import main
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError, EndpointError, InputError, TooManyFailures
from ml_filter.location import Location
from tests.annotation.misbehaving import chat

KEY = "sk-the-very-secret-key"
SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=SecretStr(KEY))
Line = dict[str, Any]


def document_of(request: Line) -> str:
    return re.findall(r"\[(\w+)\]", json.dumps(request["body"]))[-1]


def result(request: Line, body: Any, status: int = 200) -> Line:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}


def good(request: Line) -> Line:
    """A score that tells the document and the vote."""
    return result(request, chat(f"Score: {(int(document_of(request)[1:]) + request['body']['seed']) % 6}"))


def expired(request: Line) -> Line:
    error = {"code": "batch_expired", "message": "This request could not be executed before the completion window"}
    return {"id": "b", "custom_id": request["custom_id"], "response": None, "error": error}


class Provider(ThreadingHTTPServer):
    """Files and batches over HTTP. `answer` gives the lines of results for a request; they are given out backwards.

    `before` and `after` see each call before it has an effect and before its reply; what `before` returns is sent
    instead. A batch runs for `looks` looks, then has the status `ends`.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[Line], list[Line]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.before: Callable[[str], tuple[int, Any] | None] = lambda call: None
        self.after: Callable[[str], None] = lambda call: None
        self.looks, self.ends = 1, "completed"
        self.spoilt: str | None = None
        """What is wrong with the next download: `cut` off, or `short` with a length that says so."""
        self.calls: Counter[str] = Counter()
        self.files: dict[str, tuple[str, bytes]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> Counter[str]:
        """Requests by custom_id over all batches."""
        return Counter(
            json.loads(line)["custom_id"]
            for batch in self.batches.values()
            for line in self.files[batch["input_file_id"]][1].splitlines()
        )

    def file(self, file_id: str) -> dict[str, Any]:
        name, content = self.files[file_id]
        fields = {"id": file_id, "object": "file", "bytes": len(content), "created_at": 0, "filename": name}
        return {**fields, "purpose": "batch", "status": "processed"}

    def add_file(self, name: str, content: bytes) -> dict[str, Any]:
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = (name, content)
        return self.file(file_id)

    def add_batch(self, request: dict[str, Any]) -> tuple[int, Any]:
        lines = [json.loads(line) for line in self.files[request["input_file_id"]][1].splitlines()]
        assert {line["url"] for line in lines} == {request["endpoint"]}
        assert len({line["custom_id"] for line in lines}) == len(lines)
        batch_id = f"batch_{len(self.batches)}"
        fields = {"id": batch_id, "object": "batch", "created_at": 0, "status": "validating", "looks": self.looks}
        self.batches[batch_id] = {**fields, **request}
        return 200, self.batches[batch_id]

    def look(self, batch_id: str) -> dict[str, Any]:
        batch = self.batches[batch_id]
        batch["looks"] -= 1
        batch["status"] = "in_progress" if batch["looks"] >= 0 else self.ends
        if batch["status"] == self.ends and "output_file_id" not in batch and self.ends != "failed":
            requests = [json.loads(line) for line in self.files[batch["input_file_id"]][1].splitlines()]
            lines = [line for request in reversed(requests) for line in self.answer(request)]
            fine = [(line["response"] or {}).get("status_code") == 200 for line in lines]
            for name, wanted in (("output_file_id", True), ("error_file_id", False)):
                kept = [line for line, is_fine in zip(lines, fine, strict=True) if is_fine == wanted]
                content = "".join(json.dumps(line) + "\n" for line in kept).encode()
                batch[name] = self.add_file("results.jsonl", content)["id"] if kept else None
            counts = {"total": len(requests), "completed": sum(fine), "failed": len(lines) - sum(fine)}
            batch["request_counts"] = counts
        if batch["status"] == "failed":
            batch["errors"] = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]}
        return batch

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed in the middle of a request are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Provider

    def do_GET(self) -> None:
        self.handle_call(b"")

    def do_POST(self) -> None:
        self.handle_call(self.rfile.read(int(self.headers["Content-Length"])))

    def handle_call(self, content: bytes) -> None:
        path = urlsplit(self.path).path.removeprefix("/v1/")
        call = f"{self.command} {path}"
        self.server.calls[call] += 1
        self.server.keys.add(self.headers["Authorization"])
        status, body = self.server.before(call) or self.route(call, path, content)
        self.server.after(call)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        length = len(sent)
        if call.endswith("/content") and self.server.spoilt:
            sent, self.close_connection = sent[: length // 2], True
            length = len(sent) if self.server.spoilt == "short" else length
            self.server.spoilt = None
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(sent)

    def route(self, call: str, path: str, content: bytes) -> tuple[int, Any]:
        server = self.server
        if call == "POST files":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = email.message_from_bytes(head + content).get_payload()
            [file] = [part for part in parts if part.get_filename()]
            return 200, server.add_file(file.get_filename(), file.get_payload(decode=True))
        if call == "POST batches":
            return server.add_batch(json.loads(content))
        if call == "GET files":
            return 200, {"object": "list", "data": [server.file(name) for name in server.files], "has_more": False}
        if call == "GET batches":
            return 200, {"object": "list", "data": list(server.batches.values()), "has_more": False}
        if path.startswith("batches/"):
            return 200, server.look(path.split("/")[1])
        if path.endswith("/content"):
            return 200, server.files[path.split("/")[1]][1]
        return 200, server.file(path.split("/")[1])

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def provide() -> Iterator[Callable[..., Provider]]:
    """Start providers; all are stopped after the test."""
    servers: list[Provider] = []

    def start(answer: Callable[[Line], list[Line]] = lambda request: [good(request)]) -> Provider:
        server = Provider(answer)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def written(pages, asking, tmp_path) -> Callable[..., Path]:
    """Write a batch for a provider."""

    def write(provider: Provider, count: int = 6, limits: dict[str, Any] | None = None, **changes: Any) -> Path:
        config = BatchConfig(**(limits or {}))
        write_batch(pages(count), asking(provider, **changes), config, tmp_path / "batch", SETTINGS)
        return tmp_path / "batch"

    return write


def bring_home(batch: Path, output: Path) -> Manifest:
    submit_batch(batch, SETTINGS)
    batch_status(batch, SETTINGS, wait=True, every_s=0.01)
    return collect_batch(batch, output, settings=SETTINGS)


def files_of(batch: Path) -> list[Path]:
    return sorted(batch.glob("requests-*.jsonl"))


def lines_in(batch: Path) -> list[Line]:
    return [json.loads(line) for file in files_of(batch) for line in file.read_text().splitlines()]


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    return pq.read_table(manifest.shard_paths()[0]).to_pylist()


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("created_at", "latency_s")}


def answers_in(ledger: Path) -> Counter[str]:
    with sqlite3.connect(ledger) as db:
        return Counter(status for (status,) in db.execute("SELECT status FROM answers"))


# --- What is written -------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_requests_that_annotate_would_send(serve, pages, asking, prompt_file, tmp_path):
    server = serve(lambda request: chat("Score: 3"))
    prompts = [prompt_file(system="Be strict."), prompt_file("json", mode="json", pattern="", criterion="depth")]
    config = asking(server, prompts=prompts, votes=2, temperature=0.5, seed=7, extra_body={"min_p": 0.1, "seed": None})
    source = pages(3)
    write_batch(source, config, BatchConfig(), tmp_path / "batch", SETTINGS)
    annotate_documents(source, config, tmp_path / "online", SETTINGS)
    written = lines_in(tmp_path / "batch")
    assert len(written) == 3 * 2 * 2
    sent = sorted(json.dumps(request.body, sort_keys=True) for request in server.requests)
    assert sorted(json.dumps(line["body"], sort_keys=True) for line in written) == sent
    assert {(line["method"], line["url"]) for line in written} == {("POST", "/v1/chat/completions")}


def test_a_batch_uses_the_model_name_and_key_of_the_first_endpoint(pages, asking, provide, tmp_path, monkeypatch):
    server = provide()
    monkeypatch.setenv("VENDOR_KEY", "a-key-of-the-vendor")
    entry = {"url": server.url, "model": "vendor/m", "api_key_env": "VENDOR_KEY"}
    write_batch(pages(2), asking(server, endpoints=[entry, "http://x/v1"]), BatchConfig(), tmp_path / "b", SETTINGS)
    assert {line["body"]["model"] for line in lines_in(tmp_path / "b")} == {"vendor/m"}
    manifest = bring_home(tmp_path / "b", tmp_path / "out")
    assert {row["annotator"] for row in pq.read_table(manifest.shard_paths()[0]).to_pylist()} == {"m"}


def test_the_key_is_removed_from_results(pages, asking, provide, tmp_path, monkeypatch):
    server = provide()
    monkeypatch.setenv("VENDOR_KEY", "a-key-of-the-vendor")
    entry = {"url": server.url, "model": "vendor/m", "api_key_env": "VENDOR_KEY"}
    write_batch(pages(2), asking(server, endpoints=[entry]), BatchConfig(), tmp_path / "b", SETTINGS)
    error = {"error": {"message": "a-key-of-the-vendor has no quota"}}
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(result(line, error, 400)) + "\n" for line in lines_in(tmp_path / "b")))
    manifest = collect_batch(tmp_path / "b", tmp_path / "out", results=[path], settings=SETTINGS)
    assert {row["reason"] for row in rows(manifest)} == {"400: *** has no quota"}


@how(max_examples=10, deadline=None)
@for_all(requests=st.integers(1, 7), most_bytes=st.integers(400, 3000))
def test_files_respect_their_limits_and_ids_are_unique_and_short(tmp_path_factory, requests, most_bytes):
    folder = tmp_path_factory.mktemp("limits")
    (folder / "pages.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "text": f"[d{i}] " + "x" * 40 * i}) + "\n" for i in range(8))
    )
    annotate = AnnotateConfig(prompts=["educational_value_small"], model="m")
    limits = BatchConfig(max_requests=requests, max_bytes=most_bytes)
    source = SourceConfig(paths=[str(folder / "pages.jsonl")])
    manifest = write_batch(source, annotate, limits, folder / "batch", SETTINGS)
    files = [file.read_bytes() for file in files_of(folder / "batch")]
    assert manifest.counts["files"] == len(files)
    assert all(content.count(b"\n") == 1 or len(content) <= most_bytes for content in files)
    assert all(1 <= content.count(b"\n") <= requests for content in files)
    ids = [json.loads(line)["custom_id"] for content in files for line in content.splitlines()]
    assert len(set(ids)) == len(ids) == manifest.counts["requests"] == 8
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", custom_id) for custom_id in ids)


def test_chat_and_completion_requests_go_into_separate_files(provide, written, prompt_file):
    choice = {"api": "completion", "mode": "choice", "pattern": "", "choices": {" good": 4, " bad": 1}}
    batch = written(provide(), prompts=[prompt_file(), prompt_file("plain", criterion="depth", **choice)])
    urls = [{json.loads(line)["url"] for line in file.read_text().splitlines()} for file in files_of(batch)]
    assert urls == [{"/v1/chat/completions"}, {"/v1/completions"}]


def test_requests_answered_in_the_ledger_are_not_written(serve, pages, asking, tmp_path):
    server = serve(lambda request: chat("Score: 3" if request.document < "d3" else "no idea"))
    config = asking(server, ledger=str(tmp_path / "shared.sqlite"))
    source = pages(5)
    annotate_documents(source, config, tmp_path / "online", SETTINGS)
    retry = config.model_copy(update={"retry_failed": True})
    assert write_batch(source, config, BatchConfig(), tmp_path / "a", SETTINGS).counts["requests"] == 0
    write_batch(source, retry, BatchConfig(), tmp_path / "b", SETTINGS)
    assert [document_of(line) for line in lines_in(tmp_path / "b")] == ["d3", "d4"]


def test_the_budget_of_a_batch_counts_all_tokens_that_a_request_may_use(pages, asking, provide, tmp_path):
    prices = {"usd_per_million_prompt_tokens": 0.0, "usd_per_million_completion_tokens": 2.0}
    config = asking(provide(), **prices, budget_usd=256 * 1e-6 * 10.5)
    manifest = write_batch(pages(20), config, BatchConfig(), tmp_path / "batch", SETTINGS)
    assert manifest.counts["requests"] == 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": None}, "needs a model name"),
        ({"tokenizer": "server"}, "written without a server"),
        ({"tokenizer": "anything"}, "context-tokens"),
    ],
)
def test_settings_that_need_a_server_are_rejected(changes, says, pages, asking, provide, tmp_path):
    with pytest.raises(ConfigError, match=says):
        write_batch(pages(2), asking(provide(), **changes), BatchConfig(), tmp_path / "batch", SETTINGS)


# --- There and back --------------------------------------------------------------------------------------------------


def test_results_in_any_order_become_the_annotations_that_annotate_makes(
    provide, serve, written, pages, asking, tmp_path
):
    changes = {"votes": 2, "temperature": 0.5}
    provider = provide()
    manifest = bring_home(written(provider, 6, {"max_requests": 5}, **changes), tmp_path / "out")
    assert len(provider.batches) == 3
    online = serve(lambda request: good({"custom_id": "", "body": request.body})["response"]["body"])
    expected = annotate_documents(pages(6), asking(online, **changes), tmp_path / "online", SETTINGS)
    assert [lasting(row) for row in rows(manifest)] == [lasting(row) for row in rows(expected)]
    assert manifest.counts == expected.counts
    assert manifest.config["prompts"] == expected.config["prompts"]
    assert provider.keys == {f"Bearer {KEY}"}


def test_a_batch_and_its_annotations_can_be_at_a_url(provide, pages, asking, bucket):
    provider, batch = provide(), f"{bucket.url}/batch"
    provider.answer = lambda request: [expired(request) if document_of(request) == "d2" else good(request)]
    write_batch(pages(6), asking(provider), BatchConfig(max_requests=4), batch, SETTINGS)
    submit_batch(batch, SETTINGS)
    batch_status(batch, SETTINGS, wait=True, every_s=0.01)
    with pytest.raises(TooManyFailures, match=rf"The others are in the ledger {bucket.url}/out/ledger\."):
        collect_batch(batch, f"{bucket.url}/out", settings=SETTINGS)
    written = [key for key in bucket.keys("batch/") if "/.lease/" not in key]
    assert {"batch/submitted.json", "batch/requests.sqlite", "batch/requests-00001.jsonl"} <= set(written)
    assert "batch/results/requests-00000-output.jsonl" in written
    answers = [good(json.loads(line)) for _, content in [*provider.files.values()][:2] for line in content.splitlines()]
    (Location(bucket.url) / "more.jsonl").write_bytes("".join(json.dumps(line) + "\n" for line in answers).encode())
    manifest = collect_batch(batch, f"{bucket.url}/out", results=[f"{bucket.url}/more.jsonl"], settings=SETTINGS)
    assert (manifest.counts["scored"], manifest.made_with["answers_asked"]) == (6, 1)


def test_a_run_that_slept_until_another_followed_submits_nothing(provide, pages, asking, bucket, monkeypatch):
    provider, batch = provide(), f"{bucket.url}/batch"
    write_batch(pages(2), asking(provider), BatchConfig(), batch, SETTINGS)
    upload = submission._upload

    def followed(*arguments):
        (Location(batch) / ".lease/000002.json").write_bytes(b"{}")
        upload(*arguments)

    monkeypatch.setattr(submission, "_upload", followed)
    with pytest.raises(InputError, match="was taken over by another run"):
        submit_batch(batch, SETTINGS)
    assert not (Location(batch) / "submitted.json").exists()


def test_windows_are_joined_to_their_document(provide, written, prompt_file, tmp_path):
    def answer(request: Line) -> list[Line]:
        text = request["body"]["messages"][-1]["content"]
        return [result(request, chat(f"Score: {2 if '[d' in text else 4}"))]

    windows = {"prompts": [prompt_file(max_text_chars=20)], "long_documents": "windows"}
    manifest = bring_home(written(provide(answer), 3, **windows), tmp_path / "out")
    assert [(row["score"], row["windows"]) for row in rows(manifest)] == [(3.0, 2)] * 3


def test_costs_use_batch_prices(provide, written, tmp_path):
    prices = {"usd_per_million_prompt_tokens": 10.0, "usd_per_million_completion_tokens": 100.0}
    batch = written(provide(), 4, **prices)
    manifest = bring_home(batch, tmp_path / "out")
    assert (manifest.counts["prompt_tokens"], manifest.counts["completion_tokens"]) == (40, 20)
    assert batch_usd(batch, manifest) == pytest.approx(0.5 * (40 * 10e-6 + 20 * 100e-6))


def test_repeating_a_command_does_nothing_twice(provide, written, pages, asking, tmp_path):
    provider = provide()
    batch = written(provider)
    config = AnnotateConfig.model_validate(asking(provider))
    first = bring_home(batch, tmp_path / "out")
    kept = {path: path.stat().st_mtime_ns for path in batch.rglob("*") if path.is_file()}
    calls = provider.calls.copy()
    submit_batch(batch, SETTINGS)
    batch_status(batch, SETTINGS, wait=True)
    assert collect_batch(batch, tmp_path / "out", settings=SETTINGS).digest == first.digest
    again = collect_batch(batch, tmp_path / "other", settings=SETTINGS)
    assert [lasting(row) for row in rows(again)] == [lasting(row) for row in rows(first)]
    assert provider.calls == calls
    assert set(provider.asked.values()) == {1}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    source = SourceConfig.model_validate(first.config["source"])
    assert write_batch(source, config, BatchConfig(), batch, SETTINGS).counts["requests"] == 6


def test_collecting_early_keeps_the_answers_and_reports_running_batches(provide, written, tmp_path):
    provider = provide()
    provider.looks = 2
    batch = written(provider)
    submit_batch(batch, SETTINGS)
    with pytest.raises(TooManyFailures, match=r"6 answers are open; 1 of 1 batches are still running"):
        collect_batch(batch, tmp_path / "out", settings=SETTINGS)
    batch_status(batch, SETTINGS, wait=True, every_s=0.01)
    assert collect_batch(batch, tmp_path / "out", settings=SETTINGS).counts["scored"] == 6


# --- What can come back ----------------------------------------------------------------------------------------------


def test_each_failed_request_has_its_code_and_no_score(provide, written, tmp_path):
    too_long = {"error": {"message": "This model's maximum context length is 8192 tokens"}}
    vllm = {"error": {"message": "The input is too long", "type": "BadRequestError", "code": 400}}
    answers: dict[str, Callable[[Line], Line]] = {
        "d0": lambda request: result(request, too_long, 400),
        "d1": lambda request: {**result(request, None, 400), "error": vllm},
        "d2": lambda request: result(request, {"error": {"message": "overloaded"}}, 503),
        "d3": lambda request: result(request, chat("I cannot say")),
        "d4": lambda request: result(request, {"choices": []}),
        "d5": lambda request: result(request, {"error": {"message": "no such model"}}, 404),
        "d6": lambda request: result(request, {"error": {"message": "slow down"}}, 429),
    }
    provider = provide(lambda request: [answers.get(document_of(request), good)(request)])
    manifest = bring_home(written(provider, 8), tmp_path / "out")
    expected = ["context_too_long", "context_too_long", "server_error", "unparsable_score", "malformed_answer"]
    assert [row["error"] for row in rows(manifest)] == [*expected, "forbidden", "rate_limited", None]
    assert [row["score"] for row in rows(manifest)] == [None] * 7 + [1.0]
    with pytest.raises(TooManyFailures, match=r"7 of 8 .* run ml-filter annotate on the same output with"):
        collect_batch(tmp_path / "batch", tmp_path / "strict", max_failed_share=0.5, settings=SETTINGS)


def test_expired_and_missing_requests_stay_open_and_annotate_finishes_them(
    provide, serve, written, asking, pages, tmp_path
):
    def answer(request: Line) -> list[Line]:
        number = int(document_of(request)[1:])
        return [] if number == 1 else [expired(request) if number >= 4 else good(request)]

    provider = provide(answer)
    provider.ends = "expired"
    batch = written(provider)
    with pytest.raises(TooManyFailures, match=r"3 answers are open; 2 requests expired, were cancelled") as stopped:
        bring_home(batch, tmp_path / "out")
    assert f"let ml-filter annotate finish {tmp_path / 'out'}" in str(stopped.value)
    assert answers_in(tmp_path / "out" / "ledger.sqlite") == {"scored": 3}
    online = serve(lambda request: chat("Score: 5"))
    source = SourceConfig(paths=[str(tmp_path / "pages.jsonl")])
    manifest = annotate_documents(source, asking(online), tmp_path / "out", SETTINGS)
    assert online.asked == {"d1": 1, "d4": 1, "d5": 1}
    assert [row["score"] for row in rows(manifest)] == [0, 5, 2, 3, 5, 5]


def test_of_several_results_for_a_request_the_first_usable_one_counts(provide, written, tmp_path):
    def answer(request: Line) -> list[Line]:
        bad, later = result(request, {"error": {"message": "x"}}, 500), result(request, chat("Score: 5"))
        lines = {"d0": [bad, good(request)], "d1": [good(request), bad], "d2": [good(request), later]}
        return lines[document_of(request)]

    manifest = bring_home(written(provide(answer), 3), tmp_path / "out")
    assert [row["score"] for row in rows(manifest)] == [0, 1, 2]
    assert manifest.counts["prompt_tokens"] == 30


@pytest.mark.parametrize("spoilt", ["cut", "short"])
def test_an_interrupted_download_is_repeated_and_never_read(spoilt, provide, written, tmp_path):
    provider = provide()
    batch = written(provider)
    submit_batch(batch, SETTINGS)
    batch_status(batch, SETTINGS, wait=True, every_s=0.01)
    provider.spoilt = spoilt
    with pytest.raises(EndpointError, match="run the command again"):
        collect_batch(batch, tmp_path / "out", settings=SETTINGS)
    assert not list((batch / "results").glob("requests*"))
    assert collect_batch(batch, tmp_path / "out", settings=SETTINGS).counts["scored"] == 6


def test_a_batch_rejected_by_the_provider_reports_the_reason(provide, written, tmp_path):
    provider = provide()
    provider.ends = "failed"
    with pytest.raises(TooManyFailures, match=r"6 answers are open; requests-00000.jsonl: token_limit_exceeded"):
        bring_home(written(provider), tmp_path / "out")


def test_local_results_need_no_provider(provide, written, tmp_path):
    batch = written(provide(), 5)
    requests = lines_in(batch)
    content = "".join(json.dumps(good(request)) + "\n" for request in reversed(requests))
    (tmp_path / "results.jsonl").write_text(content[:-40])
    with pytest.raises(TooManyFailures, match="1 answers are open"):
        collect_batch(batch, tmp_path / "out", results=[tmp_path / "results.jsonl"], settings=SETTINGS)
    (tmp_path / "results.jsonl").write_text(content)
    manifest = collect_batch(batch, tmp_path / "out", results=[tmp_path / "results.jsonl"], settings=SETTINGS)
    assert [row["score"] for row in rows(manifest)] == [0, 1, 2, 3, 4]
    assert manifest.counts["prompt_tokens"] == 50


def test_results_of_another_batch_are_refused(provide, written, tmp_path):
    batch = written(provide())
    (tmp_path / "results.jsonl").write_text(json.dumps(good({**lines_in(batch)[0], "custom_id": "other"})) + "\n")
    with pytest.raises(InputError, match=r"results.jsonl has no result of a request in"):
        collect_batch(batch, tmp_path / "out", results=[tmp_path / "results.jsonl"], settings=SETTINGS)


def test_a_changed_prompt_or_text_does_not_get_the_old_answer(provide, written, prompt_file, tmp_path):
    batch = written(provide(), 3)
    submit_batch(batch, SETTINGS)
    batch_status(batch, SETTINGS, wait=True, every_s=0.01)
    pages = tmp_path / "pages.jsonl"
    before = pages.read_text()
    pages.write_text(before.replace("subject 1", "another subject"))
    with pytest.raises(TooManyFailures, match="1 answers are open"):
        collect_batch(batch, tmp_path / "a", settings=SETTINGS)
    pages.write_text(before)
    prompt_file(text="Another question\n{text}\nScore: ?")
    with pytest.raises(InputError, match="a prompt has changed since"):
        collect_batch(batch, tmp_path / "b", settings=SETTINGS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("name", "damage"),
    [("requests.sqlite", cut), ("requests.sqlite", Path.unlink), ("requests-00000.jsonl", Path.unlink)],
)
def test_the_error_for_a_damaged_batch_says_how_to_collect_its_results(
    name, damage, provide, written, pages, asking, tmp_path
):
    server = provide()
    batch, results = written(server), tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(good(request)) + "\n" for request in lines_in(batch)))
    damage(batch / name)
    with pytest.raises(InputError, match=rf"{name} is (missing|damaged).*Write the batch again into another directory"):
        submit_batch(batch, SETTINGS)
    assert not server.calls
    write_batch(pages(6), asking(server), BatchConfig(), tmp_path / "again", SETTINGS)
    manifest = collect_batch(tmp_path / "again", tmp_path / "out", results=[results], settings=SETTINGS)
    assert (manifest.counts["scored"], manifest.counts["failed"]) == (6, 0)


def test_a_damaged_state_of_submissions_is_reported_and_nothing_is_submitted(provide, written):
    server = provide()
    batch = written(server)
    submit_batch(batch, SETTINGS)
    path = batch / "submitted.json"
    path.write_bytes(path.read_bytes()[:50])
    for command in (submit_batch, batch_status):
        with pytest.raises(InputError, match=r"submitted\.json is damaged: .*restore it from a copy"):
            command(batch, SETTINGS)
    assert len(server.batches) == 1


def test_a_missing_file_of_results_is_reported(provide, written, tmp_path):
    batch = written(provide())
    for path in (tmp_path / "nothing.jsonl", tmp_path):
        with pytest.raises(InputError, match=f"{path} is not a file of results"):
            collect_batch(batch, tmp_path / "out", results=[path], settings=SETTINGS)


def test_collecting_a_batch_that_was_not_submitted_says_so(provide, written, tmp_path):
    batch = written(provide())
    with pytest.raises(InputError, match=rf"has not been submitted: run ml-filter batch submit {batch}"):
        collect_batch(batch, tmp_path / "out", settings=SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ends", ["expired", "cancelled"])
def test_only_the_unanswered_requests_of_a_batch_that_ended_early_are_resubmitted(ends, provide, written, tmp_path):
    error = {"error": {"message": "no such parameter"}}
    late = {"d4", "d5"}

    def answer(request: Line) -> list[Line]:
        document = document_of(request)
        wrong = result(request, error, 400) if document == "d1" else good(request)
        return [] if document == "d0" and late else [expired(request) if document in late else wrong]

    provider = provide(answer)
    provider.ends = ends
    batch = written(provider)
    with pytest.raises(TooManyFailures, match=r"3 answers are open.*ml-filter batch submit --resubmit"):
        bring_home(batch, tmp_path / "out")
    assert len(submit_batch(batch, SETTINGS)) == len(provider.batches) == 1
    late.clear()
    provider.ends = "completed"
    for _ in range(2):
        submissions = submit_batch(batch, SETTINGS, resubmit=True)
        assert [(one.file, one.requests) for one in submissions] == [
            ("requests-00000.jsonl", 6),
            ("requests-00000-again-2.jsonl", 3),
        ]
    manifest = bring_home(batch, tmp_path / "out")
    assert [row["score"] for row in rows(manifest)] == [0, None, 2, 3, 4, 5]
    asked = {document_of(line): provider.asked[line["custom_id"]] for line in lines_in(batch)}
    assert asked == {"d0": 2, "d1": 1, "d2": 1, "d3": 1, "d4": 2, "d5": 2}


def test_a_rejected_batch_can_be_resubmitted_repeatedly(provide, written, tmp_path):
    provider = provide()
    provider.ends = "failed"
    batch = written(provider, 6, {"max_requests": 3})
    for times in (1, 2):
        submit_batch(batch, SETTINGS, resubmit=True)
        batch_status(batch, SETTINGS, wait=True, every_s=0.01)
        assert len(provider.batches) == 2 * times
    provider.ends = "completed"
    submit_batch(batch, SETTINGS, resubmit=True)
    assert bring_home(batch, tmp_path / "out").counts["scored"] == 6
    assert len({name for name, _ in provider.files.values() if name != "results.jsonl"}) == 6


def test_an_interrupted_resubmission_submits_the_rest_once(provide, written, monkeypatch, tmp_path):
    provider = provide(lambda request: [expired(request)])
    provider.ends = "expired"
    batch = written(provider)
    submit_batch(batch, SETTINGS)
    batch_status(batch, SETTINGS, wait=True, every_s=0.01)
    provider.answer, provider.ends = lambda request: [good(request)], "completed"
    monkeypatch.setattr(submission, "_SETTLED_S", 0.0)
    saved = submission._create

    def created_and_cut_off(*arguments: Any) -> None:
        provider.after = lambda call: (_ for _ in ()).throw(ConnectionResetError) if call == "POST batches" else None
        saved(*arguments)

    monkeypatch.setattr(submission, "_create", created_and_cut_off)
    with pytest.raises(EndpointError):
        submit_batch(batch, SETTINGS, resubmit=True)
    monkeypatch.setattr(submission, "_create", saved)
    provider.after = lambda call: None
    submit_batch(batch, SETTINGS, resubmit=True)
    assert len(provider.batches) == 2
    assert bring_home(batch, tmp_path / "out").counts["scored"] == 6


# --- Submitted once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before it is sent", "after it has arrived"])
@pytest.mark.parametrize("resource", [openai.resources.Files, openai.resources.Batches])
def test_a_kill_at_the_second_upload_or_creation_submits_no_file_twice(
    resource, when, provide, written, monkeypatch, tmp_path
):
    provider = provide()
    batch = written(provider, 6, {"max_requests": 3})
    monkeypatch.setattr(submission, "_SETTLED_S", 0.0)
    create, calls = resource.create, count(1)

    def create_and_die(self: Any, **fields: Any) -> Any:
        number = next(calls)
        if number == 2 and when == "before it is sent":
            raise KeyboardInterrupt
        created = create(self, **fields)
        if number == 2:
            raise KeyboardInterrupt
        return created

    with monkeypatch.context() as killed:
        killed.setattr(resource, "create", create_and_die)
        with pytest.raises(KeyboardInterrupt):
            submit_batch(batch, SETTINGS)
    submissions = submit_batch(batch, SETTINGS)
    assert [entry.batch_id for entry in submissions] == ["batch_0", "batch_1"]
    assert len({name for name, _ in provider.files.values()}) == len(provider.files) == 2
    assert len(provider.batches) == 2
    assert set(provider.asked.values()) == {1}
    assert bring_home(batch, tmp_path / "out").counts["scored"] == 6


def test_a_creation_that_was_just_interrupted_gets_time_to_arrive(provide, written, monkeypatch):
    provider = provide()
    batch = written(provider)
    provider.before = lambda call: (500, {"error": {"message": "broken"}}) if call == "POST batches" else None
    with pytest.raises(EndpointError, match="broken"):
        submit_batch(batch, SETTINGS)
    assert provider.calls["POST batches"] == 1
    provider.before = lambda call: None
    monkeypatch.setattr(submission, "_SETTLED_S", 1.5)
    start = time.monotonic()
    submit_batch(batch, SETTINGS)
    assert 0.5 < time.monotonic() - start < 10
    assert len(provider.batches) == 1


def test_if_the_provider_cannot_list_batches_nothing_is_resubmitted_without_resubmit(provide, written, monkeypatch):
    provider = provide()
    batch = written(provider)
    monkeypatch.setattr(submission, "_SETTLED_S", 0.0)
    provider.before = lambda call: (500, {"error": {"message": "broken"}}) if call == "POST batches" else None
    with pytest.raises(EndpointError, match="broken"):
        submit_batch(batch, SETTINGS)
    provider.before = lambda call: (404, {"error": {"message": "no list"}}) if call == "GET batches" else None
    with pytest.raises(EndpointError, match=r"it is unknown whether requests-00000.jsonl was submitted.*--resubmit"):
        submit_batch(batch, SETTINGS)
    assert not provider.batches
    submit_batch(batch, SETTINGS, resubmit=True)
    assert len(provider.batches) == 1


def test_a_rejected_creation_is_repeated_without_a_search_and_hides_the_key(provide, written):
    provider = provide()
    batch = written(provider)
    for status, says in ((400, "quota"), (401, "rejected the key")):
        provider.before = lambda call, status=status: (status, {"error": {"message": f"quota of {KEY}"}})
        with pytest.raises(EndpointError, match=says) as refused:
            submit_batch(batch, SETTINGS)
        assert KEY not in str(refused.value)
    provider.before = lambda call: (400, {"error": {"message": "no"}}) if call == "POST batches" else None
    with pytest.raises(EndpointError):
        submit_batch(batch, SETTINGS)
    provider.before = lambda call: None
    [submission] = submit_batch(batch, SETTINGS)
    assert submission.batch_id == "batch_0"
    assert provider.calls["GET batches"] == 0
    assert KEY not in "".join(path.read_text(errors="replace") for path in batch.rglob("*") if path.is_file())


def test_a_batch_directory_is_used_by_one_process_and_must_be_a_batch(provide, written, tmp_path):
    batch = written(provide())
    with FileLock(batch / ".lock"), pytest.raises(InputError, match="in use by another process"):
        submit_batch(batch, SETTINGS)
    with pytest.raises(InputError, match="does not exist"):
        submit_batch(tmp_path / "nowhere", SETTINGS)
    manifest = bring_home(batch, tmp_path / "out")
    with pytest.raises(InputError, match="holds annotations, not a batch"):
        submit_batch(manifest.root, SETTINGS)


def test_the_commands_write_submit_follow_and_collect_a_batch(provide, pages, asking, tmp_path, monkeypatch, capsys):
    provider = provide()
    pages(4)
    prompt = asking(provider).prompts[0]
    monkeypatch.setenv("ML_FILTER_API_KEY", KEY)
    monkeypatch.setenv("ML_FILTER_ENDPOINT", provider.url)
    monkeypatch.chdir(tmp_path)

    def batch(*arguments: str) -> str:
        assert main(["batch", *arguments]) == 0
        return capsys.readouterr().out

    batch("write", "pages.jsonl", "--prompt", prompt, "--model", "m", "--output", "batch")
    assert "batch_0" in batch("submit", "batch")
    assert "completed" in batch("status", "batch", "--wait", "--every", "0.1")
    assert "scored" in batch("collect", "batch", "--output", "annotations")
    assert (tmp_path / "annotations" / "manifest.json").exists()
