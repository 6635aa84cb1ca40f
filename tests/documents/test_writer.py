import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents import writer as writer_module
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import base, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.writer import ShardWriter


@pytest.fixture
def small_batches():
    """Each document is a batch of its own and each batch a row group: the schema widens as late as it can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BATCH_ROWS", 1)
        patch.setattr(writer_module, "ROW_GROUP_BYTES", 1)
        yield


def through_a_shard(rows: list[dict], directory: Path) -> pa.Table:
    """Rows as JSON lines, read in batches, written to one shard and read again."""
    source = SourceConfig(paths=[str(directory / "in.jsonl")])
    Path(source.paths[0]).write_text("".join(json.dumps({"text": "t", **row}) + "\n" for row in rows))
    [shard] = list_shards(source)[0]
    with ShardWriter(directory / "out.parquet") as writer:
        for table in read_shard(shard, source, RejectsLog()):
            writer.write(table)
    assert writer.rows == len(rows)
    assert sorted(path.name for path in directory.iterdir()) == ["in.jsonl", "out.parquet"]
    return pq.read_table(directory / "out.parquet")


SPREADS = {
    "integers, then fractions": ([1, 2.5], [1.0, 2.5]),
    "nothing, then objects": ([None, {"n": 1}], [None, {"n": 1}]),
    "objects, then other objects": ([{"n": 1}, {"m": "x"}], [{"n": 1, "m": None}, {"n": None, "m": "x"}]),
    "empty lists, then texts": ([[], ["a"]], [[], ["a"]]),
    "lists of objects that differ": ([[{"n": 1}], [{"m": 2}]], [[{"n": 1, "m": None}], [{"n": None, "m": 2}]]),
    "numbers, then text": ([1, "one", 2.5, None], ["1", "one", "2.5", None]),
    "text, then objects": (["one", {"n": [1]}], ["one", '{"n": [1]}']),
    "truth, then numbers": ([True, 3], ["true", "3"]),
    "objects whose fields clash": ([{"n": 1}, {"n": "one"}], ['{"n": 1}', '{"n": "one"}']),
    "only empty objects": ([{}, {}], ["{}", "{}"]),
    "empty objects within": ([[{}], {"n": {}}], ["[{}]", '{"n": {}}']),
    "empty objects, then full ones": ([{}, {"n": 1}], ["{}", '{"n": 1}']),
    "integers beyond 64 bits": ([1, 2**70], ["1", str(2**70)]),
    "integers that a float rounds": ([2**53 + 1, 0.5], [float(2**53), 0.5]),
}


@pytest.mark.parametrize("spread", SPREADS)
def test_no_value_is_lost_when_a_type_changes_after_a_flush(small_batches, tmp_path, spread):
    values, expected = SPREADS[spread]
    assert through_a_shard([{"v": v} for v in values], tmp_path)["v"].to_pylist() == expected


def test_a_column_that_appears_later_is_null_before(small_batches, tmp_path):
    table = through_a_shard([{"a": 1}, {"b": "x"}, {"a": 2, "c": [1]}], tmp_path)
    assert table.drop_columns(["id", "text"]).to_pylist() == [
        {"a": 1, "b": None, "c": None},
        {"a": None, "b": "x", "c": None},
        {"a": 2, "b": None, "c": [1]},
    ]


def test_types_may_change_before_the_first_flush(tmp_path):
    values, expected = SPREADS["numbers, then text"]
    assert through_a_shard([{"v": v} for v in values], tmp_path)["v"].to_pylist() == expected


EXACT = 2**53
SCALAR = st.none() | st.booleans() | st.integers(-EXACT, EXACT) | st.floats(allow_nan=False, allow_infinity=False)
VALUE = SCALAR | st.text(st.characters(codec="utf-8")) | st.lists(st.integers(-EXACT, EXACT) | st.text("ab"))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from("vw"), VALUE), min_size=1, max_size=5), at_once=st.integers(1, 3))
def test_each_json_value_is_read_back_unchanged_or_as_json_text(rows, at_once):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(base, "BATCH_ROWS", at_once)
        patch.setattr(writer_module, "ROW_GROUP_BYTES", 1)
        table = through_a_shard(rows, Path(directory))
    for before, after in zip(rows, table.to_pylist(), strict=True):
        for name in before:
            value, result = before[name], after[name]
            assert result == value or json.loads(result) == value


def test_a_shard_is_rewritten_only_for_a_wider_schema(small_batches, tmp_path):
    opened = []
    with ShardWriter(tmp_path / "out.parquet") as writer:
        for value in [1, 0.5, 2, 3, 0.25, 4]:
            writer.write(pa.table({"v": [value]}))
            opened.append(writer._writer)
    assert len({id(w) for w in opened}) == 2
    assert pq.read_table(tmp_path / "out.parquet")["v"].to_pylist() == [1, 0.5, 2, 3, 0.25, 4]


def test_a_shard_that_fails_leaves_no_file(tmp_path):
    def write_and_fail() -> None:
        with ShardWriter(tmp_path / "out.parquet") as writer:
            writer.write(pa.table({"v": [1]}))
            raise RuntimeError("the disk burns")

    with pytest.raises(RuntimeError, match="the disk burns"):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []
