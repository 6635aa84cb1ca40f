"""Figures of latency, and metrics that are written to a file and pushed to a gateway."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ml_filter.config import Settings
from ml_filter.metrics import Latencies, Sample, exported


def values(text: str) -> dict[tuple[str, str], float]:
    """Samples by name and the label that tells them apart."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, s.labels.get("status") or s.labels.get("state") or ""): s.value for s in samples}


@pytest.fixture
def gateway() -> Iterator[HTTPServer]:
    """A push gateway that keeps what it gets; it answers with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.server.pushed.append((self.path, body))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.pushed, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_latencies_have_their_quantiles_to_a_percent_and_the_speed_of_a_request():
    latencies = Latencies()
    for tenth in range(1, 101):
        latencies.add(tenth / 10, completion_tokens=tenth)
    latencies.add(None)
    figures = latencies.figures()
    assert figures["latency_p50_s"] == pytest.approx(5.0, rel=0.01)
    assert figures["latency_p95_s"] == pytest.approx(9.5, rel=0.01)
    assert figures["tokens_per_second"] == 10
    assert Latencies().figures() == {}


def test_metrics_are_in_the_file_while_the_run_is_at_work_and_at_its_end(tmp_path):
    settings = Settings(_env_file=None, metrics_directory=tmp_path, metrics_every_s=0.02)
    scored = 0

    def samples() -> list[Sample]:
        return [Sample("annotation_answers", scored, {"status": "scored"})]

    with exported("annotation", {"annotator": "some/model"}, samples, settings):
        [file] = tmp_path.glob("*.prom")
        assert file.name == "ml_filter_annotation-some-model.prom"
        scored = 7
        deadline = time.monotonic() + 10
        while values(file.read_text())["ml_filter_annotation_answers_total", "scored"] != 7:
            assert time.monotonic() < deadline
        assert values(file.read_text())["ml_filter_run_finished_timestamp_seconds", ""] == 0
        scored = 8
    final = values(file.read_text())
    assert final["ml_filter_annotation_answers_total", "scored"] == 8
    assert final["ml_filter_run_failed", ""] == 0
    assert final["ml_filter_run_finished_timestamp_seconds", ""] >= final["ml_filter_run_started_timestamp_seconds", ""]
    assert list(tmp_path.iterdir()) == [file]


def test_a_run_that_fails_says_so(tmp_path):
    settings = Settings(_env_file=None, metrics_directory=tmp_path)
    with pytest.raises(ValueError, match="broken"), exported("scoring", {"part": "all"}, list, settings):
        raise ValueError("broken")
    assert values((tmp_path / "ml_filter_scoring-all.prom").read_text())["ml_filter_run_failed", ""] == 1


def test_metrics_are_pushed_with_their_labels_as_the_group(gateway):
    settings = Settings(_env_file=None, metrics_gateway=f"http://127.0.0.1:{gateway.server_port}")
    with exported("scoring", {"part": "rank-1"}, lambda: [Sample("scoring_documents", 3)], settings):
        pass
    path, body = gateway.pushed[-1]
    assert path == "/metrics/job/ml_filter_scoring/part/rank-1"
    assert values(body)["ml_filter_scoring_documents_total", ""] == 3


def test_a_gateway_that_refuses_or_is_down_is_one_warning_and_no_error(gateway, capsys):
    from ml_filter.logs import configure_logging

    configure_logging()
    gateway.status = 500
    for address in (f"http://127.0.0.1:{gateway.server_port}", "http://127.0.0.1:9"):
        settings = Settings(_env_file=None, metrics_gateway=address, metrics_every_s=0.01)
        with exported("scoring", {}, list, settings):
            time.sleep(0.05)
        assert capsys.readouterr().err.count("Metrics cannot be delivered") == 1
