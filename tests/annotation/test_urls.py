"""Every annotation command writes to a URL what it writes to a local directory."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AskConfig, EstimateConfig, LabelConfig, TranslateConfig
from ml_filter.annotation.estimate import estimate_bill
from ml_filter.annotation.label import label_documents
from ml_filter.annotation.ledger import open_ledger
from ml_filter.annotation.run import answers_of
from ml_filter.annotation.translate import translate_documents, translate_prompt
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError, TooManyFailures
from ml_filter.location import Location
from tests.annotation.misbehaving import PROMPT, Reply, chat, refused

pytestmark = pytest.mark.slow

GOOD = chat("It explains. Score: 3")
SETTINGS = Settings(_env_file=None, endpoint=None, model=None)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch) -> Location:
    """Where results go."""
    monkeypatch.setenv("ML_FILTER_LEASE_S", "0.4")
    return Location(request.getfixturevalue("bucket").url if request.param == "s3" else tmp_path / "runs")


@pytest.fixture
def asking(asking):
    """With time for a busy machine: requests are counted."""
    return lambda server, **changes: asking(server, **{"timeout_s": 30.0, **changes})


def lines(file: Location) -> list[dict]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_a_pilot_its_run_and_a_retry_share_answers_at_any_location(root, serve, pages, asking):
    server = serve(lambda request: Reply(GOOD) if request.document != "d3" else refused(400, "no"))
    source, config, out = pages(12), asking(server), root / "out"
    estimate = estimate_bill(source, config, EstimateConfig(pilot=5, seed=1), output=str(out), settings=SETTINGS)
    assert estimate.pilot.ledger == str(out / ("ledger.sqlite" if root.is_local else "ledger"))
    again = estimate_bill(source, config, EstimateConfig(pilot=5, seed=1), output=str(out), settings=SETTINGS)
    assert again == estimate
    first = annotate_documents(source, config, str(out), SETTINGS)
    assert sum(server.asked.values()) == 12
    assert answers_of(first) == {"answers_asked": 7, "answers_from_ledger": 5}
    assert [line["document_id"] for line in lines(out / "failed.jsonl")] == ["d3"]
    server.answer = lambda request: Reply(GOOD)
    retried = annotate_documents(source, config.model_copy(update={"retry_failed": True}), str(out), SETTINGS)
    assert (retried.counts["scored"], sum(server.asked.values())) == (12, 13)
    assert answers_of(retried) == {"answers_asked": 1, "answers_from_ledger": 11}
    assert lines(out / "failed.jsonl") == []


def test_a_run_that_ends_at_its_budget_names_the_ledger_and_lists_what_failed(root, serve, pages, asking):
    server = serve(lambda request: refused(400, "no") if request.document == "d0" else Reply(GOOD))
    shared = root / "ledgers" / ("shared.sqlite" if root.is_local else "shared")
    config = asking(server, budget_tokens=400, ledger=str(shared), max_failed_share=0.5)
    with pytest.raises(TooManyFailures, match=rf"answers are in the ledger {shared}, "):
        annotate_documents(pages(30), config, str(root / "out"), SETTINGS)
    assert [line["document_id"] for line in lines(root / "out" / "failed.jsonl")] == ["d0"]
    finished = config.model_copy(update={"at_budget": "finish", "max_failed_share": 1.0})
    manifest = annotate_documents(pages(30), finished, str(root / "out"), SETTINGS)
    assert manifest.counts["failed_not_asked"] > 0


def test_other_settings_are_refused_and_the_ledger_is_named(root, serve, pages, asking, prompt_file):
    server = serve(lambda request: Reply(GOOD))
    annotate_documents(pages(2), asking(server), str(root / "out"), SETTINGS)
    ledger = root / "out" / ("ledger.sqlite" if root.is_local else "ledger")
    with pytest.raises(InputError, match=rf"different settings.*Do not delete {ledger}, .*--ledger {ledger} "):
        annotate_documents(pages(2), asking(server, seed=5), str(root / "out"), SETTINGS)
    moved = asking(server, max_failed_share=0.5, ledger=str(ledger))
    again = annotate_documents(pages(2), moved, str(root / "other"), SETTINGS)
    assert answers_of(again) == {"answers_asked": 0, "answers_from_ledger": 2}


def test_a_directory_in_which_nothing_was_answered_is_free_for_other_settings(root, serve, pages, asking):
    server = serve(lambda request: refused(404, "no such model"))
    with pytest.raises(Exception, match="no such model"):
        annotate_documents(pages(3), asking(server, model="wrong"), str(root / "out"), SETTINGS)
    server.answer = lambda request: Reply(GOOD)
    assert annotate_documents(pages(3), asking(server), str(root / "out"), SETTINGS).counts["scored"] == 3


def test_documents_and_prompts_are_translated_to_any_location(root, serve, pages, tmp_path):
    words = "the cell is a small part of life and it makes energy from light"
    german = "die Zelle ist ein kleiner Teil von Leben und sie macht Energie aus Licht"
    server = serve(lambda request: chat(german))
    config = TranslateConfig(endpoints=[server.url], model="m", max_failed_share=1.0)
    path = tmp_path / "gold.jsonl"
    path.write_text(json.dumps({"id": "d", "text": words}) + "\n")
    [manifest] = translate_documents(SourceConfig(paths=[str(path)]), ["de"], config, str(root / "gold"), SETTINGS)
    assert manifest.root == str(root / "gold" / "de")
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(PROMPT))
    text = PROMPT["text"].replace("Judge this page:", "Beurteile diese Seite, ob sie gut ist und nicht schlecht:")
    server.answer = lambda request: chat(text)
    for _ in range(2):
        [file] = translate_prompt(str(tmp_path / "short.yaml"), ["de"], config, str(root / "prompts"), SETTINGS)
    assert file == root / "prompts" / "short_de.yaml"
    assert b"Beurteile" in file.read_bytes()
    assert len(server.requests) == 2


# --- What grows is done once -----------------------------------------------------------------------------------------


def put(root: Location, numbers: range, tmp_path: Path) -> SourceConfig:
    """Files of three documents each below `root`."""
    for number in numbers:
        rows = [{"id": f"d{number}x{i}", "text": f"[d{number}x{i}] a page about {number}"} for i in range(3)]
        file = tmp_path / "part"
        pq.write_table(pa.Table.from_pylist(rows), file)
        (root / "corpus" / f"part-{number}.parquet").move_here(file)
    return SourceConfig(paths=[str(root / "corpus")])


def test_of_a_source_that_grew_only_the_new_documents_are_asked(root, serve, asking, tmp_path):
    server = serve(lambda request: Reply(chat(f"Score: {len(request.document) % 6}")))
    config = asking(server)
    first = annotate_documents(put(root, range(1, 6), tmp_path), config, str(root / "out"), SETTINGS)
    assert (first.rows, len(server.requests)) == (15, 15)
    source = put(root, range(0, 7, 6), tmp_path)  # one file before the others, one after them
    grown = annotate_documents(source, config, str(root / "out"), SETTINGS)
    assert answers_of(grown) == {"answers_asked": 6, "answers_from_ledger": 15}
    assert len(server.requests) == 21
    assert set(server.asked.values()) == {1}
    again = annotate_documents(source, config, str(root / "out"), SETTINGS)
    assert answers_of(again) == {"answers_asked": 0, "answers_from_ledger": 21}
    fresh = annotate_documents(source, asking(server, ledger=None), str(root / "fresh"), SETTINGS)
    assert [shard.rows for shard in grown.shards] == [shard.rows for shard in fresh.shards]
    ids = [row["document_id"] for row in read(grown)]
    assert ids == [f"d{number}x{i}" for number in range(7) for i in range(3)] == [r["document_id"] for r in read(fresh)]
    assert (grown.counts, grown.config_digest) == (fresh.counts, fresh.config_digest)
    with pytest.raises(InputError, match="different settings"):
        annotate_documents(source, asking(server, seed=3), str(root / "out"), SETTINGS)


def test_labels_grow_with_their_source(root, serve, tmp_path):
    server = serve(lambda request: chat(json.dumps({"labels": ["science"]})))
    (tmp_path / "topics.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "topics",
                "description": "Say what the page is about.",
                "choose": "one",
                "labels": [{"name": "science", "definition": "science"}, {"name": "other", "definition": "the rest"}],
            }
        )
    )
    config = LabelConfig(endpoints=[server.url], model="m", labels=[str(tmp_path / "topics.yaml")])
    label_documents(put(root, range(2), tmp_path), config, str(root / "labels"), SETTINGS)
    grown = label_documents(put(root, range(2, 3), tmp_path), config, str(root / "labels"), SETTINGS)
    assert (grown.rows, len(server.requests)) == (9, 9)
    report = json.loads((root / "labels" / "distribution.json").read_bytes())
    assert report["facets"][0]["overall"]["documents"] == 9


def test_outputs_share_ledgers_by_their_questions(root, serve, pages, asking, prompt_file):
    server, ledgers = serve(lambda request: Reply(GOOD)), str(root / "ledgers")
    config = asking(server)
    annotate_documents(pages(4), config, str(root / "first"), SETTINGS, ledgers=ledgers)
    second = annotate_documents(pages(6), config, str(root / "second"), SETTINGS, ledgers=ledgers)
    assert answers_of(second) == {"answers_asked": 2, "answers_from_ledger": 4}
    [place] = [Location(root.fs.unstrip_protocol(path)) for path in root.fs.ls((root / "ledgers").path, detail=False)
               if not path.endswith((".lock", "-wal", "-shm"))]  # fmt: skip
    with open_ledger(place.local if root.is_local else place, AskConfig()):
        other = config.model_copy(update={"prompts": [prompt_file("other", text="Say: {text} Score: <0 to 5>")]})
        annotate_documents(pages(2), other, str(root / "third"), SETTINGS, ledgers=ledgers)
        with pytest.raises(InputError, match="in use by another run"):
            annotate_documents(pages(2), config, str(root / "fourth"), SETTINGS, ledgers=ledgers)
        own = config.model_copy(update={"ledger": str(root / ("own.sqlite" if root.is_local else "own"))})
        annotate_documents(pages(2), own, str(root / "fifth"), SETTINGS, ledgers=ledgers)


def read(manifest) -> list[dict]:
    rows = []
    for path in manifest.shard_paths():
        with Location(path).open() as file:
            rows += pq.read_table(file).to_pylist()
    return rows
