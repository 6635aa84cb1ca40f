"""Annotation against a real endpoint that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from endpoint import Endpoint
from pydantic import SecretStr

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import ConfigError, EndpointError, InputError, TooManyFailures
from ml_filter.settings import AnnotateConfig, Settings, SourceConfig

SETTINGS = Settings(_env_file=None, api_key=SecretStr("a-very-secret-key"))


def documents(path: Path, count: int) -> SourceConfig:
    lines = [json.dumps({"id": f"d{i}", "text": f"Doc {i:04d}" + "x" * (i % 7)}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return SourceConfig(paths=[str(path)])


def config(endpoint: Endpoint, **changes: object) -> AnnotateConfig:
    given = {"endpoint": endpoint.url, "model": "tester", "max_concurrency": 8, "timeout_s": 1, "max_retries": 2}
    return AnnotateConfig.model_validate({"prompt": "educational_value", **given, **changes})


def rows(directory: Path) -> list[dict]:
    return pq.read_table(directory / "shards").to_pylist()


def test_every_document_is_asked_once_and_comes_out_in_input_order(tmp_path):
    with Endpoint() as endpoint:
        made = annotate_documents(documents(tmp_path / "d.jsonl", 50), config(endpoint), tmp_path / "out", SETTINGS)
    assert set(endpoint.asked.values()) == {1}
    assert [row["document_id"] for row in rows(tmp_path / "out")] == [f"d{i}" for i in range(50)]
    assert (made.counts["scored"], made.counts["failed"]) == (50, 0)
    assert rows(tmp_path / "out")[3]["score"] == float(len("Doc 0003xxx") % 6)
    assert rows(tmp_path / "out")[3]["reason"] == "It explains."


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ("500", "server_error"),
        ("limit", "rate_limited"),
        ("hang", "timeout"),
        ("reset", "connection_error"),
        ("empty", "empty_answer"),
        ("chatter", "unparsable_score"),
        ("too_high", "out_of_range"),
        ("too_long", "context_too_long"),
        ("422", "bad_request"),
        ("cut", "malformed_answer"),
    ],
)
def test_a_document_without_a_score_is_failed_with_its_reason_and_never_zero(trouble, error, tmp_path):
    def behave(text: str, times: int) -> str:
        return trouble if text.startswith("Doc 0001") else "ok"

    with Endpoint(behave) as endpoint:
        given = config(endpoint, max_retries=0, max_failed_share=0.5)
        made = annotate_documents(documents(tmp_path / "d.jsonl", 4), given, tmp_path / "out", SETTINGS)
    assert (made.counts["scored"], made.counts["failed"]) == (3, 1)
    [failed] = [row for row in rows(tmp_path / "out") if row["status"] == "failed"]
    assert (failed["document_id"], failed["error"], failed["score"]) == ("d1", error, None)


def test_passing_trouble_is_retried(tmp_path):
    with Endpoint(lambda text, times: "500" if times == 1 else "ok") as endpoint:
        made = annotate_documents(documents(tmp_path / "d.jsonl", 5), config(endpoint), tmp_path / "out", SETTINGS)
    assert made.counts["scored"] == 5
    assert {row["attempts"] for row in rows(tmp_path / "out")} == {2}


def test_log_probabilities_give_the_expected_score_beside_the_parsed_one(tmp_path):
    with Endpoint(lambda text, times: "logprobs") as endpoint:
        annotate_documents(documents(tmp_path / "d.jsonl", 1), config(endpoint), tmp_path / "out", SETTINGS)
    [row] = rows(tmp_path / "out")
    assert row["score"] == 3.0
    assert row["expected_score"] == pytest.approx(4.0)


def test_too_many_failures_end_without_a_manifest_and_the_next_run_asks_only_for_them(tmp_path):
    source = documents(tmp_path / "d.jsonl", 10)
    with Endpoint(lambda text, times: "chatter" if text < "Doc 0003" else "ok") as endpoint:
        with pytest.raises(TooManyFailures, match=r"3 of 10 answers failed \(unparsable_score 3\)"):
            annotate_documents(source, config(endpoint), tmp_path / "out", SETTINGS)
        assert find_manifest(str(tmp_path / "out")) is None
        endpoint.behave = lambda text, times: "ok"
        made = annotate_documents(source, config(endpoint), tmp_path / "out", SETTINGS)
    assert made.counts["scored"] == 10
    assert sorted(endpoint.asked.values()) == [1] * 7 + [2] * 3


def test_a_finished_run_asks_nothing_and_another_prompt_is_refused_its_directory(tmp_path):
    source = documents(tmp_path / "d.jsonl", 3)
    with Endpoint() as endpoint:
        annotate_documents(source, config(endpoint), tmp_path / "out", SETTINGS)
        annotate_documents(source, config(endpoint), tmp_path / "out", SETTINGS)
        assert set(endpoint.asked.values()) == {1}
        with pytest.raises(InputError, match="other settings"):
            annotate_documents(source, config(endpoint, prompt="adult_content"), tmp_path / "out", SETTINGS)


def test_the_token_budget_stops_cleanly_and_a_higher_one_finishes(tmp_path):
    source = documents(tmp_path / "d.jsonl", 20)
    with Endpoint() as endpoint:
        with pytest.raises(TooManyFailures, match="budget of 150 tokens is used up"):
            annotate_documents(source, config(endpoint, budget_tokens=150), tmp_path / "out", SETTINGS)
        assert 10 <= sum(endpoint.asked.values()) < 20
        made = annotate_documents(source, config(endpoint, budget_tokens=10_000), tmp_path / "out", SETTINGS)
    assert made.counts["scored"] == 20
    assert set(endpoint.asked.values()) == {1}


def test_an_outage_ends_the_run_instead_of_failing_every_document(tmp_path):
    with Endpoint(lambda text, times: "503") as endpoint, pytest.raises(EndpointError, match="in a row"):
        given = config(endpoint, max_retries=0, max_concurrency=2)
        annotate_documents(documents(tmp_path / "d.jsonl", 100), given, tmp_path / "out", SETTINGS)
    assert len(endpoint.asked) < 40


@pytest.mark.parametrize(
    ("status", "says"), [("401", "ML_FILTER_API_KEY"), ("404", "does not know the model 'tester'")]
)
def test_what_no_request_can_mend_ends_the_run_at_once(status, says, tmp_path):
    with Endpoint(lambda text, times: status) as endpoint, pytest.raises(EndpointError, match=says):
        annotate_documents(documents(tmp_path / "d.jsonl", 50), config(endpoint), tmp_path / "out", SETTINGS)


def test_an_endpoint_without_a_model_name_is_refused(tmp_path):
    with Endpoint() as endpoint, pytest.raises(ConfigError, match="ML_FILTER_MODEL"):
        given = config(endpoint, model=None)
        annotate_documents(documents(tmp_path / "d.jsonl", 1), given, tmp_path / "out", SETTINGS)


def test_votes_differ_in_their_seed_and_are_rows_of_their_own(tmp_path):
    with Endpoint() as endpoint:
        given = config(endpoint, votes=3, temperature=0.7)
        made = annotate_documents(documents(tmp_path / "d.jsonl", 2), given, tmp_path / "out", SETTINGS)
    assert made.rows == 6
    assert sorted(request["seed"] for request in endpoint.requests) == [0, 0, 1, 1, 2, 2]


def test_a_second_document_with_the_same_id_is_rejected_and_listed(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a", "text": "Doc one"}\n{"id": "a", "text": "Doc two"}\n')
    with Endpoint() as endpoint:
        made = annotate_documents(SourceConfig(paths=[str(path)]), config(endpoint), tmp_path / "out", SETTINGS)
    assert (made.counts["documents"], made.counts["rejected_duplicate_id"]) == (1, 1)
    assert list(endpoint.asked) == ["Doc one"]


def test_the_key_is_in_no_file(tmp_path):
    with Endpoint(lambda text, times: "401" if times > 99 else "ok") as endpoint:
        annotate_documents(documents(tmp_path / "d.jsonl", 3), config(endpoint), tmp_path / "out", SETTINGS)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"a-very-secret-key" in path.read_bytes()]


def test_killed_at_any_moment_no_finished_call_is_made_again_and_no_document_is_lost(tmp_path):
    source, out = tmp_path / "d.jsonl", tmp_path / "out"
    documents(source, 120)
    with Endpoint(delay_s=0.02) as endpoint:
        command = [sys.executable, "-m", "ml_filter.cli", "annotate", str(source), "--prompt", "educational_value"]
        command += ["--endpoint", endpoint.url, "--model", "tester", "--max-concurrency", "4", "-o", str(out)]
        for finished in (20, 60):
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while sum(endpoint.answered.values()) < finished:
                time.sleep(0.002)
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert [row["document_id"] for row in rows(out)] == [f"d{i}" for i in range(120)]
    assert {row["status"] for row in rows(out)} == {"scored"}
    in_flight = 2 * 4  # two kills, four requests at once: only those may have been asked twice
    assert sum(endpoint.asked.values()) <= 120 + in_flight
