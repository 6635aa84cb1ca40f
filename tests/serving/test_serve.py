"""`ml-filter serve` in a process of its own, asked over HTTP."""

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import text_id
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.engine import load_engine
from ml_filter.heads.info import read_info
from ml_filter.heads.train import read_head, train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.serving.metrics import Metrics
from tests.serving.served import Served

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
    return load_engine(head, ScoreConfig())


@pytest.fixture
def pool():
    with ThreadPoolExecutor(64) as pool:
        yield pool


def expected(engine, text, id=None):
    """What the service is to answer of a text that can be scored."""
    [[score]] = engine.score([text]).tolist()
    [criterion] = engine.info.criteria
    [whole] = criterion.integer_scores([score]).tolist()
    scores = {"label": {"score": score, "int_score": whole}}
    return {"id": id or text_id(text), "status": "scored", "reason": None, "scores": scores}


def failed(reason, id):
    return {"id": id, "status": "failed", "reason": reason, "scores": {"label": {"score": None, "int_score": None}}}


def test_a_line_says_that_it_is_ready_and_health_agrees(shared, head):
    assert shared.line.startswith(f"{Path(head).name} is ready at http://127.0.0.1:")
    answer = shared.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_document_gets_the_score_that_the_engine_gives_it(shared, engine, documents):
    text = documents[0]["text"]
    for asked, id in (({"text": text}, None), ({"text": text, "id": "d0"}, "d0")):
        answer = shared.client.post("/score", json=asked)
        assert (answer.status_code, answer.json()) == (200, {"documents": [expected(engine, text, id)]})


def test_documents_are_answered_in_order_with_their_ids_and_a_failed_one_stays_among_them(shared, engine, documents):
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


def test_half_a_character_fails_its_document_alone(shared, engine):
    body = rb'{"documents": [{"id": "broken", "text": "\ud800 lone"}, {"id": "whole", "text": "\ud83e\uddea glass"}]}'
    answer = shared.client.post("/score", content=body)
    assert answer.json()["documents"] == [failed("invalid_utf8", "broken"), expected(engine, "🧪 glass", "whole")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=60), max_size=8))
def test_whatever_is_asked_is_answered_document_by_document(shared, engine, texts):
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    wanted = [
        expected(engine, row["text"], row["id"]) if row["text"].strip() else failed("empty_text", row["id"])
        for row in rows
    ]
    assert shared.score(*rows).json() == {"documents": wanted}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"text": "cut', "the body is no JSON"),
        (b"", "the body is no JSON"),
        (b"\xff\xfe\xff", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        (b"[]", "body: Input should be a valid dictionary"),
        (b"{}", "give either text or documents"),
        (b'{"text": "a", "documents": []}', "give either text or documents"),
        (b'{"text": 3}', "text: is no text"),
        (b'{"documents": "a"}', "documents: Input should be a valid list"),
        (b'{"documents": [{"text": "a"}, {"id": 1}]}', "documents.1.text: Field required"),
        (b'{"documents": [{"text": "a", "id": [1]}]}', "documents.0.id"),
    ],
)
def test_a_request_that_is_none_gets_422_and_a_reason(shared, body, says):
    answer = shared.client.post("/score", content=body)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


def test_info_says_what_the_scores_mean_and_what_made_them(shared, head):
    info = shared.client.get("/info").json()
    [criterion] = read_info(head).criteria
    assert info["digest"] == read_head(head).digest
    assert (info["engine"], info["device"], info["dtype"]) == ("hashing", "cpu", "float32")
    [described] = info["criteria"]
    assert (described["name"], described["low"], described["high"], described["threshold"]) == ("label", 0, 5, 3)
    assert described["int_score_from"] == {str(k): cut for k, cut in criterion.calibration.cuts.items()}
    assert [row["score"] for row in described["thresholds"]] == [row.score for row in criterion.calibration.table]
    assert str(Path(head).parent) not in json.dumps(info)


def test_an_unknown_path_is_404_and_counted_as_other(shared):
    assert shared.client.get("/no/such/path").status_code == 404
    assert shared.metrics()["requests_total.404.other"] >= 1
    assert shared.client.get("/openapi.json").json()["paths"].keys() == {"/score", "/health", "/info", "/metrics"}


def test_requests_that_come_while_the_head_is_busy_are_scored_together(shared, engine, documents, gate, pool):
    before = shared.metrics()
    held = hold(shared, pool, gate)
    texts = [row["text"] for row in documents[:40]]
    asked = [pool.submit(shared.score, text) for text in texts]
    shared.wait_for("queue_documents", 40)
    gate.touch()
    answers = [request.result() for request in asked]
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
    """Keep the head busy; gives the answer to come."""
    held = pool.submit(server.score, f"hold {gate}")
    server.wait_for("held_bytes", len(held_body(gate)))
    server.wait_for("queue_documents", 0)
    return held


LIMITS = {
    "max_batch": 3,
    "max_batch_characters": 100,
    "max_queue": 10,
    "max_body_bytes": 2000,
    "max_held_bytes": 3000,
}


@pytest.fixture(scope="module")
def limited(head, tmp_path_factory):
    """A server that takes little at once."""
    scratch = tmp_path_factory.mktemp("limited")
    (scratch / "serve.yaml").write_text(json.dumps(LIMITS))
    with Served(head, scratch, "--config", str(scratch / "serve.yaml")) as server:
        yield server


@pytest.mark.parametrize(
    ("texts", "batches"),
    [
        ([f"page {number}" for number in range(10)], 4),
        (["word " * length for length in (10, 9, 30, 2, 2)], 3),  # one is too long for any company
    ],
)
def test_a_batch_holds_no_more_than_it_may(limited, gate, pool, texts, batches):
    before = limited.metrics()
    held = hold(limited, pool, gate)
    asked = pool.submit(limited.score, *texts)
    limited.wait_for("queue_documents", len(texts))
    gate.touch()
    assert [document["status"] for document in asked.result().json()["documents"]] == ["scored"] * len(texts)
    assert held.result().status_code == 200
    assert limited.metrics(before)["batch_documents_count"] == 1 + batches


def test_too_large_a_request_gets_413_however_it_is_sent(limited):
    whole = json.dumps({"text": "x" * 3000}).encode()
    for content in (whole, (bytes([byte]) for byte in whole), (whole for _ in range(200))):  # the others are chunked
        answer = limited.client.post("/score", content=content)
        assert (answer.status_code, answer.json()["detail"][:36]) == (413, "the body is larger than 2,000 bytes;")
    assert limited.score(*"abcdefghijk").status_code == 413
    assert limited.score(*"abcdefghij").status_code == 200
    assert limited.metrics()["held_bytes"] == 0


def test_a_full_queue_gets_503_and_when_to_come_again(limited, gate, pool):
    held = hold(limited, pool, gate)
    waiting = pool.submit(limited.score, *"abcdef")
    limited.wait_for("queue_documents", 6)
    refused = limited.score(*"ghijk")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "6 documents wait already" in refused.json()["detail"]
    fitting = pool.submit(limited.score, *"ghi", " ", "j")  # one of them needs no room
    limited.wait_for("queue_documents", 10)
    gate.touch()
    assert [request.result().status_code for request in (held, waiting, fitting)] == [200] * 3
    assert limited.score(*"ghijk").status_code == 200


def test_more_bytes_than_may_be_held_get_503(limited, gate, pool):
    held = hold(limited, pool, gate)
    waiting = pool.submit(limited.score, "x" * 1500)
    limited.wait_for("queue_documents", 1)
    assert limited.score("y" * 1600).status_code == 503
    gate.touch()
    assert [request.result().status_code for request in (held, waiting)] == [200] * 2
    assert limited.score("y" * 1600).status_code == 200


def test_a_document_that_the_head_breaks_on_gets_500_and_its_neighbours_their_scores(shared, engine, gate, pool):
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
    assert "RuntimeError at " in shared.log.read_text()
    assert "secret" not in shared.log.read_text()


def leave_after(server, sent, metric, value):
    """Send the beginning of a connection, and close it when a metric has a value."""
    address = server.client.base_url
    with socket.create_connection((address.host, address.port)) as leaving:
        leaving.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\n" + sent)
        server.wait_for(metric, value)


def test_nothing_is_scored_for_a_client_that_went_away(shared, gate, pool):
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


def test_a_client_that_leaves_before_its_request_is_whole_is_forgotten(shared):
    before = shared.metrics()
    leave_after(shared, b"Content-Length: 50\r\n\r\n{", "held_bytes", 1)
    shared.wait_for("held_bytes", 0)
    assert shared.score("c").status_code == 200
    assert shared.metrics(before)["requests_total.499./score"] == 1


def test_what_is_not_scored_in_time_gets_504_and_a_request_that_comes_too_slowly_408(serve, gate, pool):
    server = serve("--timeout", "0.5")
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
    """Two requests: one that the head is held by, and one behind it."""
    held = hold(server, pool, gate)
    waiting = pool.submit(server.score, "a page")
    server.wait_for("queue_documents", 1)
    return held, waiting


def test_after_sigterm_what_was_taken_is_answered_and_nothing_more_is_taken(serve, gate, pool):
    server = serve()
    held, waiting = hold_and_wait(server, pool, gate)
    server.process.terminate()
    server.wait_for("ready", 0)
    refused = server.score("too late")
    assert (refused.status_code, refused.json()["detail"]) == (503, "the service is stopping")
    assert "retry-after" in refused.headers
    health = server.client.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "stopping"})
    gate.touch()
    for request in (held, waiting):
        assert [document["status"] for document in request.result().json()["documents"]] == ["scored"]
    assert server.end() == 0
    assert server.log.read_text() == ""


def test_a_second_signal_ends_it_at_once(serve, gate, pool):
    server = serve()
    held, waiting = hold_and_wait(server, pool, gate)
    server.process.terminate()
    server.wait_for("ready", 0)
    server.process.terminate()
    for request in (held, waiting):
        with pytest.raises(httpx.TransportError):
            request.result()
    assert server.end() == -15


def test_an_idle_service_ends_with_0_though_clients_stay_connected(serve):
    server = serve()
    assert server.score("a").status_code == 200
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_it_says_that_it_is_loading_until_the_head_is_there(serve, gate, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with ThreadPoolExecutor(1) as starting:
        started = starting.submit(serve, "--port", str(port), HOLD_LOADING=str(gate))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=20)) as client:
            health = client.get("/health", timeout=60)
            assert (health.status_code, health.json()) == (503, {"status": "loading"})
            assert client.post("/score", json={"text": "a"}).status_code == 503
            assert client.get("/info").status_code == 503
            assert "ml_filter_ready 0.0" in client.get("/metrics").text
            gate.touch()
            server = started.result()
            assert client.get("/health").status_code == server.score("a").status_code == 200


def ml_filter_serve(*arguments):
    command = [sys.executable, "-m", "ml_filter.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_port_in_use_a_missing_head_and_a_missing_device_end_with_2_and_a_reason(head, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        taken = ml_filter_serve(head, "--port", port)
    assert (taken.returncode, taken.stdout) == (2, "")
    assert f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another" in taken.stderr
    missing = ml_filter_serve(str(tmp_path), "--port", "0")
    assert missing.returncode == 2
    assert f"{tmp_path} holds no trained head" in missing.stderr
    wrong = ml_filter_serve(head, "--port", "99999")
    assert wrong.returncode == 2
    assert "port: Input should be less than or equal to 65535" in wrong.stderr


@pytest.fixture(scope="module")
def encoder_head(tmp_path_factory, documents):
    """A MiniLM head with two criteria."""
    directory = tmp_path_factory.mktemp("encoder")
    rows = [{**row, "odd": i % 2, "length": min(5, len(row["text"]) / 1000)} for i, row in enumerate(documents)]
    (directory / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(label_column=["odd", "length"], max_tokens=64)
    return train_head(SourceConfig(paths=[str(directory / "labelled.jsonl")]), config, directory / "head").directory


def test_an_encoder_head_of_two_criteria_scores_as_its_engine_does(serve, encoder_head, documents, gate, pool):
    server = serve("--dtype", "float32", "--threads", "1", head=encoder_head)
    texts = [row["text"] for row in documents[:30]]
    held = hold(server, pool, gate)
    alone = [pool.submit(server.score, text) for text in texts]
    server.wait_for("queue_documents", 30)
    gate.touch()
    assert held.result().status_code == 200
    one_by_one = [answer.result().json()["documents"][0] for answer in alone]
    assert server.metrics()["batch_documents_count"] == 2
    wanted = load_engine(encoder_head, ScoreConfig(dtype="float32")).score(texts)
    for answered in (one_by_one, server.score(*reversed(texts)).json()["documents"][::-1]):
        for place, name in enumerate(("odd", "length")):
            scores = [document["scores"][name]["score"] for document in answered]
            assert scores == pytest.approx(wanted[:, place].tolist(), abs=1e-4)
    info = server.client.get("/info").json()
    assert (info["engine"], info["dtype"]) == ("encoder", "float32")
    assert [criterion["name"] for criterion in info["criteria"]] == ["odd", "length"]


def test_a_missing_device_ends_the_loading_with_2_and_a_reason(encoder_head):
    done = ml_filter_serve(encoder_head, "--port", "0", "--device", "cuda:77")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: device 'cuda:77' cannot be used" in done.stderr


def test_two_services_in_a_process_count_apart():
    one, other = Metrics(), Metrics()
    one.characters.inc(3)
    assert other.registry.get_sample_value("ml_filter_characters_total") == 0
