from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.errors import InputError
from tests.documents.readers.reading import varied_rows


@pytest.fixture
def rich() -> pa.Table:
    when = datetime(2024, 5, 18, 1, 58, tzinfo=UTC)
    return pa.table(
        {
            "content": ["one", "two"],
            "tags": pa.array([["a", None], []], pa.list_(pa.large_string())),
            "meta": pa.array([{"n": 1, "inner": [{"x": 1.5}]}, None]),
            "when": pa.array([when, None], pa.timestamp("ms", tz="UTC")),
            "price": pa.array([Decimal("1.25"), None], pa.decimal128(9, 2)),
            "kind": pa.array(["a", "a"]).dictionary_encode(),
            "raw": pa.array([b"\xff", None], pa.binary()),
            "small": pa.array([1, 2], pa.int8()),
        }
    )


def test_other_columns_keep_their_types(read, tmp_path, rich):
    pq.write_table(rich, tmp_path / "a.parquet")
    result = read(tmp_path / "a.parquet", text_column="content").table
    others = rich.column_names[1:]
    assert result.column_names == ["id", "text", *others]
    assert result["text"].to_pylist() == ["one", "two"]
    assert result.select(others).schema.equals(rich.select(others).schema)
    assert result.select(others).equals(rich.select(others))


def test_bad_texts_are_rejected_row_by_row(read, tmp_path):
    values = [b"good", None, b"", b" \n", b"bad \xff utf-8", b"x" * 101, "gut ß".encode()]
    binary = pa.array(values, pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(values), binary.buffers())
    pq.write_table(pa.table({"text": texts, "n": range(len(values))}), tmp_path / "a.parquet")
    result = read(tmp_path / "a.parquet", max_text_bytes=100)
    assert [(row["text"], row["n"]) for row in result.rows] == [("good", 0), ("gut ß", 6)]
    assert result.locations == [
        ("row 1", "missing_text"),
        ("row 2", "empty_text"),
        ("row 3", "empty_text"),
        ("row 4", "invalid_utf8"),
        ("row 5", "text_too_long"),
    ]


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_a_corrupt_file_is_one_reject_and_the_other_shards_are_read(read, tmp_path, damage):
    for name in "abc":
        pq.write_table(pa.table({"id": [name], "text": ["text"]}), tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    broken = {"empty": b"", "garbage": b"PAR1 no Parquet PAR1", "truncated": whole[: len(whole) // 2]}
    (tmp_path / "b.parquet").write_bytes(broken[damage])
    result = read(tmp_path)
    assert [row["id"] for row in result.rows] == ["a", "c"]
    assert [(Path(r["source"]).name, r["reason"]) for r in result.rejects] == [("b.parquet", "unreadable")]


def test_a_damaged_row_group_is_one_reject_and_the_other_row_groups_are_read(read, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(varied_rows(300)), path, row_group_size=100, compression="zstd")
    chunk = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 50] = b"\xff" * 50
    path.write_bytes(content)
    result = read(path)
    assert [row["id"] for row in result.rows] == [str(i) for i in [*range(100), *range(200, 300)]]
    assert result.locations == [("rows 100 to 199", "unreadable")]


def test_a_missing_column_is_an_error_that_lists_the_columns(read, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["one"], "n": [1]}), path)
    with pytest.raises(InputError, match="has no column 'text'; it has content, n"):
        read(path)
    with pytest.raises(InputError, match="has no column 'key'; it has content, n"):
        read(path, text_column="content", id_column="key")
    with pytest.raises(InputError, match="'n' holds int64, not text"):
        read(path, text_column="n")
