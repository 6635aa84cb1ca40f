from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documents.readers.reading import Read, read_all


@pytest.fixture
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Read]:
    log = tmp_path_factory.mktemp("log") / "rejects.jsonl"
    return lambda *paths, **options: read_all(log, *paths, **options)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For property tests, which call one fixture value many times."""
    return tmp_path_factory.mktemp("log") / "rejects.jsonl"
