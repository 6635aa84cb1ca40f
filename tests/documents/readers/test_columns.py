"""Types of columns: whatever can be text is read, and everything else is carried along."""

import struct
import uuid
from datetime import date
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import text_id
from ml_filter.errors import InputError
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents

TEXTS = ["one", "zwei ß", None]
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_binary()),
    pa.dictionary(pa.int32(), pa.string_view()),
]


def write_arrow(table, path, stream):
    writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with writer(str(path), table.schema) as file:
        file.write_table(table)


def array(values, kind):
    if pa.types.is_dictionary(kind):
        indices = pa.array([None if v is None else i for i, v in enumerate(values)], kind.index_type)
        return pa.DictionaryArray.from_arrays(indices, array([v or "" for v in values], kind.value_type))
    if any(check(kind) for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)):
        values = [v if v is None or isinstance(v, bytes) else v.encode() for v in values]
    return pa.array(values, kind)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_every_type_of_text_is_read(read, tmp_path, kind, stream):
    write_arrow(pa.table({"text": array(TEXTS, kind)}), tmp_path / "a.arrow", stream)
    result = read(tmp_path / "a.arrow")
    assert (result.texts, result.locations) == (["one", "zwei ß"], [("row 2", "missing_text")])
    assert result.table["text"].type == pa.string()


@pytest.mark.parametrize("column", [pa.array([1]), pa.array([["a"]]), pa.array([{"a": 1}])])
def test_a_column_that_is_not_text_is_an_error_with_its_type(read, tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'text' holds .*, not text"):
        read(tmp_path / "a.parquet")


def test_bytes_that_are_not_utf_8_reject_their_row(read, tmp_path):
    pq.write_table(pa.table({"text": [b"one", b"\xff"]}), tmp_path / "a.parquet")
    assert (read(tmp_path / "a.parquet").texts, read(tmp_path / "a.parquet").reasons) == (["one"], ["invalid_utf8"])


UUID = uuid.UUID(int=2**100)
IDS = [
    (pa.array([7, None]), "7"),
    (pa.array([Decimal("1.50"), None]), "1.50"),
    (pa.array([2.0, float("nan")]), "2"),
    (pa.array(["", "x"]).slice(0, 1), None),
    (pa.array([UUID.bytes], pa.uuid()), str(UUID)),
    (pa.array([UUID.bytes], pa.binary(16)), UUID.hex),
    (pa.array([b"\xff\x00"]), "ff00"),
    (pa.array([b"key-1"]), "key-1"),
    (pa.array(["k"]).dictionary_encode(), "k"),
    (pa.array([True]), "true"),
    (pa.array([date(2024, 5, 1)]), "2024-05-01"),
    (pa.array([["a", 1]] if False else [["a", "b"]]), '["a", "b"]'),
    (pa.array(["k"], pa.string_view()), "k"),
    (pa.array([None]), None),
]


@pytest.mark.parametrize(("ids", "expected"), IDS, ids=[f"{ids.type} {number}" for number, (ids, _) in enumerate(IDS)])
def test_ids_of_any_type_are_text(read, tmp_path, ids, expected):
    pq.write_table(pa.table({"id": ids, "text": ["one", "two"][: len(ids)]}), tmp_path / "a.parquet")
    result = read(tmp_path / "a.parquet")
    assert result.rows[0]["id"] == (text_id("one") if expected is None else expected)
    assert [row["id"] for row in result.rows[1:]] == [text_id("two")] * (len(ids) - 1)
    assert result.rejects == []


ODD_COLUMNS = {
    "string_view": pa.array(["u", None], pa.string_view()),
    "binary_view": pa.array([b"u", None], pa.binary_view()),
    "list of views": pa.array([["u"], None], pa.list_(pa.string_view())),
    "struct of views": pa.array([{"a": "u"}, None], pa.struct([("a", pa.string_view())])),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["u"])),
    "struct without fields": pa.array([{}, None], pa.struct([])),
    "union": pa.UnionArray.from_dense(
        pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([1]), pa.array(["x"])]
    ),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None]),
    "uuid": pa.array([UUID.bytes, None], pa.uuid()),
    "dictionary of lists": pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int8()), pa.array([[1]])),
}


@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_columns_of_any_type_reach_the_sample(tmp_path, name):
    table = pa.table({"id": ["a", "b"], "text": ["one", " "], "other": ODD_COLUMNS[name]})
    write_arrow(table, tmp_path / "a.arrow", stream=True)
    manifest = sample_documents(SourceConfig(paths=[str(tmp_path / "a.arrow")]), SampleConfig(size=3), tmp_path / "out")
    assert manifest.counts["sampled"] == manifest.counts["rejected_empty_text"] == 1
    [row] = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    assert row["other"] is not None


def test_a_duplicate_column_is_an_error_that_names_it(read, tmp_path):
    table = pa.Table.from_arrays([pa.array(["one"])] * 3, names=["text", "meta", "meta"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has several columns named 'meta'; rename them"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("blank", [[" "], [None, ""]])
def test_a_batch_of_blank_rows_only_is_rejected_and_the_others_are_sampled(tmp_path, blank):
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(1000)] + blank}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array(blank, pa.string())}), tmp_path / "b.parquet")
    manifest = sample_documents(SourceConfig(paths=[str(tmp_path)]), SampleConfig(size=5), tmp_path / "out")
    assert (manifest.counts["read"], manifest.counts["rejected"]) == (1000, 2 * len(blank))


def test_an_arrow_file_that_is_cut_off_gives_the_batches_before(read, tmp_path):
    table = pa.table({"id": ["a", "b"], "text": ["one", "two"]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=1)
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[: len(content) - 60])
    result = read(tmp_path / "a.arrow")
    assert (result.texts, result.reasons) == (["one"], ["truncated"])


def test_wrong_offsets_in_an_arrow_file_are_damage_and_no_crash(read, tmp_path):
    offsets = pa.py_buffer(struct.pack("<3i", 0, 2**30, 3))
    texts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"onetwo"))
    write_arrow(pa.table({"text": texts}), tmp_path / "a.arrow", stream=True)
    result = read(tmp_path / "a.arrow")
    assert (result.rows, result.reasons) == ([], ["truncated"])


def test_invalid_text_in_any_column_rejects_its_row(read, tmp_path):
    urls = pa.array([b"http://a", b"\xff"]).cast(pa.binary())
    urls = pa.StringArray.from_buffers(2, urls.buffers()[1], urls.buffers()[2])
    pq.write_table(pa.table({"text": ["one", "two"], "url": urls}), tmp_path / "a.parquet")
    result = read(tmp_path / "a.parquet")
    assert (result.texts, result.locations) == (["one"], [("row 1", "invalid_utf8")])
    assert "column 'url'" in result.rejects[0]["detail"]
