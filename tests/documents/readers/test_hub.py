import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.readers.hub import open_data_set
from ml_filter.documents.rejects import RejectsLog
from ml_filter.errors import InputError


@pytest.fixture
def data_set(tmp_path):
    """A directory in the layout of a Hub data set: two files of one split, and another subset."""
    root = tmp_path / "data_set"
    for name in ("main", "other"):
        (root / name).mkdir(parents=True)
    for part in range(2):
        rows = [{"id": f"{part}-{i}", "content": f"text {part} {i}", "meta": {"n": i}} for i in range(3)]
        pq.write_table(pa.Table.from_pylist(rows), root / "main" / f"train-0000{part}-of-00002.parquet")
    pq.write_table(pa.table({"id": ["o"], "content": ["other"]}), root / "other" / "train.parquet")
    (root / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: main\n  default: true\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "- config_name: other\n  data_files:\n  - split: train\n    path: other/*\n---\n"
    )
    return root


def read_hub(root, part=(0, 1), **options) -> list[dict]:
    source = SourceConfig(text_column="content", **options)
    shard = InputShard(f"hf://datasets/{root}", "hub", "name", part=part)
    return [row for table in read_shard(shard, source, RejectsLog()) for row in table.to_pylist()]


def test_a_data_set_in_hub_layout_is_streamed_with_its_columns(data_set):
    assert read_hub(data_set)[4] == {"id": "1-1", "text": "text 1 1", "meta": {"n": 1}}
    assert [row["text"] for row in read_hub(data_set, subset="other")] == ["other"]


def test_each_shard_of_a_data_set_has_its_own_rows(data_set):
    assert open_data_set(str(data_set), None, SourceConfig()).num_shards == 2
    first, second = (read_hub(data_set, part=(number, 2)) for number in range(2))
    assert [row["id"] for row in first] == ["0-0", "0-1", "0-2"]
    assert [row["id"] for row in second] == ["1-0", "1-1", "1-2"]


def test_a_missing_split_subset_or_data_set_is_an_error(data_set, tmp_path):
    for options, message in [({"split": "dev"}, "dev"), ({"subset": "third"}, "third")]:
        with pytest.raises(InputError, match=message):
            open_data_set(str(data_set), None, SourceConfig(**options))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="hf://datasets/"):
        open_data_set(str(tmp_path / "bare"), None, SourceConfig())
