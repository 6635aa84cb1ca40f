import os

import fsspec
import pyarrow as pa
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards, shard_state
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


def test_readable_files_below_a_directory_are_listed_in_order(corpus):
    shards = shards_of(corpus)
    assert [(shard.name, shard.format) for shard in shards] == [
        ("00000-a", "jsonl"),
        ("00001-b", "parquet"),
        ("00002-c", "warc"),
        ("00003-d", "warc"),
        ("00004-e", "jsonl"),
    ]
    assert {shard.size for shard in shards} == {1}


def test_hidden_files_and_directories_are_skipped(corpus):
    (corpus / ".cache").mkdir()
    (corpus / ".cache" / "x.jsonl").write_bytes(b"")
    (corpus / ".y.jsonl").write_bytes(b"")
    assert len(shards_of(corpus)) == 5


def test_a_hidden_directory_that_is_named_is_read(tmp_path):
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "x.jsonl").write_bytes(b"")
    assert [shard.name for shard in shards_of(tmp_path / ".data")] == ["00000-x"]


def test_matches_of_a_glob_are_listed_in_order(corpus):
    assert [shard.name for shard in shards_of(corpus / "*.n*", corpus / "**" / "*.gz")] == [
        "00000-e",
        "00001-c",
        "00002-d",
    ]


def test_files_of_the_same_name_get_different_shard_names(tmp_path):
    for directory in ("x", "y"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "part.jsonl").write_bytes(b"")
    assert [shard.name for shard in shards_of(tmp_path / "x", tmp_path / "y")] == ["00000-part", "00001-part"]


def test_a_file_name_may_contain_glob_characters(tmp_path):
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
def test_a_path_without_readable_files_is_an_error(corpus, source, message):
    (corpus / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        shards_of(corpus / source)


def test_an_unknown_protocol_is_an_error():
    with pytest.raises(InputError, match="carrier-pigeon"):
        shards_of("carrier-pigeon://x/a.jsonl")


def test_the_digest_of_a_source_changes_only_with_a_file(corpus):
    before = pin_of(corpus)
    assert pin_of(corpus) == before
    os.utime(corpus / "e.ndjson", (1, 1))
    touched = pin_of(corpus)
    (corpus / "f.jsonl").write_bytes(b"")
    assert len({*before, *touched, *pin_of(corpus)}) == 3


def test_only_the_shards_of_an_output_directory_are_listed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nbroken')
    manifest = sample_documents(SourceConfig(paths=[str(tmp_path / "a.jsonl")]), SampleConfig(size=1), tmp_path / "out")
    assert [shard.uri for shard in shards_of(tmp_path / "out")] == manifest.shard_paths()
    assert pin_of(tmp_path / "out") == [manifest.digest]


def test_an_unfinished_output_directory_is_an_error(tmp_path):
    with OutputDirectory(tmp_path / "out", "documents", {}, []) as out, out.new_rejects("a") as rejects:
        with out.new_shard("a") as writer:
            writer.write(pa.table({"id": ["1"], "text": ["one"]}))
        out.commit("a", writer, rejects, {"read": 1})
    with pytest.raises(InputError, match="contains an unfinished run"):
        shards_of(tmp_path / "out")


def test_a_state_changes_with_the_shard_and_is_none_without_its_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    [shard] = shards_of(path)
    before = shard_state(shard)
    path.write_text("{} {}")
    assert shard_state(shard) not in (before, None)
    path.unlink()
    assert shard_state(shard) is None
    installed, hub = InputShard("installed:", "installed"), InputShard("hf://datasets/a/b@c", "hub")
    assert shard_state(installed) == shard_state(installed) != shard_state(hub)


def test_a_dangling_link_is_listed_for_its_reader_to_report(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    assert [shard.name for shard in shards_of(tmp_path)] == ["00000-a"]
