"""A small index of documents on different subjects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.retrieval.config import IndexConfig

TEXTS = {
    "cells": "Mitosis divides a cell. First the chromosomes are copied, then the spindle pulls them apart.",
    "bread": "Knead flour, water and yeast to a dough. Let it rise, then bake the loaf in a hot oven.",
    "stars": "A star shines because hydrogen fuses to helium in its core, which takes millions of degrees.",
    "rivers": "Rivers carve valleys over thousands of years, and carry sand and gravel to the sea.",
}


def rows_of(names: list[str], score: float = 3.0) -> str:
    """Documents as JSON lines."""
    rows = [
        {"id": name, "text": TEXTS[name], "url": f"https://example.org/{name}", "language": "en", "score": score + i}
        for i, name in enumerate(names)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A directory with two shards."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    (directory / "a.jsonl").write_text(rows_of(["cells", "bread"]))
    (directory / "b.jsonl").write_text(rows_of(["stars", "rivers"], score=1.0))
    return directory


@pytest.fixture
def config(small_encoder: str) -> Callable[..., IndexConfig]:
    """An index with an encoder that runs in milliseconds."""

    def make(**settings: object) -> IndexConfig:
        sizes = {"chunk_tokens": 16, "overlap_tokens": 4, "parent_tokens": 64}
        return IndexConfig.model_validate({"encoder": small_encoder, "engine": "torch", **sizes, **settings})

    return make


def source_of(*paths: Path) -> SourceConfig:
    """The documents at paths."""
    return SourceConfig(paths=[str(path) for path in paths])
