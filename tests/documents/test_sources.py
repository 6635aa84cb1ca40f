import json
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.prepare.config import DecontaminateConfig, SampleConfig
from ml_filter.prepare.decontaminate import decontaminate_documents
from ml_filter.prepare.sampling import sample_documents


def shards_of(*paths) -> list[InputShard]:
    return list_shards(SourceConfig(paths=[str(path) for path in paths]))[0]


def stems_of(*paths) -> list[str]:
    """The names of shards without the digest at their end."""
    return [shard.name[:-13] for shard in shards_of(*paths)]


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
    assert [(shard.name[:-13], shard.format) for shard in shards] == [
        ("a", "jsonl"),
        ("b", "parquet"),
        ("c", "warc"),
        ("d", "warc"),
        ("e", "jsonl"),
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
    assert stems_of(tmp_path / ".data") == ["x"]


def test_matches_of_a_glob_are_listed_in_order(corpus):
    assert stems_of(corpus / "*.n*", corpus / "**" / "*.gz") == ["e", "c", "d"]


# --- Names -----------------------------------------------------------------------------------------------------------


def write_files(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": f"{directory.name} {name}"}))


def names_of(*paths) -> dict[str, str]:
    """The name of each shard by the last two parts of its path."""
    return {"/".join(shard.uri.split("/")[-2:]): shard.name for shard in shards_of(*paths)}


def test_a_name_is_the_same_in_every_version_because_outputs_are_found_again_by_it(tmp_path):
    write_files(tmp_path, "part.jsonl", "sub/part.jsonl")
    assert [shard.name for shard in shards_of(tmp_path, tmp_path / "part.jsonl")] == [
        "part-612fcaef984e",
        "part-8c9d07f46035",
        "part-ba7ef71baf3f",
    ]


def test_new_files_do_not_change_the_names_of_others_wherever_they_sort(tmp_path):
    write_files(tmp_path / "corpus", "b.jsonl", "d.jsonl")
    before = names_of(tmp_path / "corpus")
    write_files(tmp_path / "corpus", "a.jsonl", "c.jsonl", "e.jsonl", "b/d.jsonl")
    after = names_of(tmp_path / "corpus")
    assert before.items() < after.items()
    assert len(set(after.values())) == len(after) == 6


def test_a_corpus_that_moved_or_is_matched_by_a_pattern_keeps_its_names(tmp_path):
    files = ("a.jsonl", "x/a.jsonl")
    write_files(tmp_path / "here", *files)
    write_files(tmp_path / "moved" / "there", *files)
    names = [shard.name for shard in shards_of(tmp_path / "here")]
    assert [shard.name for shard in shards_of(tmp_path / "moved" / "there")] == names
    assert [shard.name for shard in shards_of(f"{tmp_path}/moved/there/**/*.jsonl")] == names
    assert [shard.name for shard in shards_of(f"file://{tmp_path}/here/")] == names
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/bucket/{name}": b"{}" for name in files})
    assert [shard.name for shard in shards_of("memory://bucket")] == names
    memory.rm("/bucket", recursive=True)


def test_files_of_the_same_name_get_different_names_that_a_further_path_does_not_change(tmp_path):
    for directory in ("x", "y", "z"):
        write_files(tmp_path / directory, "part.jsonl")
    before = names_of(tmp_path / "x", tmp_path / "y")
    write_files(tmp_path / "x", "new.jsonl")
    after = names_of(tmp_path / "x", tmp_path / "y", tmp_path / "z", tmp_path / "x" / "new.jsonl")
    assert before.items() < after.items()
    assert len(set(after.values())) == len(after) == 4


def test_a_file_that_a_shell_adds_to_a_list_does_not_change_the_names_of_others(tmp_path):
    write_files(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl", "other/c.jsonl")
    before = names_of(tmp_path / "a.jsonl", tmp_path / "c.jsonl", tmp_path / "other" / "c.jsonl")
    after = names_of(*(tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "other/c.jsonl")))
    assert before.items() < after.items()
    assert len(set(after.values())) == 4


def test_the_shards_of_a_manifest_keep_their_names(tmp_path):
    write_files(tmp_path / "corpus", "a.jsonl", "b.jsonl")
    source = SourceConfig(paths=[str(tmp_path / "corpus")])
    decontaminated = DecontaminateConfig(against=[SourceConfig(paths=[str(tmp_path / "corpus" / "a.jsonl")])])
    manifest = decontaminate_documents(source, decontaminated, tmp_path / "out")
    names = [shard.name for shard in shards_of(tmp_path / "corpus")]
    [kept] = shards_of(tmp_path / "out")
    assert (kept.name, kept.state) == (names[1], manifest.shards[0].digest)
    twice = [shard.name for shard in shards_of(tmp_path / "out", tmp_path / "out")]
    assert twice[0] == names[1]
    assert twice[1].startswith("b-")
    assert len(twice[1]) == len(names[1])
    assert twice[1] != names[1]


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


def test_a_state_changes_with_the_file_alone(tmp_path):
    write_files(tmp_path, "a.jsonl", "b.jsonl")
    before = [shard.state for shard in shards_of(tmp_path)]
    (tmp_path / "b.jsonl").write_text('{"text": "another"}')
    write_files(tmp_path, "0.jsonl")
    _, *after = [shard.state for shard in shards_of(tmp_path)]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_a_dangling_link_is_listed_for_its_reader_to_report(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    assert stems_of(tmp_path) == ["a"]


# --- Layouts of other tools ------------------------------------------------------------------------------------------


def write_rows(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(texts)}), path)


def documents_at(*paths) -> list[dict]:
    source = SourceConfig(paths=[str(path) for path in paths])
    shards = list_shards(source)[0]
    return [row for shard in shards for table in read_shard(shard, source, RejectsLog()) for row in table.to_pylist()]


@pytest.mark.parametrize("name", ["a.JSONL", "a.Parquet", "a.warc.ZST", "a.jl", "a.csv.xz", "a.tsv.bz2", "a.wet.lz4"])
def test_endings_are_known_whatever_their_case(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert stems_of(tmp_path) == ["a"]


def test_what_spark_has_not_committed_is_not_read(tmp_path):
    write_rows(tmp_path / "part-0.parquet", "one")
    write_rows(tmp_path / "_temporary" / "0" / "part-1.parquet", "two")
    for name in ("_SUCCESS", ".part-0.parquet.crc", "_metadata"):
        (tmp_path / name).write_bytes(b"x")
    for path in (tmp_path, tmp_path / "*", tmp_path / "**" / "*.parquet"):
        assert [row["text"] for row in documents_at(path)] == ["one"]
    assert [row["text"] for row in documents_at(tmp_path / "_temporary" / "0" / "*")] == ["two"]


def test_files_without_an_ending_are_read_if_their_content_is_known(tmp_path):
    (tmp_path / "part-00000").write_text('{"text": "one"}')
    (tmp_path / "LICENSE").write_text("Apache")
    (tmp_path / "scan").write_bytes(b"%PDF-1.7")
    assert [row["text"] for row in documents_at(tmp_path)] == ["one"]
    assert [row["text"] for row in documents_at(tmp_path / "part-*")] == ["one"]
    with pytest.raises(InputError, match="LICENSE: unknown format"):
        shards_of(tmp_path / "*")


def test_a_glob_may_match_directories(tmp_path):
    write_rows(tmp_path / "x.parquet" / "part-0.parquet", "one")
    assert [row["text"] for row in documents_at(tmp_path / "*.parquet")] == ["one"]


def test_saved_data_sets_are_read_without_the_files_beside_the_data(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list([{"text": f"text {i}"} for i in range(20)])
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "train" / "cache-0123456789abcdef.arrow").write_bytes(b"x")
    assert len(documents_at(tmp_path / "saved" / "train")) == 20
    assert len(documents_at(tmp_path / "saved")) == 21


def test_directories_of_a_hive_partitioned_table_are_columns(tmp_path):
    write_rows(tmp_path / "language=de" / "source=a%2Fb%20c" / "part-0.parquet", "eins")
    write_rows(tmp_path / "language=__HIVE_DEFAULT_PARTITION__" / "source=x" / "part-0.parquet", "two")
    (tmp_path / "language=en" / "id=7" / "text=x").mkdir(parents=True)
    (tmp_path / "language=en" / "id=7" / "text=x" / "a.jsonl").write_text('{"text": "one", "language": "fr"}')
    for path in (tmp_path, tmp_path / "*" / "**"):
        rows = {row["text"]: row for row in documents_at(path)}
        assert (rows["eins"]["language"], rows["eins"]["source"]) == ("de", "a/b c")
        assert (rows["two"]["language"], rows["two"]["source"]) == (None, "x")
        assert (rows["one"]["language"], rows["one"]["input_id"], rows["one"]["input_text"]) == ("fr", "7", "x")
    manifest = sample_documents(
        SourceConfig(paths=[str(tmp_path)]), SampleConfig(size=3, by=["language"]), tmp_path / "out"
    )
    assert manifest.counts["sampled"] == 3


# --- Sources that cannot be reached ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://127.0.0.1:9/a.jsonl", r"http://127.0.0.1:9/a.jsonl cannot be reached .*; check the address"),
        ("http://127.0.0.1:9/*.jsonl", r"cannot be reached .*; check the address"),
        ("hdfs://namenode/a", r"hdfs://namenode/a cannot be reached .*; hdfs:// needs Java and Hadoop"),
        ("ftp://127.0.0.1:9/a.csv", r"cannot be reached .*; check the address"),
        ("OWNER/NAME", "does not exist; a data set of the Hugging Face Hub is named hf://datasets/OWNER/NAME"),
        ("squad", "does not exist; a data set of the Hugging Face Hub is named hf://datasets/squad"),
        (" ", "the path of a source is empty"),
    ],
)
def test_a_source_that_cannot_be_reached_is_one_line_with_the_way_out(source, message):
    with pytest.raises(InputError, match=message) as raised:
        shards_of(source)
    assert "\n" not in str(raised.value)


def test_a_data_set_of_the_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"hf://datasets/squad: .*Check the name, the network") as raised:
        shards_of("hf://datasets/squad")
    assert "\n" not in str(raised.value)


def test_a_name_of_the_greatest_length_is_cut_so_that_endings_fit(tmp_path):
    for last in "ab":
        (tmp_path / f"{'x' * 248}{last}.jsonl").write_text('{"text": "a"}\n')
    names = [shard.name for shard in list_shards(SourceConfig(paths=[str(tmp_path)]))[0]]
    assert len(set(names)) == 2
    assert all(len(f".{name}.rejects.jsonl.tmp") <= 255 for name in names)
