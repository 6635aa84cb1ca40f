import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents import writer as writer_module
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import base, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.writer import ShardWriter
from ml_filter.errors import InputError


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


# --- Shards whose schema grows ---------------------------------------------------------------------------------------

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
def test_a_column_whose_types_change_after_a_flush_keeps_every_value(small_batches, tmp_path, spread):
    values, expected = SPREADS[spread]
    assert through_a_shard([{"v": v} for v in values], tmp_path)["v"].to_pylist() == expected


def test_columns_that_appear_later_are_null_before(small_batches, tmp_path):
    table = through_a_shard([{"a": 1}, {"b": "x"}, {"a": 2, "c": [1]}], tmp_path)
    assert table.drop_columns(["id", "text"]).to_pylist() == [
        {"a": 1, "b": None, "c": None},
        {"a": None, "b": "x", "c": None},
        {"a": 2, "b": None, "c": [1]},
    ]


def test_types_that_change_before_the_first_flush_give_the_same(tmp_path):
    values, expected = SPREADS["numbers, then text"]
    assert through_a_shard([{"v": v} for v in values], tmp_path)["v"].to_pylist() == expected


EXACT = 2**53
SCALAR = st.none() | st.booleans() | st.integers(-EXACT, EXACT) | st.floats(allow_nan=False, allow_infinity=False)
VALUE = SCALAR | st.text(st.characters(codec="utf-8")) | st.lists(st.integers(-EXACT, EXACT) | st.text("ab"))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from("vw"), VALUE), min_size=1, max_size=5), at_once=st.integers(1, 3))
def test_whatever_json_holds_each_value_comes_back_or_as_its_json_text(rows, at_once):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(base, "BATCH_ROWS", at_once)
        patch.setattr(writer_module, "ROW_GROUP_BYTES", 1)
        table = through_a_shard(rows, Path(directory))
    for before, after in zip(rows, table.to_pylist(), strict=True):
        for name in before:
            value, found = before[name], after[name]
            assert found == value or json.loads(found) == value


def test_a_shard_that_does_not_need_a_wider_schema_is_not_written_again(small_batches, tmp_path):
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


# --- Output directories ----------------------------------------------------------------------------------------------


def finished(path, config: dict | None = None, parents: list[Parent] | None = None) -> Manifest:
    with OutputDirectory(path, "documents", config or {}, parents or []) as out:
        if out.manifest:
            return out.manifest
        with out.new_shard("a") as writer, out.new_rejects("a") as rejects:
            writer.write(pa.table({"id": ["1"], "text": ["one"]}))
            rejects.add("corpus", "line 2", "empty_text")
        return out.finish([("a", out.commit("a", writer, rejects, {"read": 1}))], {"extra": 5})


def test_a_finished_run_holds_shards_rejects_and_a_manifest_that_pins_them(tmp_path):
    manifest = finished(tmp_path / "out")
    names = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(names) == [".lock", "manifest.json", "rejects.jsonl", "shards/a.parquet"]
    content = (tmp_path / "out" / "shards" / "a.parquet").read_bytes()
    [shard] = manifest.shards
    assert (shard.rows, shard.bytes, shard.digest) == (1, len(content), hashlib.sha256(content).hexdigest())
    assert manifest.counts == {"read": 1, "rejected": 1, "rejected_empty_text": 1, "extra": 5}
    assert find_manifest(str(tmp_path / "out")) == manifest


def test_a_url_holds_the_same_as_a_directory(tmp_path):
    at_url, local = finished("memory://finished"), finished(tmp_path / "out")
    assert at_url.digest == local.digest
    memory = fsspec.filesystem("memory")
    assert memory.find("/finished") == [
        "/finished/manifest.json",
        "/finished/rejects.jsonl",
        "/finished/shards/a.parquet",
    ]
    assert memory.cat("/finished/shards/a.parquet") == (tmp_path / "out" / "shards" / "a.parquet").read_bytes()


@pytest.mark.parametrize(
    ("url", "says"), [("foo://x/out", "Protocol not known: foo"), ("oss://bucket/out", "Install ossfs")]
)
def test_a_url_whose_driver_is_not_there_is_named(url, says):
    with pytest.raises(InputError, match=f"{url}: {says}"):
        OutputDirectory(url, "documents", {}, [])
    with pytest.raises(InputError, match=f"{url}: {says}"):
        list_shards(SourceConfig(paths=[url]))
    with pytest.raises(InputError, match=f"{url}: {says}"):
        find_manifest(url)


class CountingMemory(MemoryFileSystem):
    """An object store that counts what it is asked for."""

    cachable = False
    asked: ClassVar[Counter] = Counter()

    def ls(self, path, *args, **kwargs):
        self.asked["ls"] += 1
        return super().ls(path, *args, **kwargs)

    def cat_file(self, path, *args, **kwargs):
        self.asked["get"] += 1
        return super().cat_file(path, *args, **kwargs)


def test_what_is_done_of_many_shards_is_listed_once_and_only_that_is_read():
    names = [f"{number:05d}" for number in range(100)]
    with OutputDirectory("memory://many", "documents", {}, []) as out:
        for name in names[:3]:
            out.record_failure(name, "corpus", f"reason {name}")
        out.fs = CountingMemory()
        done = out.finished_shards(names)
    assert {name: result.failed.reason for name, result in done.items()} == {n: f"reason {n}" for n in names[:3]}
    assert CountingMemory.asked == {"ls": 1, "get": 3}
    assert out.finished_shard(names[0]) == done[names[0]]
    assert out.finished_shard(names[3]) is None
    out.fs.rm("/many", recursive=True)
    assert out.finished_shards(names) == {}


ABANDONED = """
import os, signal, sys
import pyarrow as pa
from ml_filter.documents.output_directory import OutputDirectory
with OutputDirectory("memory://out", "documents", {}, []) as out, out.new_shard("a") as writer:
    writer.write(pa.table({"id": ["1"]}))
    print(out.scratch, flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if "killed" in sys.argv else sys.stdin.read()
"""


def test_what_a_killed_writer_to_a_url_left_half_made_is_deleted_by_the_next_and_that_of_a_living_one_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    command, pipe = [sys.executable, "-c", ABANDONED], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as living:
        kept = Path(living.stdout.readline().strip())
        killed = subprocess.run([*command, "killed"], stdout=pipe, text=True, check=False)
        left = Path(killed.stdout.strip())
        assert (left.parent, left.exists()) == (tmp_path, True)
        finished("memory://swept")
        assert (left.exists(), kept.exists()) == (False, True)
        living.communicate("")
    assert list(tmp_path.glob("ml_filter-*")) == []
    fsspec.filesystem("memory").rm("/swept", recursive=True)


def test_the_manifest_comes_last(tmp_path):
    out = OutputDirectory(tmp_path / "out", "documents", {}, [])
    with out:
        with out.new_shard("a") as writer, out.new_rejects("a") as rejects:
            writer.write(pa.table({"id": ["1"]}))
        result = out.commit("a", writer, rejects, {})
        assert find_manifest(str(tmp_path / "out")) is None
        out.finish([("a", result)])
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert max(made, key=made.__getitem__) == "manifest.json"


def test_a_finished_run_is_returned_without_work(tmp_path):
    first = finished(tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert finished(tmp_path / "out") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }


def test_a_run_that_was_killed_after_its_manifest_is_tidied_up_by_the_next(tmp_path):
    first = finished(tmp_path / "out")
    (tmp_path / "out" / ".progress" / "scratch").mkdir(parents=True)
    assert finished(tmp_path / "out") == first
    assert not (tmp_path / "out" / ".progress").exists()


@pytest.mark.parametrize("other", [{"config": {"seed": 2}}, {"parents": [Parent(path="corpus", digest="changed")]}])
def test_a_directory_of_other_settings_or_input_is_refused(tmp_path, other):
    finished(tmp_path / "out")
    with pytest.raises(InputError, match="already contains a finished run with different settings or input"):
        finished(tmp_path / "out", **other)
    with OutputDirectory(tmp_path / "unfinished", "documents", {}, []):
        pass
    with pytest.raises(InputError, match="contains an unfinished run with different settings or input"):
        finished(tmp_path / "unfinished", **other)


def test_a_digest_in_the_path_gives_other_settings_another_directory(tmp_path):
    one, other = (finished(tmp_path / "out-{digest}", {"seed": seed}) for seed in (1, 2))
    assert one.root != other.root
    assert one.root == str(tmp_path / f"out-{one.config_digest[:8]}")
    assert finished(tmp_path / "out-{digest}", {"seed": 1}) == one


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot be a directory"):
        finished(tmp_path / "out")


HOLD = """
import sys
from ml_filter.documents.output_directory import OutputDirectory
with OutputDirectory(sys.argv[1], "documents", {}, []):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="is being written by another process"):
            finished(tmp_path / "out")
        holder.kill()
    assert finished(tmp_path / "out").rows == 1
