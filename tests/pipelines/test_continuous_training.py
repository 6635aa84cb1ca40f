"""Continuous training: what is new is annotated and trained on, nothing new is nothing to do."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.documents.readers import read_tables
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.new_documents import sample_new_documents
from tests.annotation.conftest import serve  # noqa: F401 - a fixture
from tests.annotation.misbehaving import PROMPT, chat
from tests.pipelines.test_rerun import latest_run, statuses

WORDS = ("alpha beta", "gamma delta", "epsilon zeta", "eta theta", "iota kappa")


def page(mark: str, number: int) -> str:
    """A page whose words say its score."""
    return f"[{mark}{number}] " + " ".join(f"{WORDS[number % 5]} {mark}{number}x{n}" for n in range(12))


def write(path: Path, mark: str, count: int) -> None:
    """Documents d0, d1, ...: each file counts its ids from 0."""
    rows = [{"id": f"d{n}", "text": page(mark, n), "human_score": n % 5} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(manifest: Any) -> list[str]:
    return [row["text"] for path in manifest.shard_paths() for table in read_tables(path) for row in table.to_pylist()]


def ids(manifest: Any) -> list[str]:
    return [row["id"] for path in manifest.shard_paths() for table in read_tables(path) for row in table.to_pylist()]


def test_only_new_and_changed_shards_are_sampled_and_no_document_twice(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write(source / "a.jsonl", "a", 6)
    config, output = SampleConfig(size=4), str(tmp_path / "sample-{digest}")
    first, state = sample_new_documents(SourceConfig(paths=[str(source)]), config, output, None)
    assert len(ids(first)) == 4
    again, same = sample_new_documents(SourceConfig(paths=[str(source)]), config, output, state)
    assert (again.root, same) == (first.root, state)
    write(source / "b.jsonl", "b", 3)
    second, state = sample_new_documents(SourceConfig(paths=[str(source)]), config, output, state)
    assert {text[1] for text in texts(second)} == {"b"}
    assert len({*ids(first), *ids(second)}) == 7  # the second d0 has an id of its own
    write(source / "b.jsonl", "b", 5)  # it has changed: three of its documents are known
    third, state = sample_new_documents(SourceConfig(paths=[str(source)]), SampleConfig(size=9), output, state)
    assert sorted(text[:4] for text in texts(third)) == ["[b3]", "[b4]"]
    assert state.samples == [first.root, second.root, third.root]


@pytest.fixture
def settings(tmp_path, serve) -> list[str]:  # noqa: F811
    """Overrides of a run over one file, with an annotator that reads the score off the page and remembers pages."""
    asked: Counter[str] = Counter()

    def answer(request):
        asked[request.document] += 1
        return chat(f"Score: {int(re.sub('[a-z]', '', request.document)) % 5}")

    (tmp_path / "source").mkdir()
    write(tmp_path / "source" / "a.jsonl", "a", 40)
    write(tmp_path / "gold.jsonl", "g", 40)
    (tmp_path / "prompt.yaml").write_text(json.dumps(PROMPT))
    url = serve(answer).url
    result = Settings(
        [
            f"output={tmp_path}/runs",
            f"source.paths=['{tmp_path}/source']",
            "sample.size=30",
            "deduplicate=null",
            f"annotate={{prompts: ['{tmp_path}/prompt.yaml'], endpoints: ['{url}'], model: m}}",
            "train.kind=hashing",
            f"gold.paths=['{tmp_path}/gold.jsonl']",
            "promote={to: production, min_agreement: 0.3}",
        ]
    )
    result.asked = asked
    return result


class Settings(list):
    """Overrides, and the pages that the annotator was asked about."""

    asked: Counter[str]


@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")  # ZenML's own
def test_each_run_asks_for_new_documents_only_and_trains_on_all_labels_so_far(settings, run, tmp_path):
    runs, asked = tmp_path / "runs", settings.asked
    code, printed = run("continuous_training", *settings)
    assert code == 0, printed
    assert (len(asked), set(asked.values())) == (30, {1})
    assert [version.stage for version in versions()] == ["production"]

    made = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    code, printed = run("continuous_training", *settings)
    assert code == 0, printed
    assert sum(asked.values()) == 30
    again = {path: path.stat().st_mtime_ns for path in runs.glob("head-*/*") if path.is_file()}
    assert again.items() <= made.items(), "nothing is trained"
    assert latest_run().steps["sample_new_documents"].run_metadata["counts"]["new"] == 0

    write(tmp_path / "source" / "b.jsonl", "b", 40)
    code, printed = run("continuous_training", *settings)
    assert code == 0, printed
    assert Counter(document[0] for document in asked) == {"a": 30, "b": 30}
    assert set(asked.values()) == {1}, "no page is paid for twice"
    steps = latest_run().steps
    [[scores]] = steps["aggregate_scores"].outputs.values()
    assert read_manifest(scores.load().root).counts["scored"] == 60
    head = steps["train_head"].outputs["head"][0].load()
    assert head.training.train_documents + head.training.test_documents == 60
    assert "promote_head" in statuses(latest_run())
    assert steps["promote_head"].run_metadata["decision"]["reasons"]
    assert len({*runs.glob("head-*")}) == 2


def versions() -> list[Any]:
    from zenml.client import Client

    return Client().list_model_versions(model="educational_value_head").items
