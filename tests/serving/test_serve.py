"""Scoring documents over HTTP: results, limits, timeouts, shutdown."""

import json
import socket
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import text_id
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.info import read_info
from ml_filter.heads.kinds import load_head
from ml_filter.heads.store import read_head
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.serving.service import Metrics
from tests.serving.servers import ProcessServer, ThreadServer

LANGUAGES = [
    "Die Zelle teilt sich durch Mitose.",
    "细胞通过有丝分裂进行分裂。",
    "الخلية تنقسم بالانقسام المتساوي",
    "เซลล์แบ่งตัว",
    "हिन्दी भाषा",
    "👩‍🔬🧪 \u202e",
    "a\x00b\r\n\tc",
]


@pytest.fixture(scope="module")
def engine(head):
    return load_head(head, ScoreConfig())


def expected(engine, text, id=None):
    """The result of a text that can be scored."""
    [[score]] = engine.score([text]).tolist()
    [criterion] = engine.info.criteria
    [whole] = criterion.integer_scores([score]).tolist()
    scores = {"label": {"score": score, "int_score": whole}}
    return {"id": id or text_id(text), "status": "scored", "reason": None, "scores": scores}


def failed(reason, id):
    return {"id": id, "status": "failed", "reason": reason, "scores": {"label": {"score": None, "int_score": None}}}


def test_one_line_announces_that_the_service_is_ready_and_health_agrees(shared, head):
    assert shared.line.startswith(f"{Path(head).name} is ready at http://127.0.0.1:")
    answer = shared.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_document_gets_the_score_of_the_engine(shared, engine, documents):
    text = documents[0]["text"]
    for request, id in (({"text": text}, None), ({"text": text, "id": "d0"}, "d0")):
        answer = shared.client.post("/score", json=request)
        assert (answer.status_code, answer.json()) == (200, {"documents": [expected(engine, text, id)]})


def test_results_have_the_order_and_ids_of_the_request_failed_documents_included(shared, engine, documents):
    texts = [row["text"] for row in documents[:3]]
    rows = [{"id": "b", "text": texts[0]}, {"id": 7, "text": " \n"}, {"text": texts[1]}, {"id": "a", "text": texts[2]}]
    answer = shared.score(*rows)
    assert answer.status_code == 200
    assert answer.json()["documents"] == [
        expected(engine, texts[0], "b"),
        failed("empty_text", 7),
        expected(engine, texts[1]),
        expected(engine, texts[2], "a"),
    ]
    assert shared.score().json() == {"documents": []}


def test_texts_of_any_language_are_scored(shared, engine):
    assert shared.score(*LANGUAGES).json()["documents"] == [expected(engine, text) for text in LANGUAGES]


def test_a_lone_surrogate_fails_only_its_document(shared, engine):
    body = rb'{"documents": [{"id": "broken", "text": "\ud800 lone"}, {"id": "whole", "text": "\ud83e\uddea glass"}]}'
    answer = shared.client.post("/score", content=body)
    assert answer.json()["documents"] == [failed("invalid_utf8", "broken"), expected(engine, "🧪 glass", "whole")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=60), max_size=8))
def test_every_text_is_answered(shared, engine, texts):
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    wanted = [
        expected(engine, row["text"], row["id"]) if row["text"].strip() else failed("empty_text", row["id"])
        for row in rows
    ]
    assert shared.score(*rows).json() == {"documents": wanted}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"text": "cut', "the body is not JSON"),
        (b"", "the body is not JSON"),
        (b"\xff\xfe\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "body: Input should be a valid dictionary"),
        (b"{}", "provide either text or documents"),
        (b'{"text": "a", "documents": []}', "provide either text or documents"),
        (b'{"text": 3}', "text: must be a string"),
        (b'{"documents": "a"}', "documents: Input should be a valid list"),
        (b'{"documents": [{"text": "a"}, {"id": 1}]}', "documents.1.text: Field required"),
        (b'{"documents": [{"text": "a", "id": [1]}]}', "documents.0.id"),
    ],
)
def test_an_invalid_request_gets_422_and_the_reason(shared, body, message):
    answer = shared.client.post("/score", content=body)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_info_describes_the_head_and_its_scores(shared, head):
    info = shared.client.get("/info").json()
    [criterion] = read_info(head).criteria
    assert info["digest"] == read_head(head).digest
    assert (info["engine"], info["device"], info["dtype"]) == ("hashing", "cpu", "float32")
    [described] = info["criteria"]
    assert (described["name"], described["low"], described["high"], described["threshold"]) == ("label", 0, 5, 3)
    assert described["int_score_from"] == {str(k): cut for k, cut in criterion.calibration.cuts.items()}
    assert [row["score"] for row in described["thresholds"]] == [row.score for row in criterion.calibration.table]
    assert str(Path(head).parent) not in json.dumps(info)


def test_an_unknown_path_gets_404_and_is_counted_as_other(shared):
    assert shared.client.get("/no/such/path").status_code == 404
    assert shared.metrics()["requests_total.404.other"] >= 1
    assert shared.client.get("/openapi.json").json()["paths"].keys() == {"/score", "/health", "/info", "/metrics"}


def test_requests_that_arrive_while_the_head_is_busy_form_one_batch(shared, engine, documents, gate, pool):
    before = shared.metrics()
    held = hold(shared, pool, gate)
    texts = [row["text"] for row in documents[:40]]
    requests = [pool.submit(shared.score, text) for text in texts]
    shared.wait_for("queue_documents", 40)
    gate.touch()
    answers = [request.result() for request in requests]
    assert [answer.json()["documents"] for answer in answers] == [[expected(engine, text)] for text in texts]
    assert held.result().status_code == 200
    grown = shared.metrics(before)
    assert (grown["batch_documents_count"], grown["batch_documents_sum"]) == (2, 41)
    assert grown["requests_total.200./score"] == grown["score_seconds_count"] == grown["documents_total.scored"] == 41
    assert grown["characters_total"] == sum(map(len, [*texts, f"hold {gate}"]))
    metrics = shared.metrics()
    assert (metrics["queue_documents"], metrics["held_bytes"], metrics["ready"]) == (0, 0, 1)


def held_body(gate):
    return httpx.Request("POST", "http://a", json={"documents": [{"text": f"hold {gate}"}]}).content


def hold(server, pool, gate):
    """Keep the head busy; returns the future response."""
    held = pool.submit(server.score, f"hold {gate}")
    server.wait_for("held_bytes", len(held_body(gate)))
    server.wait_for("queue_documents", 0)
    return held


@pytest.mark.parametrize(
    ("texts", "batches"),
    [
        ([f"page {number}" for number in range(10)], 4),
        (["word " * length for length in (10, 9, 30, 2, 2)], 3),  # the third is scored alone
    ],
)
def test_a_batch_respects_both_limits(limited, gate, pool, texts, batches):
    before = limited.metrics()
    held = hold(limited, pool, gate)
    request = pool.submit(limited.score, *texts)
    limited.wait_for("queue_documents", len(texts))
    gate.touch()
    assert [document["status"] for document in request.result().json()["documents"]] == ["scored"] * len(texts)
    assert held.result().status_code == 200
    assert limited.metrics(before)["batch_documents_count"] == 1 + batches


def test_a_request_that_is_too_large_gets_413_with_and_without_a_content_length(limited):
    whole = json.dumps({"text": "x" * 3000}).encode()
    for content in (whole, (bytes([byte]) for byte in whole), (whole for _ in range(200))):  # the last two are chunked
        answer = limited.client.post("/score", content=content)
        assert (answer.status_code, answer.json()["detail"][:36]) == (413, "the body is larger than 2,000 bytes;")
    assert limited.score(*"abcdefghijk").status_code == 413
    assert limited.score(*"abcdefghij").status_code == 200
    assert limited.metrics()["held_bytes"] == 0


def test_a_full_queue_gets_503_with_retry_after(limited, gate, pool):
    held = hold(limited, pool, gate)
    waiting = pool.submit(limited.score, *"abcdef")
    limited.wait_for("queue_documents", 6)
    refused = limited.score(*"ghijk")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "6 documents are already waiting; try again later" in refused.json()["detail"]
    fitting = pool.submit(limited.score, *"ghi", " ", "j")  # the blank one does not wait
    limited.wait_for("queue_documents", 10)
    gate.touch()
    assert [request.result().status_code for request in (held, waiting, fitting)] == [200] * 3
    assert limited.score(*"ghijk").status_code == 200


def test_requests_beyond_the_held_bytes_get_503(limited, gate, pool):
    held = hold(limited, pool, gate)
    waiting = pool.submit(limited.score, "x" * 1500)
    limited.wait_for("queue_documents", 1)
    assert limited.score("y" * 1600).status_code == 503
    gate.touch()
    assert [request.result().status_code for request in (held, waiting)] == [200] * 2
    assert limited.score("y" * 1600).status_code == 200


def test_a_document_on_which_the_head_fails_gets_500_and_the_other_documents_their_scores(shared, engine, gate, pool):
    log: list[str] = []
    sink = logger.add(log.append)
    before = shared.metrics()
    held = hold(shared, pool, gate)
    rows = [{"id": "x", "text": "a secret page"}, {"id": "y", "text": "break this secret page"}]
    both, good = pool.submit(shared.score, *rows), pool.submit(shared.score, "another page")
    shared.wait_for("queue_documents", 3)
    gate.touch()
    broken = both.result()
    assert broken.status_code == 500
    assert broken.json()["documents"] == [
        expected(engine, "a secret page", "x"),
        failed("engine_error: RuntimeError", "y"),
    ]
    assert good.result().json() == {"documents": [expected(engine, "another page")]}
    assert held.result().status_code == shared.score("more").status_code == 200
    grown = shared.metrics(before)
    assert grown["documents_total.engine_error: RuntimeError.failed"] == grown["requests_total.500./score"] == 1
    logger.remove(sink)
    assert "RuntimeError at " in "".join(log)
    assert "secret" not in "".join(log)


def leave_after(server, sent, metric, value):
    """Send part of a request, and disconnect when a metric has a value."""
    address = server.client.base_url
    with socket.create_connection((address.host, address.port)) as leaving:
        leaving.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\n" + sent)
        server.wait_for(metric, value)


def test_nothing_is_scored_for_a_client_that_disconnected(shared, gate, pool):
    before = shared.metrics()
    held = hold(shared, pool, gate)
    body = json.dumps({"documents": [{"text": "a"}, {"text": "b"}]}).encode()
    leave_after(shared, b"Content-Length: %d\r\n\r\n" % len(body) + body, "queue_documents", 2)
    shared.wait_for("queue_documents", 0)
    gate.touch()
    assert held.result().status_code == shared.score("c").status_code == 200
    grown = shared.metrics(before)
    assert (grown["documents_total.scored"], grown["batch_documents_sum"]) == (2, 2)
    assert grown["requests_total.499./score"] == 1
    assert shared.metrics()["held_bytes"] == 0


def test_a_client_that_disconnects_within_its_request_leaves_nothing_behind(shared):
    before = shared.metrics()
    leave_after(shared, b"Content-Length: 50\r\n\r\n{", "held_bytes", 1)
    shared.wait_for("held_bytes", 0)
    assert shared.score("c").status_code == 200
    assert shared.metrics(before)["requests_total.499./score"] == 1


def test_documents_not_scored_in_time_get_504_and_a_slow_request_gets_408(serve, gate, pool):
    server = serve(timeout_s=0.5)
    held, waiting = hold_and_wait(server, pool, gate)
    assert (held.result().status_code, waiting.result().status_code) == (504, 504)
    assert server.metrics()["queue_documents"] == 0
    gate.touch()
    assert server.score("c").status_code == 200
    address = server.client.base_url
    with socket.create_connection((address.host, address.port)) as slow:
        slow.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def hold_and_wait(server, pool, gate):
    """Two requests: one keeps the head busy, the other waits."""
    held = hold(server, pool, gate)
    waiting = pool.submit(server.score, "a page")
    server.wait_for("queue_documents", 1)
    return held, waiting


@pytest.mark.slow
def test_sigterm_answers_the_requests_in_progress_and_rejects_new_ones(head, gate, pool, tmp_path):
    with ProcessServer(head, tmp_path / "stderr.txt") as server:
        held, waiting = hold_and_wait(server, pool, gate)
        server.process.terminate()
        server.wait_for("ready", 0)
        rejected = server.score("too late")
        assert (rejected.status_code, rejected.json()["detail"]) == (503, "the service is stopping")
        assert "retry-after" in rejected.headers
        health = server.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "stopping"})
        gate.touch()
        for request in (held, waiting):
            assert [document["status"] for document in request.result().json()["documents"]] == ["scored"]
        assert server.process.wait(60) == 0  # though the client stays connected
        assert server.log.read_text() == ""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(head, gate, pool, tmp_path):
    with ProcessServer(head, tmp_path / "stderr.txt") as server:
        held, waiting = hold_and_wait(server, pool, gate)
        server.process.terminate()
        server.wait_for("ready", 0)
        server.process.terminate()
        for request in (held, waiting):
            with pytest.raises(httpx.TransportError):
                request.result()
        assert server.process.wait(60) == -15


def test_the_service_answers_503_until_the_head_is_loaded(head, gate, monkeypatch):
    monkeypatch.setenv("HOLD_LOADING", str(gate))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ThreadServer(head, port=port)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=20)) as client:
        health = client.get("/health", timeout=60)
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert client.post("/score", json={"text": "a"}).status_code == 503
        assert client.get("/info").status_code == 503
        assert "ml_filter_ready 0.0" in client.get("/metrics").text
        gate.touch()
        server.wait_until_ready()
        assert client.get("/health").status_code == server.score("a").status_code == 200
    server.__exit__()


def test_a_port_in_use_a_missing_head_and_a_wrong_port_exit_with_2_and_the_reason(head, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", head, "--port", port]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another" in captured.err
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["serve", head, "--port", "99999"]) == 2
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())  # out of the box that wraps it
    assert "less than or equal to 65535" in message


@pytest.fixture(scope="module")
def encoder_head(tmp_path_factory, small_encoder, documents):
    """A head on the small encoder with two criteria."""
    directory = tmp_path_factory.mktemp("encoder")
    rows = [{**row, "odd": i % 2, "length": min(5, len(row["text"]) / 1000)} for i, row in enumerate(documents)]
    (directory / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(label_column=["odd", "length"], encoder=small_encoder, max_tokens=64)
    return train_head(SourceConfig(paths=[str(directory / "labelled.jsonl")]), config, directory / "head").origin


@pytest.fixture
def threads():
    """The server's setting of torch's threads ends with the test."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.model
@pytest.mark.usefixtures("threads")
def test_an_encoder_head_with_two_criteria_gives_the_scores_of_its_engine(serve, encoder_head, documents, gate, pool):
    server = serve(encoder_head, dtype="float32", threads=1)
    texts = [row["text"] for row in documents[:30]]
    held = hold(server, pool, gate)
    alone = [pool.submit(server.score, text) for text in texts]
    server.wait_for("queue_documents", 30)
    gate.touch()
    assert held.result().status_code == 200
    one_by_one = [answer.result().json()["documents"][0] for answer in alone]
    assert server.metrics()["batch_documents_count"] == 2
    wanted = load_head(encoder_head, ScoreConfig(dtype="float32")).score(texts)
    for answered in (one_by_one, server.score(*reversed(texts)).json()["documents"][::-1]):
        for column, name in enumerate(("odd", "length")):
            scores = [document["scores"][name]["score"] for document in answered]
            assert scores == pytest.approx(wanted[:, column].tolist(), abs=1e-4)
    info = server.client.get("/info").json()
    assert (info["engine"], info["dtype"]) == ("encoder", "float32")
    assert [criterion["name"] for criterion in info["criteria"]] == ["odd", "length"]


@pytest.mark.model
def test_a_missing_device_exits_with_2_and_the_reason(encoder_head, capsys):
    assert main(["serve", encoder_head, "--port", "0", "--device", "cuda:77"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: device 'cuda:77' cannot be used" in captured.err


def test_two_services_in_one_process_have_separate_metrics():
    one, other = Metrics(), Metrics()
    one.characters.inc(3)
    assert other.registry.get_sample_value("ml_filter_characters_total") == 0
