"""The same id on different documents: nothing is lost, and joins find the same documents again."""

import json

import pyarrow.parquet as pq

from ml_filter.documents.config import ConvertConfig, SourceConfig
from ml_filter.documents.convert import convert_to_annotations
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.unique import UniqueIds, find_documents
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents

# The names of the two shards end in a digest of their path in the corpus.
SHARD_B = "b-821eac0a8467"


def write_shards(directory, count=30, **more):
    """Two shards that both count from 0."""
    directory.mkdir(exist_ok=True)
    for name in "ab":
        rows = ({"id": i, "text": f"{name} {i}", "score": 1, **more} for i in range(count))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(directory)])


def rows_of(manifest):
    return [row for path in manifest.shard_paths() for row in pq.read_table(path).to_pylist()]


def read_ids(source):
    with UniqueIds() as ids:
        tables = [table for _, table, _ in ids.read(list_shards(source)[0], source, RejectsLog())]
    return [document_id for table in tables for document_id in table["id"].to_pylist()]


def test_colliding_ids_are_sampled_from_all_shards_and_counted(tmp_path):
    source = write_shards(tmp_path / "corpus")
    rows = rows_of(sample_documents(source, SampleConfig(size=40), tmp_path / "some"))
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 40
    assert len({row["text"][0] for row in rows}) == 2
    manifest = sample_documents(source, SampleConfig(size=100), tmp_path / "all")
    assert (manifest.counts["sampled"], manifest.counts["renamed_ids"]) == (60, 30)
    assert {row["id"] for row in rows_of(manifest)} == {f"{i}{end}" for i in range(30) for end in ("", f"@{SHARD_B}")}


def test_documents_of_one_id_are_drawn_independently(tmp_path):
    rows = rows_of(sample_documents(write_shards(tmp_path / "corpus", 200), SampleConfig(size=100), tmp_path / "out"))
    repeated = len(rows) - len({row["text"][2:] for row in rows})
    assert 5 < repeated < 45  # 25 of 100 on average; all of them if the id alone decided


def test_an_own_id_is_not_given_twice(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch()
    source = SourceConfig(paths=[str(path)])
    name = list_shards(source)[0][0].name
    texts = [("x", "1"), ("x", "2"), ("x", "3"), (f"x@{name}", "4"), ("x", "2")]
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in texts))
    ids = read_ids(source)
    assert ids == ["x", f"x@{name}", f"x@{name}-2", f"x@{name}@{name}", f"x@{name}"]


def test_joins_find_documents_under_the_ids_they_were_annotated_with(tmp_path):
    source = write_shards(tmp_path / "corpus", 3)
    with (tmp_path / "corpus" / "a.jsonl").open("a") as file:
        file.write(json.dumps({"id": 7, "text": " "}) + "\n")
    with (tmp_path / "corpus" / "b.jsonl").open("a") as file:
        file.write(json.dumps({"id": 7, "text": "b 7"}) + "\n")
    texts = {f"7@{SHARD_B}": "b 7", "1": "a 1", f"1@{SHARD_B}": "b 1"}
    assert set(texts) <= set(read_ids(source))
    found = {
        row["id"]: row["text"]
        for table in find_documents(list_shards(source)[0], source, texts)
        for row in table.to_pylist()
    }
    assert texts.items() <= found.items()
    assert "" not in found.values()


def test_flat_rows_with_colliding_ids_are_all_converted(tmp_path):
    config = ConvertConfig(prompt="edu", annotator="llama")
    manifest = convert_to_annotations(write_shards(tmp_path / "corpus", 3), config, tmp_path / "out")
    assert (manifest.counts["documents"], manifest.counts["renamed_ids"]) == (6, 3)
