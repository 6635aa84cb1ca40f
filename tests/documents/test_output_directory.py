import hashlib
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import ShardResult
from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from tests.kills import Killed, kill_at


def finished(path, config: dict | None = None, parents: list[Parent] | None = None) -> Manifest:
    """A run that writes two shards of one document each, or the finished run of an earlier call."""
    with OutputDirectory(path, "documents", config or {}, parents or []) as out:
        if out.manifest:
            return out.manifest
        results = [(name, out.finished_shard(name) or write_shard(out, name)) for name in ("a", "b")]
        return out.finish(results, {"extra": 5})


def write_shard(out: OutputDirectory, name: str) -> ShardResult:
    with out.new_shard(name) as writer, out.new_rejects(name) as rejects:
        writer.write(pa.table({"id": [name], "text": ["one"]}))
        rejects.add("corpus", f"line of {name}", "empty_text")
    return out.commit(name, writer, rejects, {"read": 1})


def test_a_finished_run_has_shards_rejects_and_a_manifest_with_their_digests(tmp_path):
    manifest = finished(tmp_path / "out")
    names = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(names) == [".lock", "manifest.json", "rejects.jsonl", "shards/a.parquet", "shards/b.parquet"]
    content = (tmp_path / "out" / "shards" / "a.parquet").read_bytes()
    shard = manifest.shards[0]
    assert (shard.rows, shard.bytes, shard.digest) == (1, len(content), hashlib.sha256(content).hexdigest())
    assert manifest.counts == {"read": 2, "rejected": 2, "rejected_empty_text": 2, "extra": 5}
    assert find_manifest(str(tmp_path / "out")) == manifest


def test_a_url_gets_the_same_files_as_a_directory(tmp_path):
    at_url, local = finished("memory://finished"), finished(tmp_path / "out")
    assert at_url.digest == local.digest
    memory = fsspec.filesystem("memory")
    assert memory.find("/finished") == [
        "/finished/manifest.json",
        "/finished/rejects.jsonl",
        "/finished/shards/a.parquet",
        "/finished/shards/b.parquet",
    ]
    assert memory.cat("/finished/shards/a.parquet") == (tmp_path / "out" / "shards" / "a.parquet").read_bytes()


@pytest.mark.parametrize(
    ("url", "says"), [("foo://x/out", "Protocol not known: foo"), ("oss://bucket/out", "Install ossfs")]
)
def test_a_url_without_a_driver_is_an_error(url, says):
    with pytest.raises(InputError, match=f"{url}: {says}"):
        OutputDirectory(url, "documents", {}, [])
    with pytest.raises(InputError, match=f"{url}: {says}"):
        list_shards(SourceConfig(paths=[url]))
    with pytest.raises(InputError, match=f"{url}/manifest.json: {says}"):
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


def test_finished_shards_are_listed_once_and_only_those_are_read():
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


@pytest.mark.slow
def test_temporary_files_of_a_killed_writer_to_a_url_are_deleted_and_those_of_a_running_one_kept(tmp_path, monkeypatch):
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


COMMIT_POINTS = [r"\.progress/run\.json", r"shards/b\.parquet", r"\.progress/b\.json", "rejects.jsonl", "manifest.json"]


@pytest.mark.parametrize("file", COMMIT_POINTS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_killed_at_any_commit_point_gives_the_same_bytes_when_it_is_run_again(tmp_path, when, file):
    undisturbed = finished(tmp_path / "undisturbed")
    with pytest.raises(Killed), kill_at(when, file):
        finished(tmp_path / "killed")
    is_complete = (when, file) == ("after", "manifest.json")
    assert (find_manifest(tmp_path / "killed") is not None) == is_complete
    assert finished(tmp_path / "killed").digest == undisturbed.digest
    for name in ("shards/a.parquet", "shards/b.parquet", "rejects.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert not (tmp_path / "killed/.progress").exists()


def test_a_finished_shard_is_not_written_again(tmp_path):
    with pytest.raises(Killed), kill_at("before", r"shards/b\.parquet"):
        finished(tmp_path / "out")
    before = (tmp_path / "out/shards/a.parquet").stat().st_mtime_ns
    finished(tmp_path / "out")
    assert (tmp_path / "out/shards/a.parquet").stat().st_mtime_ns == before


def test_a_finished_run_is_returned_without_work(tmp_path):
    first = finished(tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert finished(tmp_path / "out") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }


def test_what_a_kill_after_the_manifest_leaves_is_deleted_by_the_next_run(tmp_path):
    first = finished(tmp_path / "out")
    (tmp_path / "out" / ".progress" / "scratch").mkdir(parents=True)
    assert finished(tmp_path / "out") == first
    assert not (tmp_path / "out" / ".progress").exists()


@pytest.mark.parametrize("other", [{"config": {"seed": 2}}, {"parents": [Parent(path="corpus", digest="changed")]}])
def test_a_directory_with_different_settings_or_input_is_refused(tmp_path, other):
    finished(tmp_path / "out")
    with pytest.raises(InputError, match="already contains a finished run with different settings or input"):
        finished(tmp_path / "out", **other)
    with OutputDirectory(tmp_path / "unfinished", "documents", {}, []):
        pass
    with pytest.raises(InputError, match="contains an unfinished run with different settings or input"):
        finished(tmp_path / "unfinished", **other)


def test_digest_in_the_path_gives_each_setting_its_own_directory(tmp_path):
    one, other = (finished(tmp_path / "out-{digest}", {"seed": seed}) for seed in (1, 2))
    assert one.root != other.root
    assert one.root == str(tmp_path / f"out-{one.config_digest[:8]}")
    assert finished(tmp_path / "out-{digest}", {"seed": 1}) == one


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path):
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


@pytest.mark.slow
def test_a_second_writer_is_refused_while_the_first_is_alive(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="is being written by another process"):
            finished(tmp_path / "out")
        holder.kill()
    assert finished(tmp_path / "out").rows == 2
