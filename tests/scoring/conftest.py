"""Heads and corpora of the scoring tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from tests.scoring.corpora import content, write_corpus


@pytest.fixture(scope="session")
def cheap_head(documents, tmp_path_factory) -> str:
    """A head that needs no encoder and scores a thousand documents a second."""
    directory = tmp_path_factory.mktemp("cheap")
    rows = [{**row, "label": min(5.0, len(row["text"]) / 4000)} for row in documents]
    (directory / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(paths=[str(directory / "labelled.jsonl")])
    return train_head(source, TrainConfig(engine="hashing", label_column="label"), directory / "head").directory


@pytest.fixture(scope="session")
def corpus(documents, tmp_path_factory) -> Path:
    """Six shards of 600 documents."""
    return write_corpus(tmp_path_factory.mktemp("scoring") / "corpus", documents, 6, 600)


@pytest.fixture(scope="session")
def undisturbed(cheap_head, corpus, tmp_path_factory) -> dict[str, str]:
    """What one process that nothing happens to makes of the corpus."""
    output = tmp_path_factory.mktemp("undisturbed") / "scored"
    score_corpus(cheap_head, SourceConfig(paths=[str(corpus)]), ScoreConfig(), output)
    return content(output)
