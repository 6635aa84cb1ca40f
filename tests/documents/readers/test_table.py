import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import read_rows, read_schema, read_tables
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError

ROWS = [{"id": "a", "score": 1.5}, {"id": "b", "score": None}]


def rows_in(path, columns=None):
    [shard] = list_shards(SourceConfig(paths=[str(path)]))[0]
    return list(read_rows(shard, columns))


def test_rows_need_no_text_and_have_a_location(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert rows_in(path) == [(f"{path}, line 1", ROWS[0]), (f"{path}, line 2", ROWS[1])]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert rows_in(tmp_path / "a.parquet") == [(f"{tmp_path}/a.parquet, row {i}", row) for i, row in enumerate(ROWS)]
    (tmp_path / "a.csv").write_text("id,score\na,1.5\n")
    assert rows_in(tmp_path / "a.csv") == [(f"{tmp_path}/a.csv, line 2", {"id": "a", "score": "1.5"})]


def test_only_the_named_columns_of_parquet_are_read(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row for _, row in rows_in(tmp_path / "a.parquet", {"id", "other"})] == [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"id": 1}\n{"id"', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]", r"a\.jsonl, line 1: a JSON int, not an object"),
        ("a.csv", b"id,score\na\n", r"a\.csv, line 2: 1 values for 2 columns"),
        ("a.jsonl.gz", b"\x1f\x8b", r"a\.jsonl\.gz cannot be read: after line 0"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read \(ArrowInvalid"),
        ("a.warc", b"", "tables are Parquet, Arrow, JSON lines, CSV or MongoDB, not warc"),
    ],
)
def test_an_unreadable_row_is_an_error_with_its_location(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        rows_in(tmp_path / name)


def test_a_table_without_its_expected_rows_is_an_error(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read_schema(path).names == ["id", "score"]
    assert [table.to_pylist() for table in read_tables(path, ["id"], 2)] == [[{"id": "a"}, {"id": "b"}]]
    with pytest.raises(InputError, match="has 2 rows; its manifest states 3"):
        next(read_tables(path, None, 3))


def test_a_string_with_lone_surrogates_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud800", "score": 1}')
    assert rows_in(tmp_path / "a.jsonl") == [(f"{tmp_path}/a.jsonl, line 1", {"text": "\ud800", "score": 1})]
