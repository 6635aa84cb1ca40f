"""Heads and corpora that the scoring tests share."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest
import torch

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from ml_filter.scoring import run, workers
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.scoring.workers import Event, ShardWorker, Workers
from tests.kills import Killed
from tests.scoring.corpora import output_digests, write_corpus


@pytest.fixture(scope="session")
def labelled_by_length(documents, tmp_path_factory) -> SourceConfig:
    path = tmp_path_factory.mktemp("labelled") / "labelled.jsonl"
    rows = [{**row, "label": min(5.0, len(row["text"]) / 4000)} for row in documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


@pytest.fixture(scope="session")
def hashing_head(labelled_by_length, tmp_path_factory) -> str:
    """A head without an encoder, which scores a thousand documents per second."""
    config = TrainConfig(kind="hashing", label_column="label")
    return train_head(labelled_by_length, config, tmp_path_factory.mktemp("hashing") / "head").origin


@pytest.fixture(scope="session")
def encoder_head(labelled_by_length, small_encoder, tmp_path_factory) -> str:
    """A head on the small encoder."""
    config = TrainConfig(label_column="label", encoder=small_encoder, max_tokens=64)
    return train_head(labelled_by_length, config, tmp_path_factory.mktemp("encoder") / "head").origin


@pytest.fixture(scope="session")
def corpus(documents, tmp_path_factory) -> Path:
    """Six shards of 20 documents."""
    return write_corpus(tmp_path_factory.mktemp("scoring") / "corpus", documents, 6, 20)


@pytest.fixture(scope="session")
def scored_by_one_process(hashing_head, corpus, tmp_path_factory) -> dict[str, str]:
    """Digests of what one process makes of `corpus` when nothing disturbs it."""
    output = tmp_path_factory.mktemp("undisturbed") / "scored"
    score_corpus(hashing_head, SourceConfig(paths=[str(corpus)]), ScoreConfig(), output)
    return output_digests(output)


@pytest.fixture(scope="session")
def large_corpus(documents, tmp_path_factory) -> Path:
    """Four shards of 600 documents: enough time to kill a process that scores one."""
    return write_corpus(tmp_path_factory.mktemp("scoring") / "large", documents, 4, 600)


@pytest.fixture(scope="session")
def large_corpus_scored_by_one_process(hashing_head, large_corpus, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("undisturbed") / "large"
    score_corpus(hashing_head, SourceConfig(paths=[str(large_corpus)]), ScoreConfig(), output)
    return output_digests(output)


class InProcessWorkers(Workers):
    """Workers that take turns in this process; `Killed` is the death of the one whose turn it is."""

    def __init__(self, job, out, count):
        self.job, self.part, self.count = job, out.part, count
        self.scorers = {}
        self.calls = deque()

    def start(self, worker):
        self.scorers[worker] = ShardWorker(worker, self.job, self.part, torch.get_num_threads())
        self.calls.append((worker, self.scorers[worker].load))

    def assign(self, worker, shard):
        self.calls.append((worker, lambda: self.scorers[worker].score(shard)))

    def events(self):
        worker, call = self.calls.popleft()
        try:
            return [call()]
        except Killed:
            return [Event(worker, "died", reason="a kill")]

    def stop(self):
        self.scorers.clear()


@pytest.fixture
def in_process(monkeypatch):
    """Let `workers` be workers in this process."""
    monkeypatch.setattr(run, "LocalWorkers", InProcessWorkers)
    monkeypatch.setattr(workers, "configure_logging", lambda level: None)
