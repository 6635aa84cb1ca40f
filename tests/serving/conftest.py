"""A head, and servers of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from ml_filter.serving import server
from tests.serving.servers import ThreadServer


@pytest.fixture(scope="session")
def head(tmp_path_factory) -> str:
    """A small hashing head, calibrated, with the criterion `label`: the more prose a document is, the higher."""
    from ml_filter.documents.readers.installed import read_installed

    directory = tmp_path_factory.mktemp("served")
    rows = sorted(islice(read_installed(), 90), key=lambda row: sum(map(str.isalpha, row["text"])) / len(row["text"]))
    labelled = [{"id": row["id"], "text": row["text"], "label": 5 * i / 89} for i, row in enumerate(rows)]
    (directory / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    config = TrainConfig(kind="hashing", label_column="label")
    return train_head(SourceConfig(paths=[str(directory / "labelled.jsonl")]), config, directory / "head").origin


@pytest.fixture(scope="module", autouse=True)
def _restored_server() -> Iterator[None]:
    """Servers of these tests replace how the head is loaded; the module gets its own functions back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "load_head", server.load_head)
        patch.setattr(server, "Service", server.Service)
        yield


@pytest.fixture
def serve(head) -> Iterator[Callable[..., ThreadServer]]:
    """Start a server with settings; it is stopped after the test."""
    with ExitStack() as stack:

        def start(head: str = head, **settings: object) -> ThreadServer:
            return stack.enter_context(ThreadServer(head, **settings))

        yield start


@pytest.fixture(scope="module")
def shared(head, _restored_server) -> Iterator[ThreadServer]:
    """A server that many tests ask."""
    with ThreadServer(head) as running:
        yield running


@pytest.fixture(scope="module")
def limited(head, _restored_server) -> Iterator[ThreadServer]:
    """A server that accepts little at once."""
    limits = {"max_batch": 3, "max_batch_characters": 100, "max_queue": 10}
    with ThreadServer(head, **limits, max_body_bytes=2000, max_held_bytes=3000) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests at the same time."""
    with ThreadPoolExecutor(64) as threads:
        yield threads


@pytest.fixture
def gate(pool, tmp_path) -> Iterator[Path]:
    """A file that does not exist yet: the document `hold GATE` keeps the head busy until it does."""
    path = tmp_path / "gate"
    yield path
    path.touch()
