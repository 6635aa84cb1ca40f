"""Directories exported to MongoDB, over the wire."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig
from ml_filter.cli import main
from ml_filter.documents.config import ConvertConfig, SourceConfig
from ml_filter.documents.convert import convert_to_annotations
from ml_filter.documents.manifest import read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_shard, read_tables
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.publishing import warehouse as exporting
from ml_filter.publishing.warehouse import EXPORTS, export_directory
from tests.scoring.corpora import wait_until
from tests.written import write_annotations


def write_documents(directory: Path, *shards: list[dict], kind: str = "filtered") -> str:
    with OutputDirectory(directory, kind, {"shards": repr(shards)}, []) as out:
        results = []
        for number, rows in enumerate(shards):
            with out.new_shard(f"{number}") as writer, out.new_rejects(f"{number}") as rejects:
                writer.write(pa.Table.from_pylist(rows))
            results.append((f"{number}", out.commit(f"{number}", writer, rejects, {})))
        out.finish(results)
    return str(directory)


def stored(warehouse, name: str = "pages") -> list[dict]:
    rows = list(warehouse.database[name].find(sort=[("_id", 1)]))
    return [{name: value for name, value in row.items() if name not in ("_id", "digest", "updated_at")} for row in rows]


def test_documents_are_written_once_and_replaced_only_if_they_changed(warehouse, tmp_path):
    pages, location = warehouse.database.pages, warehouse.location("pages")
    rows = [
        {"id": str(n), "text": f"text {n}", "score": n / 2, "$price": n, "a.b": None if n else "x"} for n in range(5)
    ]
    first = write_documents(tmp_path / "a", rows[:3], rows[3:])
    nothing = {"inserted": 0, "replaced": 0, "unchanged": 0, "rejected_too_large": 0}
    assert export_directory(first, location) == {**nothing, "rows": 5, "inserted": 5}
    assert stored(warehouse)[0] == {"id": "0", "text": "text 0", "score": 0.0, "$price": 0, "a.b": "x"}
    times = {row["id"]: row["updated_at"] for row in pages.find()}
    rows[1]["score"] = 5.0
    second = write_documents(tmp_path / "b", [*rows, {"id": "new", "text": "new"}])
    assert export_directory(second, location) == {**nothing, "rows": 6, "inserted": 1, "replaced": 1, "unchanged": 4}
    changed = {row["id"] for row in pages.find() if row["updated_at"] != times.get(row["id"])}
    assert changed == {"1", "new"}
    assert export_directory(second, location)["rows"] == 6, "the counts of a finished export are those of its record"


def test_a_killed_export_writes_only_the_shards_that_are_not_finished(warehouse, tmp_path, monkeypatch):
    shards = [[{"id": f"{s}-{n}", "text": "t"} for n in range(3)] for s in range(4)]
    directory = write_documents(tmp_path / "a", *shards)
    written, write = [], exporting._write

    def killed(collection, operations):
        written.append(len(operations))
        if len(written) == 3:
            write(collection, operations)  # the server has the rows, but no record of the shard
            raise KeyboardInterrupt
        return write(collection, operations)

    monkeypatch.setattr(exporting, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        export_directory(directory, warehouse.location("pages"))
    counts = export_directory(directory, warehouse.location("pages"))
    assert len(written) == 3 + 2
    assert (counts["rows"], counts["inserted"], counts["unchanged"]) == (12, 9, 3)
    assert len(stored(warehouse)) == 12
    [record] = warehouse.database[EXPORTS].find()
    assert [shard["path"] for shard in record["shards"]] == [f"shards/{n}.parquet" for n in range(4)]


@pytest.mark.slow
def test_an_export_that_is_killed_continues_and_every_row_is_there_once(warehouse, tmp_path):
    shards = [[{"id": f"{s}-{n}", "text": "t"} for n in range(100)] for s in range(20)]
    directory, location = write_documents(tmp_path / "a", *shards), warehouse.location("pages")
    command = [sys.executable, "-m", "ml_filter.cli", "export", directory, "--to", location]
    exports = warehouse.database[EXPORTS]
    with subprocess.Popen(
        command, cwd=Path(__file__).resolve().parents[2], stderr=subprocess.DEVNULL, text=True
    ) as process:
        wait_until(lambda: exports.count_documents({"shards.1": {"$exists": True}}) > 0, process)
        process.kill()
    done = len(exports.find_one()["shards"])
    assert 2 <= done < 20
    counts = export_directory(directory, location)
    assert counts["rows"] == counts["inserted"] + counts["unchanged"] == 2000
    assert counts["unchanged"] <= 100, "only the rows of the shard that was interrupted are written again"
    assert len({row["id"] for row in stored(warehouse)}) == len(stored(warehouse)) == 2000


def test_documents_of_two_shards_with_one_id_are_both_kept(warehouse, tmp_path):
    directory = write_documents(
        tmp_path / "a", [{"id": "1", "text": "one"}], [{"id": "1", "text": "other"}, {"id": "1", "text": "one"}]
    )
    assert export_directory(directory, warehouse.location("pages"))["inserted"] == 2
    assert {row["id"]: row["text"] for row in stored(warehouse)} == {"1": "one", "1@1": "other"}


def test_annotations_have_a_compound_key(warehouse, tmp_path):
    directory = str(write_annotations(tmp_path / "a", [("x", 1), ("x", 0), ("y", None)]))
    location = warehouse.location("annotations")
    assert export_directory(directory, location)["inserted"] == 3
    assert [(row["document_id"], row["vote"], row["status"]) for row in stored(warehouse, "annotations")] == [
        ("x", 0, "scored"), ("x", 1, "scored"), ("y", 0, "failed"),
    ]  # fmt: skip
    again = str(write_annotations(tmp_path / "b", [("x", 1), ("x", 1)]))
    assert {**export_directory(again, location), "rows": 2}["replaced"] == 1
    assert len(stored(warehouse, "annotations")) == 3


def test_annotations_in_a_collection_become_a_directory_with_the_same_scores(warehouse, tmp_path):
    original = write_annotations(tmp_path / "a", [("x", 1), ("x", 0), ("y", None), ("z", 1)], criteria=[])
    export_directory(str(original), warehouse.location("annotations"))
    config = ConvertConfig(score_range=(0, 5))
    source = SourceConfig(paths=[warehouse.location("annotations")])
    converted = convert_to_annotations(source, config, tmp_path / "b")
    assert converted.counts == {"documents": 3, "scored": 3, "failed": 1, "rejected": 0}
    latest = max(row["updated_at"] for row in warehouse.database.annotations.find())
    assert read_manifest(converted.root).parents[0].latest == latest
    aggregated = [
        read_tables(aggregate_annotations([path], AggregateConfig(), tmp_path / f"scores-{n}").shard_paths()[0])
        for n, path in enumerate((original, tmp_path / "b"))
    ]
    first, second = ([row for table in tables for row in table.to_pylist()] for tables in aggregated)
    assert first == second
    assert [(row["document_id"], row["score"]) for row in first] == [("x", 0.5), ("y", None), ("z", 1.0)]


def test_a_document_over_the_limit_of_mongodb_is_left_out_and_counted(warehouse, tmp_path):
    directory = write_documents(tmp_path / "a", [{"id": "big", "text": "x" * 17_000_000}, {"id": "b", "text": "t"}])
    counts = export_directory(directory, warehouse.location("pages"))
    assert (counts["rows"], counts["inserted"], counts["rejected_too_large"]) == (2, 1, 1)
    [record] = warehouse.database[EXPORTS].find()
    assert record["too_large"] == ["big"]


def test_another_unique_index_of_the_collection_is_named(warehouse, tmp_path):
    warehouse.database.pages.create_index("url", unique=True)
    rows = [{"id": str(n), "text": "t", "url": "same"} for n in range(3)]
    directory = write_documents(tmp_path / "a", rows)
    with pytest.raises(InputError, match=r"does not admit 2 rows \(duplicate key: .*url"):
        export_directory(directory, warehouse.location("pages"))


def test_a_collection_with_duplicates_is_not_written_to(warehouse, tmp_path):
    warehouse.database.pages.insert_many([{"id": "1"}, {"id": "1"}])
    directory = write_documents(tmp_path / "a", [{"id": "1", "text": "t"}])
    with pytest.raises(InputError, match="several documents with the same id"):
        export_directory(directory, warehouse.location("pages"))


def test_values_of_all_types_are_stored(warehouse, tmp_path):
    row = {
        "id": "1",
        "text": "t",
        "updated_at": "theirs",
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "price": Decimal("1.10"),
        "raw": b"\xff",
        "list": [1, 2],
        "nested": {"a.b": {"$c": 1}},
    }
    table = pa.Table.from_pylist([row]).append_column("huge", pa.array([2**63], pa.uint64()))
    with OutputDirectory(tmp_path / "a", "filtered", {}, []) as out:
        with out.new_shard("0") as writer, out.new_rejects("0") as rejects:
            writer.write(table)
        out.finish([("0", out.commit("0", writer, rejects, {}))])
    export_directory(str(tmp_path / "a"), warehouse.location("pages"))
    [document] = stored(warehouse)
    assert document.pop("input_updated_at") == "theirs"
    assert document.pop("day") == datetime(2026, 1, 2, tzinfo=UTC)
    assert str(document.pop("price")) == "1.10"
    assert document.pop("huge") == str(2**63)
    del row["updated_at"], row["day"], row["price"]
    assert document == row


def test_what_was_exported_can_be_read_again(warehouse, tmp_path):
    rows = [{"id": str(n), "text": f"text {n}", "language": "de"} for n in range(3)]
    export_directory(write_documents(tmp_path / "a", rows), warehouse.location("pages"))
    source = SourceConfig(paths=[warehouse.location("pages")])
    shards, [parent] = list_shards(source)
    [table] = read_shard(shards[0], source, RejectsLog())
    assert table.select(["id", "text", "language"]).to_pylist() == rows
    assert parent.latest == max(row["updated_at"] for row in warehouse.database.pages.find())


def test_the_command_prints_the_counts(warehouse, tmp_path, capsys):
    directory = write_documents(tmp_path / "a", [{"id": "1", "text": "t"}])
    assert main(["export", directory, "--to", warehouse.location("pages")]) == 0
    assert "inserted" in capsys.readouterr().out
    assert main(["export", directory, "--to", "mongodb://a:secret@host/db.pages"]) == 2
    assert "secret" not in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--to", warehouse.location("pages")]) == 2
