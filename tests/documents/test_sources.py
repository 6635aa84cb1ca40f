import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.readers.hub import open_data_set
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents


def shards_of(*paths) -> list[InputShard]:
    return list_shards(SourceConfig(paths=[str(path) for path in paths]))[0]


def pin_of(*paths) -> list[str]:
    return [parent.digest for parent in list_shards(SourceConfig(paths=[str(path) for path in paths]))[1]]


@pytest.fixture
def corpus(tmp_path):
    directory = tmp_path / "corpus"
    (directory / "deeper").mkdir(parents=True)
    for name in ("b.parquet", "a.jsonl.zst", "deeper/c.warc.gz", "deeper/d.warc.wet.gz", "e.ndjson", "readme.md"):
        (directory / name).write_bytes(b"x")
    return directory


def test_a_directory_gives_the_readable_files_below_it_in_order(corpus):
    shards = shards_of(corpus)
    assert [(shard.name, shard.format) for shard in shards] == [
        ("00000-a", "jsonl"),
        ("00001-b", "parquet"),
        ("00002-c", "warc"),
        ("00003-d", "warc"),
        ("00004-e", "jsonl"),
    ]
    assert {shard.size for shard in shards} == {1}


def test_hidden_files_and_directories_are_passed_over(corpus):
    (corpus / ".cache").mkdir()
    (corpus / ".cache" / "x.jsonl").write_bytes(b"")
    (corpus / ".y.jsonl").write_bytes(b"")
    assert len(shards_of(corpus)) == 5


def test_a_hidden_directory_that_is_named_is_read(tmp_path):
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "x.jsonl").write_bytes(b"")
    assert [shard.name for shard in shards_of(tmp_path / ".data")] == ["00000-x"]


def test_a_glob_gives_what_it_matches_in_order(corpus):
    assert [shard.name for shard in shards_of(corpus / "*.n*", corpus / "**" / "*.gz")] == [
        "00000-e",
        "00001-c",
        "00002-d",
    ]


def test_the_same_name_in_two_directories_makes_two_shard_names(tmp_path):
    for directory in ("x", "y"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "part.jsonl").write_bytes(b"")
    assert [shard.name for shard in shards_of(tmp_path / "x", tmp_path / "y")] == ["00000-part", "00001-part"]


def test_files_whose_names_hold_glob_signs_are_read(tmp_path):
    path = tmp_path / "part[1].jsonl"
    path.write_text('{"text": "one"}')
    [shard] = shards_of(path)
    [table] = read_shard(shard, SourceConfig(), RejectsLog())
    assert table["text"].to_pylist() == ["one"]


def test_urls_are_listed_like_paths():
    memory = fsspec.filesystem("memory")
    memory.pipe("/listed/b.jsonl", b"")
    memory.pipe("/listed/a.parquet", b"12")
    for source in ("memory://listed", "memory://listed/*"):
        assert [shard.uri for shard in shards_of(source)] == ["memory:///listed/a.parquet", "memory:///listed/b.jsonl"]


def test_a_file_url_is_a_path(corpus):
    assert [shard.uri for shard in shards_of(f"file://{corpus}/e.ndjson")] == [f"file://{corpus}/e.ndjson"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("nowhere.jsonl", "does not exist"),
        ("*.jsonl", "matches no file"),
        ("readme.md", "unknown format; known endings are .parquet"),
        ("empty", "contains no readable file"),
    ],
)
def test_what_cannot_be_read_is_said_clearly(corpus, source, message):
    (corpus / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        shards_of(corpus / source)


def test_an_unknown_protocol_is_said_clearly():
    with pytest.raises(InputError, match="carrier-pigeon"):
        shards_of("carrier-pigeon://x/a.jsonl")


def test_the_pin_changes_with_a_file_and_only_then(corpus):
    before = pin_of(corpus)
    assert pin_of(corpus) == before
    os.utime(corpus / "e.ndjson", (1, 1))
    touched = pin_of(corpus)
    (corpus / "f.jsonl").write_bytes(b"")
    assert len({*before, *touched, *pin_of(corpus)}) == 3


def test_an_output_directory_gives_its_shards_and_nothing_else_of_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nbroken')
    manifest = sample_documents(SourceConfig(paths=[str(tmp_path / "a.jsonl")]), SampleConfig(size=1), tmp_path / "out")
    assert [shard.uri for shard in shards_of(tmp_path / "out")] == manifest.shard_paths()
    assert pin_of(tmp_path / "out") == [manifest.digest]


def test_an_unfinished_output_directory_is_no_source(tmp_path):
    with OutputDirectory(tmp_path / "out", "documents", {}, []) as out, out.new_rejects("a") as rejects:
        with out.new_shard("a") as writer:
            writer.write(pa.table({"id": ["1"], "text": ["one"]}))
        out.commit("a", writer, rejects, {"read": 1})
    with pytest.raises(InputError, match="contains an unfinished run"):
        shards_of(tmp_path / "out")


# --- Hugging Face data sets ------------------------------------------------------------------------------------------


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


def test_the_shards_of_a_data_set_are_read_apart_and_lose_nothing(data_set):
    assert open_data_set(str(data_set), None, SourceConfig()).num_shards == 2
    first, second = (read_hub(data_set, part=(number, 2)) for number in range(2))
    assert [row["id"] for row in first] == ["0-0", "0-1", "0-2"]
    assert [row["id"] for row in second] == ["1-0", "1-1", "1-2"]


def test_a_split_subset_or_data_set_that_is_not_there_is_said_clearly(data_set, tmp_path):
    for options, message in [({"split": "dev"}, "dev"), ({"subset": "third"}, "third")]:
        with pytest.raises(InputError, match=message):
            open_data_set(str(data_set), None, SourceConfig(**options))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="hf://datasets/"):
        open_data_set(str(tmp_path / "bare"), None, SourceConfig())
