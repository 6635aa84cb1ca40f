"""A scored corpus that grows is filtered once, to the bytes of a run from nothing."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.documents.sources import list_shards_with_states
from ml_filter.selection.measure import Corpus
from tests.kills import Killed, kill_at
from tests.selection.scored import select
from tests.selection.test_killed import digests

MIN = {"min_score": 2.5, "dropped": True}
TOP = {"keep_fraction": 0.4, "quota": "language", "dropped": True}


def write_file(corpus: Path, name: str, version: int = 0) -> None:
    """Ten documents."""
    corpus.mkdir(exist_ok=True)
    draw = random.Random(f"{name} {version}")
    rows = [
        {
            "id": f"{name}-{i}",
            "text": f"{name} {version} {i}",
            "language": draw.choice("ab"),
            "score": draw.uniform(0, 5),
        }
        for i in range(10)
    ]
    pq.write_table(pa.Table.from_pylist(rows), corpus / f"{name}.parquet")


def score(corpus: Path) -> SourceConfig:
    """A directory of scored documents that grows with the files of a corpus, as scoring makes it."""
    files = SourceConfig(paths=[str(corpus)])
    shards, parents = list_shards_with_states(files)
    output = corpus.parent / "scored"
    with GrowingDirectory(output, "scored", {}, parents) as out:
        if not out.is_complete:
            out.reuse({shard.name: str(shard.state) for shard in shards})
            finished = out.finished_shards(shard.name for shard in shards)
            for shard in shards:
                if shard.name not in finished:
                    with out.new_shard(shard.name) as writer, out.new_rejects(shard.name) as rejects:
                        writer.write(pq.read_table(shard.uri))
                    counts = {"read": writer.rows}
                    finished[shard.name] = out.commit(shard.name, writer, rejects, counts, shard.state)
            out.finish([(shard.name, finished[shard.name]) for shard in shards])
    return SourceConfig(paths=[str(output)])


@pytest.fixture
def corpus(tmp_path) -> Path:
    for name in "bdfhj":
        write_file(tmp_path / "corpus", name)
    return tmp_path / "corpus"


def grow(corpus: Path) -> None:
    for name in "ae":
        write_file(corpus, name)


@pytest.fixture
def read_shards(monkeypatch) -> list[str]:
    """The shards whose documents are read."""
    names: list[str] = []
    tables = Corpus.tables

    def record(self, shard, *arguments):
        names.append(shard.name[0])
        return tables(self, shard, *arguments)

    monkeypatch.setattr(Corpus, "tables", record)
    return names


def written(manifest: Manifest) -> tuple[int | None, int | None]:
    return manifest.shards_new, manifest.shards_reused


def test_with_a_minimum_score_only_new_shards_are_read_and_written(corpus, tmp_path, read_shards):
    select(score(corpus), tmp_path / "out", **MIN)
    read_shards.clear()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    grow(corpus)
    grown = select(score(corpus), tmp_path / "out", **MIN)
    assert (read_shards, written(grown)) == (["a", "e"], (2, 5))
    assert times == {path: path.stat().st_mtime_ns for path in times}
    select(score(corpus), tmp_path / "at-once", **MIN)
    assert digests(tmp_path / "out") == digests(tmp_path / "at-once")
    assert written(select(score(corpus), tmp_path / "out", **MIN)) == (0, 7)


@pytest.mark.parametrize("rule", [MIN, TOP])
def test_changed_and_vanished_shards_are_changed_and_vanish_in_the_output(corpus, tmp_path, rule):
    select(score(corpus), tmp_path / "out", **rule)
    grow(corpus)
    write_file(corpus, "d", version=1)
    (corpus / "h.parquet").unlink()
    grown = select(score(corpus), tmp_path / "out", **rule)
    select(score(corpus), tmp_path / "at-once", **rule)
    assert digests(tmp_path / "out") == digests(tmp_path / "at-once")
    assert written(grown) == ((3, 3) if rule is MIN else (6, 0))
    assert len(list((tmp_path / "out/dropped/shards").iterdir())) == 6


def test_with_a_fraction_all_shards_are_written_by_the_new_cut(corpus, tmp_path):
    before = select(score(corpus), tmp_path / "out", **TOP)
    grow(corpus)
    grown = select(score(corpus), tmp_path / "out", **TOP)
    assert grown.rows > before.rows
    assert written(grown) == (7, 0)
    select(score(corpus), tmp_path / "at-once", **TOP)
    assert digests(tmp_path / "out") == digests(tmp_path / "at-once")


def test_shards_are_reused_while_the_cut_stays(corpus, tmp_path):
    rule = {"token_budget": 10_000, "token_column": "tokens"}
    rows = [{"id": f"z{i}", "text": "t", "score": 0.0, "tokens": 20_000} for i in range(3)]
    for name in "bd":
        table = pq.read_table(corpus / f"{name}.parquet")
        tokens = pa.array([100] * len(table))
        pq.write_table(table.append_column("tokens", tokens), corpus / f"{name}.parquet")
    for name in "fhj":
        (corpus / f"{name}.parquet").unlink()
    before = select(score(corpus), tmp_path / "out", **rule)
    pq.write_table(pa.Table.from_pylist(rows), corpus / "z.parquet")
    grown = select(score(corpus), tmp_path / "out", **rule)
    assert (before.rows, grown.rows, written(grown)) == (20, 20, (1, 2))
    select(score(corpus), tmp_path / "at-once", **rule)
    assert digests(tmp_path / "out") == digests(tmp_path / "at-once")


def test_a_budget_is_kept_if_equal_documents_are_added_in_front(corpus, tmp_path):
    rule = {"token_budget": 200, "token_column": "tokens"}
    row = {"id": "same", "text": "t", "score": 3.0, "tokens": 100}
    for name in "bdfhj":
        pq.write_table(pa.Table.from_pylist([row]), corpus / f"{name}.parquet")
    select(score(corpus), tmp_path / "out", **rule)
    pq.write_table(pa.Table.from_pylist([row]), corpus / "a.parquet")
    grown = select(score(corpus), tmp_path / "out", **rule)
    assert grown.rows == 2
    select(score(corpus), tmp_path / "at-once", **rule)
    assert digests(tmp_path / "out") == digests(tmp_path / "at-once")


def test_dropped_documents_that_were_deleted_are_written_again(corpus, tmp_path):
    select(score(corpus), tmp_path / "out", **MIN)
    next((tmp_path / "out/dropped/shards").glob("d-*")).unlink()
    grow(corpus)
    assert written(select(score(corpus), tmp_path / "out", **MIN)) == (3, 4)
    select(score(corpus), tmp_path / "at-once", **MIN)
    assert digests(tmp_path / "out/dropped") == digests(tmp_path / "at-once/dropped")


def test_the_directory_named_by_a_digest_stays_the_same(corpus, tmp_path):
    output = tmp_path / "filtered-{digest}"
    before = select(score(corpus), output, **MIN).root
    grow(corpus)
    assert select(score(corpus), output, **MIN).root == before


POINTS = [
    ("before", r"\.progress/reused\.jsonl"),
    ("after", r"\.progress/run\.json"),
    ("after", r"shards/a-\w+\.parquet"),
    ("after", r"\.progress/a-\w+\.json"),
    ("after", r"\.shards\.jsonl"),
    ("before", r"manifest\.json"),
    ("after", r"manifest\.json"),
]
TOP_POINTS = [
    ("after", r"\.progress/cut-\w+\.parquet"),
    ("after", r"shards/a-\w+\.parquet"),
    ("after", r"quota\.parquet"),
]


@pytest.mark.parametrize(
    ("rule", "when", "name"), [*((MIN, *point) for point in POINTS), *((TOP, *point) for point in TOP_POINTS)]
)
def test_killed_while_it_grows_it_is_completed_by_the_same_command(corpus, tmp_path, when, name, rule):
    select(score(corpus), tmp_path / "out", **rule)
    grow(corpus)
    source = score(corpus)
    with kill_at(when, name), pytest.raises(Killed):
        select(source, tmp_path / "out", **rule)
    assert rule is TOP or find_manifest(tmp_path / "out") is not None
    select(source, tmp_path / "out", **rule)
    select(source, tmp_path / "at-once", **rule)
    assert digests(tmp_path / "out") == digests(tmp_path / "at-once")


VERSIONS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcd"), st.integers(0, 1), min_size=1), st.sampled_from([None, *POINTS])
    ),
    min_size=1,
    max_size=4,
)


@given(VERSIONS, st.sampled_from([MIN, TOP]))
@settings(max_examples=6, deadline=None)
def test_any_sequence_of_changes_and_kills_ends_with_the_bytes_of_a_run_from_nothing(tmp_path_factory, versions, rule):
    corpus = tmp_path_factory.mktemp("any") / "corpus"
    for files, point in versions:
        for path in corpus.glob("*"):
            path.unlink()
        for name, version in files.items():
            write_file(corpus, name, version)
        source = score(corpus)
        try:
            with kill_at(*(point or ("before", "never"))):
                select(source, corpus.parent / "out", **rule)
        except Killed:
            pass
    select(source, corpus.parent / "out", **rule)
    select(source, corpus.parent / "at-once", **rule)
    assert digests(corpus.parent / "out") == digests(corpus.parent / "at-once")
