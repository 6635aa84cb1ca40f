"""A head, and servers of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from tests.serving.served import Served


@pytest.fixture(scope="session")
def head(tmp_path_factory) -> str:
    """A small hashing head, calibrated, with the criterion `label`: the more prose a document is, the higher."""
    from ml_filter.documents.readers.installed import read_installed

    directory = tmp_path_factory.mktemp("served")
    rows = sorted(islice(read_installed(), 90), key=lambda row: sum(map(str.isalpha, row["text"])) / len(row["text"]))
    labelled = [{"id": row["id"], "text": row["text"], "label": 5 * i / 89} for i, row in enumerate(rows)]
    (directory / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    config = TrainConfig(engine="hashing", label_column="label")
    return train_head(SourceConfig(paths=[str(directory / "labelled.jsonl")]), config, directory / "head").directory


@pytest.fixture
def serve(head, tmp_path_factory) -> Iterator[Callable[..., Served]]:
    """Start a server with options; it is ended after the test."""
    with ExitStack() as stack:

        def start(*options: str, head: str = head, **environment: str) -> Served:
            scratch = tmp_path_factory.mktemp("server")
            return stack.enter_context(Served(head, scratch, *options, **environment))

        yield start


@pytest.fixture(scope="module")
def shared(head, tmp_path_factory) -> Iterator[Served]:
    """A server that several tests ask."""
    with Served(head, tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def gate(serve, tmp_path) -> Iterator[Path]:
    """A file that is not there: the document `hold GATE` keeps the head busy until it is."""
    path = tmp_path / "gate"
    yield path
    path.touch()
