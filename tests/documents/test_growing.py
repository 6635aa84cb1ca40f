"""A directory that grows has the bytes of one that was made at once, whatever changes and whenever a run is killed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import Manifest, Parent, digest_of, find_manifest
from ml_filter.errors import InputError
from tests.kills import Killed

MEMORY = fsspec.filesystem("memory")
WRITES = ("pipe_file", "put_file", "cp_file", "rm_file", "rm")


@pytest.fixture(autouse=True)
def empty_store():
    yield
    MEMORY.store.clear()


def run(path: str, files: Mapping[str, str], made: list[str] | None = None, **more) -> Manifest:
    """Make a shard for each file that has none yet: an empty one if its content is "", a reject for each "?"."""
    parents = [Parent(path="corpus", digest=digest_of(files)), Parent(path="head", digest=more.get("head", "head"))]
    states = {name: digest_of(content) for name, content in files.items()}
    with GrowingDirectory(path, "documents", more.get("config", {}), parents, fixed=parents[1:]) as out:
        if out.is_complete:
            return out.manifest
        out.reuse(states)
        finished = out.finished_shards(files)
        for name, content in files.items():
            if name in finished:
                continue
            if made is not None:
                made.append(name)
            if content == more.get("damaged"):
                finished[name] = out.record_failure(name, "corpus", "damaged", states[name])
                continue
            with out.new_shard(name) as writer, out.new_rejects(name) as rejects:
                if content:
                    writer.write(pa.table({"id": [name], "text": [content]}))
                for number in range(content.count("?")):
                    rejects.add(name, str(number), "empty_text")
            finished[name] = out.commit(name, writer, rejects, {"read": len(content)}, states[name])
        return out.finish([(name, finished[name]) for name in files])


def tree(path: str) -> dict[str, str]:
    """Every file by its digest; the manifest without what differs between runs."""
    root = MEMORY._strip_protocol(path)
    content = {name.removeprefix(root): MEMORY.cat(name) for name in MEMORY.find(root)}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    return digests | {"/manifest.json": find_manifest(path).digest}


def check_readable(path: str) -> None:
    """Whoever finds a manifest finds the shards that it lists."""
    manifest = find_manifest(path)
    for shard in manifest.shards if manifest else ():
        content = MEMORY.cat(manifest.path_of(shard.path))
        assert hashlib.sha256(content).hexdigest() == shard.digest, shard.path


@contextmanager
def killed_at_write(number: int) -> Iterator[None]:
    """The process ends when it is about to change the store for the given time."""
    left = number

    def counting(method):
        def call(self, *arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed(method.__name__)
            return method(self, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(MemoryFileSystem, name, counting(getattr(MemoryFileSystem, name)))
        yield


FIVE = {"b": "one?", "d": "two", "f": "", "h": "four??", "j": "?"}
SEVEN = dict(sorted({**FIVE, "a": "new?", "e": "newer"}.items()))


def test_only_new_shards_are_made_and_the_bytes_are_those_of_a_run_from_nothing():
    run("memory://grown", FIVE)
    made: list[str] = []
    grown = run("memory://grown", SEVEN, made)
    assert made == ["a", "e"]
    assert (grown.shards_new, grown.shards_reused) == (2, 5)
    assert (grown.counts["rejected"], [shard.path[7:8] for shard in grown.shards]) == (
        5,
        ["a", "b", "d", "e", "h", "j"],
    )
    at_once = run("memory://at-once", SEVEN)
    assert (at_once.shards_new, at_once.shards_reused) == (7, 0)
    assert grown.digest == at_once.digest
    assert tree("memory://grown") == tree("memory://at-once")


def test_a_run_without_a_change_reuses_everything():
    first = run("memory://out", FIVE)
    before = tree("memory://out")
    again = run("memory://out", FIVE)
    assert (again.shards_new, again.shards_reused, again.digest) == (0, 5, first.digest)
    assert tree("memory://out") == before


def test_a_changed_file_is_made_again_and_a_vanished_one_leaves():
    run("memory://grown", FIVE)
    changed = {name: content for name, content in FIVE.items() if name != "b"} | {"d": "two, changed", "f": "?"}
    made: list[str] = []
    run("memory://grown", changed, made)
    assert made == ["d", "f"]
    run("memory://at-once", changed)
    assert tree("memory://grown") == tree("memory://at-once")
    assert not MEMORY.exists("/grown/shards/b.parquet")


def test_the_old_manifest_is_valid_until_the_new_one_replaces_it_unless_a_shard_of_it_changes():
    old = run("memory://out", FIVE)
    with pytest.raises(Killed), killed_at_write(8):
        run("memory://out", SEVEN)
    assert find_manifest("memory://out") == old
    check_readable("memory://out")
    with pytest.raises(Killed), killed_at_write(8):
        run("memory://out", {**SEVEN, "b": "changed"})
    assert find_manifest("memory://out") is None


@pytest.mark.parametrize("other", [{"config": {"seed": 1}}, {"head": "another"}])
def test_other_settings_and_another_head_are_refused_before_and_while_it_grows(other):
    run("memory://out", FIVE)
    with pytest.raises(InputError, match="already contains a finished run with different settings or input"):
        run("memory://out", SEVEN, **other)
    with pytest.raises(Killed), killed_at_write(6):
        run("memory://out", {**SEVEN, "b": "changed"})
    assert find_manifest("memory://out") is None
    with pytest.raises(InputError, match="contains an unfinished run with different settings or input"):
        run("memory://out", SEVEN, **other)


def test_the_content_of_the_input_does_not_change_the_name_of_the_directory():
    assert run("memory://out-{digest}", FIVE).root == run("memory://out-{digest}", SEVEN).root
    assert run("memory://out-{digest}", FIVE, head="another").root != run("memory://out-{digest}", FIVE).root


def test_choices_of_the_first_run_apply_to_what_is_added():
    for files in (FIVE, SEVEN, {**SEVEN, "b": "changed"}):
        parents = [Parent(path="corpus", digest=digest_of(files))]
        with GrowingDirectory("memory://out", "documents", {}, parents) as out:
            out.reuse({})
            assert out.settle({"engine": f"for {len(files)} files"}) == {"engine": "for 5 files"}
        run_with_settled_choices = GrowingDirectory("memory://out", "documents", {}, parents)
        with run_with_settled_choices as out:
            assert out.finish([]).made_with == {"engine": "for 5 files"}


def test_shards_that_failed_are_made_again_beside_those_that_are_new():
    assert [failed.name for failed in run("memory://grown", FIVE, damaged="two").shards_failed] == ["d"]
    made: list[str] = []
    still = run("memory://grown", SEVEN, made, damaged="four??")
    assert (made, [failed.name for failed in still.shards_failed]) == (["a", "e"], ["d"])


def test_a_shard_whose_file_is_missing_or_was_cut_is_made_again():
    run("memory://grown", FIVE)
    MEMORY.rm("/grown/shards/b.parquet")
    MEMORY.pipe("/grown/shards/h.parquet", b"cut")
    made: list[str] = []
    run("memory://grown", SEVEN, made)
    assert made == ["a", "b", "e", "h"]
    run("memory://at-once", SEVEN)
    assert tree("memory://grown") == tree("memory://at-once")


def test_a_run_whose_input_another_run_has_replaced_does_not_finish():
    files = {"a": "1"}
    parents = [Parent(path="corpus", digest=digest_of(files))]
    with GrowingDirectory("memory://out", "documents", {}, parents) as slow:
        slow.reuse({})
        with GrowingDirectory("memory://out", "documents", {}, [Parent(path="corpus", digest="newer")]) as fast:
            fast.reuse({})
        with pytest.raises(InputError, match="another run has begun with the new one"):
            slow.finish([])


@pytest.mark.parametrize("write", range(40))
def test_killed_at_any_write_while_it_grows_it_is_completed_by_the_same_call(write):
    grown = {**SEVEN, "d": "changed?"}
    del grown["h"]
    run("memory://at-once", grown)
    run("memory://grown", FIVE)
    made: list[str] = []
    try:
        with killed_at_write(write):
            run("memory://grown", grown, made)
    except Killed:
        check_readable("memory://grown")
    else:
        assert write > 20, "it was not killed"
    run("memory://grown", grown, made)
    assert tree("memory://grown") == tree("memory://at-once")
    assert len(made) <= 4  # the three, and the one that was interrupted


EDITS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["", "x", "y?", "z??"]), min_size=1)


@given(st.lists(st.tuples(EDITS, st.integers(0, 60)), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_changes_and_kills_ends_with_the_bytes_of_a_run_from_nothing(versions):
    MEMORY.store.clear()
    for files, writes in versions:
        ordered = dict(sorted(files.items()))
        try:
            with killed_at_write(writes):
                run("memory://grown", ordered)
        except Killed:
            check_readable("memory://grown")
            continue
        run("memory://at-once", ordered)
        assert tree("memory://grown") == tree("memory://at-once")
        MEMORY.rm("/at-once", recursive=True)
    run("memory://grown", ordered)
    run("memory://at-once", ordered)
    assert tree("memory://grown") == tree("memory://at-once")
