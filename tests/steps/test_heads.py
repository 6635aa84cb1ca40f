"""Heads in ZenML's store: what is known of them is loaded, their weights are fetched when they are needed."""

import json
from pathlib import Path

import pytest
from zenml.artifact_stores import BaseArtifactStore, LocalArtifactStore, LocalArtifactStoreConfig
from zenml.enums import StackComponentType
from zenml.materializers.base_materializer import BaseMaterializer

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.store import fetch_head, read_trained_on
from ml_filter.heads.train import train_head
from ml_filter.heads.trained import TrainedHead
from ml_filter.reporting.run import record_run, write_run_report
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus
from steps.materializers import HeadMaterializer, ReferencedHeadMaterializer

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def source(tmp_path) -> SourceConfig:
    rows = [{"id": f"d{n}", "text": f"{'good ' * (n % 6)}page number {n}", "label": n % 6} for n in range(60)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(tmp_path / "labelled.jsonl")])


@pytest.fixture
def head(source, tmp_path) -> TrainedHead:
    return train_head(source, TrainConfig(kind="hashing", label_column="label"), tmp_path / "head")


class Artifacts:
    """An artifact store in a directory."""

    def __init__(self, store: BaseArtifactStore, kind: type[BaseMaterializer]) -> None:
        self.store, self.kind = store, kind

    def save(self, head: TrainedHead, name: str) -> TrainedHead:
        """Save a head as a step does, and load it as the next step does."""
        self.store.makedirs(self.uri(name))
        self.kind(self.uri(name), artifact_store=self.store).save(head)
        return self.load(name)

    def load(self, name: str) -> TrainedHead:
        head: TrainedHead = self.kind(self.uri(name), artifact_store=self.store).load(TrainedHead)
        return head

    def uri(self, name: str) -> str:
        return f"{self.store.path}/{name}"


@pytest.fixture
def artifacts(tmp_path) -> Artifacts:
    root = tmp_path / "artifacts"
    root.mkdir()
    store = LocalArtifactStore(
        name="test",
        id="00000000-0000-0000-0000-000000000000",
        config=LocalArtifactStoreConfig(path=str(root)),
        flavor="local",
        type=StackComponentType.ARTIFACT_STORE,
        user=None,
        created="2026-01-01T00:00:00",
        updated="2026-01-01T00:00:00",
    )

    return Artifacts(store, HeadMaterializer)


def test_a_step_that_needs_figures_or_settings_reads_no_weights(head, source, artifacts, tmp_path):
    scored = score_corpus(head, source, ScoreConfig(), tmp_path / "scored")
    filtered = filter_corpus(SourceConfig(paths=[scored.root]), FilterConfig(min_score=0), tmp_path / "filtered")
    artifacts.save(head, "head")
    for directory in ("head", "artifacts/head"):
        (tmp_path / directory / "model.safetensors").unlink()
    loaded = artifacts.load("head")
    _, page, _ = write_run_report(loaded, scored, filtered)
    assert head.origin in page
    assert record_run([scored], loaded).parameters["train_kind"] == "hashing"
    assert len(read_trained_on(loaded)) == head.training.train_documents
    assert loaded.digest == head.digest


def test_a_head_whose_directory_is_on_another_machine_is_named_by_its_artifact(head, artifacts, tmp_path):
    assert artifacts.save(head, "head").origin == head.origin
    (tmp_path / "head").rename(tmp_path / "elsewhere")
    loaded = artifacts.load("head")
    assert loaded.origin == artifacts.uri("head")
    assert fetch_head(loaded).directory == Path(loaded.origin)
    names = {path.name for path in Path(loaded.origin).iterdir()}
    assert names == {*head.training.files, "origin.json", "training.json"}


def test_a_head_that_is_loaded_from_a_url_is_not_copied_to_the_store(source, artifacts, tmp_path, monkeypatch):
    artifacts.kind = ReferencedHeadMaterializer
    monkeypatch.setenv("ML_FILTER_CACHE_DIR", str(tmp_path / "cache"))
    head = train_head(source, TrainConfig(kind="hashing", label_column="label"), "memory://referenced/head")
    loaded = artifacts.save(head, "head")
    assert loaded == head
    names = {path.name for path in Path(artifacts.uri("head")).iterdir()}
    assert names == {"config.json", "origin.json", "training.json"}
    assert fetch_head(loaded).origin == "memory://referenced/head"
