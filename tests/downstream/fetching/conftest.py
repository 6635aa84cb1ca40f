"""A site on loopback, and a function that fetches from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.run import fetch_documents
from ml_filter.errors import InputError
from tests.downstream.fetching.site import Site


class Result(NamedTuple):
    """The documents and rejects of a directory after a run, and the figures of the run."""

    rows: list[dict[str, Any]]
    rejects: dict[str, tuple[str, str]]
    figures: dict[str, int]
    manifest: Any

    @property
    def urls(self) -> list[str]:
        """Paths of the documents' URLs."""
        return sorted("/" + row["url"].split("/", 3)[3] for row in self.rows)

    @property
    def reasons(self) -> dict[str, str]:
        return {path: reason for path, (reason, _) in self.rejects.items()}


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    yield server
    server.close()


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., Result]:
    def run(**settings: Any) -> Result:
        directory = settings.pop("output", tmp_path / "fetched")
        fast = {"delay_s": 0, "backoff_s": 0.01, "timeout_s": 5, "retries": 1, "allow_local": True}
        config = FetchConfig(**{"contact": "me@example.org", **fast, **settings})
        try:
            manifest, figures = fetch_documents(config, directory)
        except InputError as error:
            if "no document could be read" not in str(error):
                raise
            manifest, figures = None, {}
        return read_result(directory, manifest, figures)

    return run


def read_result(directory: Path, manifest: Any, figures: dict[str, int]) -> Result:
    source = SourceConfig(paths=[str(directory)])
    with RejectsLog() as log:
        shards = list_shards(source)[0] if manifest is not None else []
        rows = [row for shard in shards for table in read_shard(shard, source, log) for row in table.to_pylist()]
    lines = [json.loads(line) for line in (directory / "rejects.jsonl").read_text().splitlines()]
    rejects = {line["place"].split("/", 3)[-1]: (line["reason"], line["detail"]) for line in lines}
    return Result(rows, rejects, figures, manifest)
