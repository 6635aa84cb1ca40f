"""Texts in the embedding store are not embedded again, and a killed writer leaves no partial chunk."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.heads.embeddings import Embeddings, EmbeddingStore

WIDTH = 4


def embed(texts):
    """Numbers that depend only on the text."""
    digests = [hashlib.sha256(text.encode()).digest()[:WIDTH] for text in texts]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, WIDTH).astype(np.float32)


def store(root, encoder="encoder"):
    return EmbeddingStore(root, {"encoder": encoder}, WIDTH, embed)


def test_a_text_is_embedded_once_within_a_run_and_across_runs(tmp_path):
    with store(tmp_path) as first:
        assert first.rows_of(["a", "b", "a"]) == [0, 1, 0]
        assert first.embedded == 2
    with store(tmp_path) as second:
        assert second.rows_of(["b", "c"]) == [1, 2]
        assert second.embedded == 1
        assert np.array_equal(second.vectors(), embed(["a", "b", "c"]))


def test_each_encoder_has_its_own_store(tmp_path):
    with store(tmp_path) as first:
        first.rows_of(["a"])
    with store(tmp_path, "another") as other:
        other.rows_of(["a"])
        assert other.embedded == 1


@settings(max_examples=30)
@given(st.lists(st.lists(st.text(), min_size=1), max_size=5))
def test_each_text_gets_its_own_embedding_whatever_came_before(tmp_path_factory, calls):
    with store(tmp_path_factory.mktemp("store")) as cache:
        for texts in calls:
            rows = cache.rows_of([text.replace("\ud800", "") for text in texts])
            assert np.array_equal(cache.vectors()[rows], embed([text.replace("\ud800", "") for text in texts]))


@pytest.mark.parametrize("torn", ["vectors", "keys", "chunks"])
def test_a_truncated_file_costs_at_most_the_last_chunk(tmp_path, torn):
    with store(tmp_path) as cache:
        cache.rows_of(["a", "b"])
        sizes = {name: (cache.directory / name).stat().st_size for name in ("vectors", "keys", "chunks")}
        cache.rows_of(["c"])
        chunks = cache.directory / "chunks"
    for name, size in sizes.items():  # as after a kill between the writes; the line in chunks is written last
        path = cache.directory / name
        kept = size + 1 if name == torn else size if name == "chunks" else path.stat().st_size
        os.truncate(path, kept)
    assert chunks.exists()
    with store(tmp_path) as again:
        assert again.rows_of(["a", "b", "c"]) == [0, 1, 2]
        assert again.embedded == 1
        assert np.array_equal(again.vectors(), embed(["a", "b", "c"]))


@pytest.mark.slow
def test_a_store_whose_writer_was_killed_has_only_complete_rows(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_embeddings import store\n"
        "with store(sys.argv[1]) as cache:\n"
        "    for number in range(100_000): cache.rows_of([f'text {number}', f'more {number}'])\n"
    )
    running = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)])
    while not list(tmp_path.glob("*/chunks")):
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    with store(tmp_path) as cache:
        count = len(cache.vectors())
        assert count > 0
        rows = cache.rows_of([f"text {number}" for number in range(count // 2)])
        assert cache.embedded == 0
        assert np.array_equal(cache.vectors()[rows], embed([f"text {number}" for number in range(count // 2)]))


def test_embeddings_are_sliced_without_reading_and_read_in_blocks(tmp_path):
    vectors = np.arange(20, dtype=np.float32).reshape(10, 2)
    some = Embeddings(vectors, np.array([7, 1, 7, 3]))
    assert some.shape == (4, 2)
    assert some[1:3].tolist() == vectors[[1, 7]].tolist()
    assert some.take(np.array([True, False, False, True]))[:].tolist() == vectors[[7, 3]].tolist()
    assert np.concatenate([some[part] for part in some.blocks()]).tolist() == some[:].tolist()


def test_two_runs_can_have_the_store_open(tmp_path):
    with store(tmp_path) as first:
        first.rows_of(["a", "b"])
        with store(tmp_path) as second:
            assert second.rows_of(["b", "c"]) == [1, 2]
            assert second.embedded == 1
        assert first.rows_of(["c", "d"]) == [2, 3]
        assert first.embedded == 3
        assert np.array_equal(first.vectors(), embed(["a", "b", "c", "d"]))


@pytest.mark.slow
def test_concurrent_runs_do_not_embed_a_text_twice(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_embeddings import store\n"
        "with store(sys.argv[1]) as cache:\n"
        "    for number in range(60): cache.rows_of([f'text {number}', f'more {number}'])\n"
        "    print(cache.embedded)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sum(int(run.communicate()[0]) for run in running) == 120
    texts = [text for number in range(60) for text in (f"text {number}", f"more {number}")]
    with store(tmp_path) as cache:
        assert np.array_equal(cache.vectors()[cache.rows_of(texts)], embed(texts))
        assert cache.embedded == 0
