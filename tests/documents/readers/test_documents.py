import gzip
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import known_rows, read_shard, text_id
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from tests.documents.readers.reading import lines


def test_text_and_id_columns_may_have_other_names(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"content": "one", "key": "k", "n": 1}))
    expected = [{"id": "k", "text": "one", "key": "k", "n": 1}]
    assert read(path, text_column="content", id_column="key").rows == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_no_column_is_lost_when_others_are_chosen_as_text_and_id(read, tmp_path, kind):
    row = {"content": "whole", "text": "teaser", "input_text": "seen", "id": 7, "url": "https://a.org/1"}
    path = tmp_path / f"a.{kind}"
    path.write_bytes(lines(row)) if kind == "jsonl" else pq.write_table(pa.Table.from_pylist([row]), path)
    assert read(path, text_column="content", id_column="url").rows == [
        {
            "id": "https://a.org/1",
            "text": "whole",
            "input_input_text": "teaser",
            "input_text": "seen",
            "input_id": 7,
            "url": "https://a.org/1",
        }
    ]
    assert read(path, text_column="content").rows == [
        {"id": "7", "text": "whole", "input_input_text": "teaser", "input_text": "seen", "url": "https://a.org/1"}
    ]


def test_a_column_of_mixed_types_becomes_text(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*({"text": "t", "v": v} for v in [1, "one", [1, "a"], {"k": None}, None])))
    assert [row["v"] for row in read(path).rows] == ["1", "one", '[1, "a"]', '{"k": null}', None]


def test_missing_ids_are_hashes_of_the_text_in_every_format(read, tmp_path):
    pq.write_table(pa.table({"id": [5, None], "text": ["one", "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_bytes(lines({"id": 5, "text": "one"}, {"id": None, "text": "two"}))
    assert [row["id"] for row in read(tmp_path / "a.parquet").rows] == ["5", text_id("two")]
    assert [row["id"] for row in read(tmp_path / "b.parquet").rows] == [text_id("one"), text_id("two")]
    assert [row["id"] for row in read(tmp_path / "c.jsonl").rows] == ["5", text_id("two")]


def test_every_format_is_read_from_any_file_system(read):
    header = b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:2>\r\nContent-Length: 10\r\n\r\n"
    conversion = header + b"text of it" + b"\r\n\r\n"
    memory = fsspec.filesystem("memory")
    memory.pipe("/any/a.jsonl.gz", gzip.compress(lines({"text": "one"})))
    memory.pipe("/any/b.wet", conversion)
    with memory.open("/any/c.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["three"]}), file)
    result = read("memory://any")
    assert [text.split()[0] for text in result.texts] == ["one", "text", "three"]


def test_a_shard_deleted_before_it_is_read_is_a_reject(read, tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(lines({"text": name}))
    shards, _ = list_shards(SourceConfig(paths=[str(tmp_path)]))
    (tmp_path / "a.jsonl").unlink()
    result = read(shards=shards)
    assert (result.texts, result.reasons) == (["b.jsonl"], ["unreadable"])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_blank_documents_with_an_id_are_kept_on_request(tmp_path, kind):
    rows = [{"id": "a", "text": " "}, {"id": "b", "text": None}, {"id": None, "text": ""}, {"id": "c", "text": "one"}]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(lines(*rows)) if kind == "jsonl" else pq.write_table(pa.Table.from_pylist(rows), path)
    source, rejects = SourceConfig(paths=[str(path)]), RejectsLog()
    [table] = read_shard(list_shards(source)[0][0], source, rejects, keep_blank=True)
    assert table.select(["id", "text"]).to_pylist() == [
        {"id": "a", "text": ""},
        {"id": "b", "text": ""},
        {"id": "c", "text": "one"},
    ]
    assert rejects.total == 1


def test_rows_are_counted_without_reading_them_only_in_parquet(tmp_path):
    for name, rows in (("a", 3), ("b", 2)):
        pq.write_table(pa.table({"text": ["t"] * rows}), tmp_path / f"{name}.parquet")
    shards, _ = list_shards(SourceConfig(paths=[str(tmp_path)]))
    assert known_rows(shards) == 5
    assert known_rows([replace(shards[0], rows=7), shards[1]]) == 9
    (tmp_path / "b.parquet").write_bytes(b"damaged")
    assert known_rows(shards) is None
    (tmp_path / "c.jsonl").write_text("")
    assert known_rows(list_shards(SourceConfig(paths=[str(tmp_path / "c.jsonl")]))[0]) is None
