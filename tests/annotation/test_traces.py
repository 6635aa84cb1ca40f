"""Traces: which documents are sampled, what is sent, and that nothing depends on Opik.

Opik is not installed for the tests: a stand-in takes its place, with the methods of Opik 2.2 that are called.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.traces import is_sampled
from ml_filter.config import Settings
from ml_filter.documents.manifest import read_manifest
from ml_filter.logs import configure_logging
from ml_filter.metrics import FIGURES
from tests.annotation.misbehaving import chat


@pytest.fixture
def annotate(serve, pages, prompt_file, tmp_path):
    """Annotate pages with some settings of the environment; every tenth answer has no score."""

    def run(count: int, **settings):
        server = serve(lambda asked: chat("Score: 3" if not asked.document.endswith("9") else "None."))
        config = AnnotateConfig(
            prompts=[prompt_file()],
            max_failed_share=1,
            usd_per_million_prompt_tokens=1,
            usd_per_million_completion_tokens=1,
        )
        own = Settings(_env_file=None, endpoint=server.url, model="m", **settings)
        return annotate_documents(pages(count), config, tmp_path / "out", own)

    return run


@pytest.fixture
def opik(monkeypatch):
    """A stand-in that keeps what it is sent; it fails with `error` if that is set."""
    sent = SimpleNamespace(traces=[], error=None, ended=0)

    class Opik:
        def trace(self, **arguments):
            if sent.error:
                raise sent.error
            sent.traces.append(arguments)

        def end(self, timeout=None):
            sent.ended += 1

    monkeypatch.setitem(sys.modules, "opik", SimpleNamespace(Opik=Opik))
    return sent


def test_the_sample_is_a_share_of_the_documents_and_grows_with_the_share():
    ids = [f"d{n}" for n in range(10_000)]
    small, large = ({i for i in ids if is_sampled(i, share)} for share in (0.1, 0.3))
    assert small < large
    assert len(small) == pytest.approx(1000, rel=0.1)
    assert len(large) == pytest.approx(3000, rel=0.1)
    assert not any(is_sampled(i, 0) for i in ids)
    assert all(is_sampled(i, 1) for i in ids)


def test_prompts_and_answers_of_the_sampled_documents_are_sent(annotate, opik):
    annotate(20, trace_share=0.5)
    expected = {f"d{n}" for n in range(20) if is_sampled(f"d{n}", 0.5)}
    traces = {trace["metadata"]["document_id"]: trace for trace in opik.traces}
    assert traces.keys() == expected != set()
    assert opik.ended == 1
    for name, trace in traces.items():
        assert f"[{name}]" in trace["input"]["prompt"]
        assert trace["output"] == {"text": "None." if name.endswith("9") else "Score: 3"}
        assert trace["metadata"]["annotator"] == "m"
        assert trace["start_time"] < trace["end_time"]


def test_annotation_goes_on_if_opik_fails_or_is_missing(annotate, opik, monkeypatch, capsys):
    configure_logging()
    opik.error = RuntimeError("refused")
    assert annotate(5, trace_share=1).counts["scored"] == 5
    assert capsys.readouterr().err.count("Traces cannot be sent (RuntimeError: refused)") == 1


def test_a_missing_opik_is_one_line(annotate, monkeypatch, capsys):
    configure_logging()
    monkeypatch.setitem(sys.modules, "opik", None)
    assert annotate(5, trace_share=1).counts["scored"] == 5
    assert capsys.readouterr().err.count("Opik is not installed, so no traces are sent") == 1


def test_the_manifest_has_latency_speed_and_cost_outside_its_digest(annotate, tmp_path):
    manifest = annotate(10, metrics_directory=tmp_path)
    figures = manifest.made_with[FIGURES]
    assert figures.keys() == {"latency_p50_s", "latency_p95_s", "tokens_per_second", "usd"}
    assert 0 < figures["latency_p50_s"] <= figures["latency_p95_s"] < 10
    tokens = manifest.counts["prompt_tokens"] + manifest.counts["completion_tokens"]
    assert figures["usd"] == pytest.approx(tokens / 1e6)
    assert manifest.model_copy(update={"made_with": {}}).digest == manifest.digest
    assert read_manifest(manifest.root).made_with[FIGURES] == figures
    metrics = (tmp_path / "ml_filter_annotation-m-annotations.prom").read_text()
    labels = '{annotator="m",job_name="annotation",status="scored",task="annotations"}'
    assert f"ml_filter_annotation_answers_total{labels} 9.0" in metrics
    assert "ml_filter_annotation_usd_total" in metrics
