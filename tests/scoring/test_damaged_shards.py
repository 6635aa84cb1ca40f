"""Shards that cannot be read or scored fail without stopping the others, and are scored once they are repaired."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError, TooManyFailures
from ml_filter.heads.kinds import Head
from ml_filter.scoring import run as run_module
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from tests.kills import Killed, kill_at
from tests.scoring.corpora import output_digests, write_times

pytestmark = pytest.mark.model


@pytest.fixture
def small(documents, tmp_path):
    """A shard of each file format, with 20 documents each."""
    directory = tmp_path / "small"
    directory.mkdir()
    pq.write_table(pa.Table.from_pylist(documents[:20]), directory / "a.parquet")
    pq.write_table(pa.Table.from_pylist(documents[20:40]), directory / "b.parquet", row_group_size=5)
    lines = "".join(json.dumps(row) + "\n" for row in documents[40:]).encode()
    (directory / "c.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (directory / "d.jsonl.zst").write_bytes(zstandard.compress(lines))
    return directory


def score(head, corpus, output, **settings):
    return score_corpus(head, SourceConfig(paths=[str(corpus)]), ScoreConfig(**settings), output)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def corrupt_a_row_group(path):
    start = pq.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)


def link_to_a_missing_file(path):
    path.unlink()
    path.symlink_to(path.parent / "gone")


DAMAGES = {
    "truncated Parquet": ("b.parquet", truncate, "unreadable, file: "),
    "truncated gzip": ("c.jsonl.gz", truncate, "truncated, after line "),
    "truncated zstandard": ("d.jsonl.zst", truncate, "truncated, after line "),
    "empty Parquet file": ("b.parquet", empty, "unreadable, file: "),
    "empty gzip file": ("c.jsonl.gz", empty, "truncated, after line 0: the file is empty"),
    "not Parquet": ("b.parquet", lambda path: path.write_bytes(b"PAR1 not Parquet PAR1"), "unreadable, file: "),
    "corrupt row group": ("b.parquet", corrupt_a_row_group, "unreadable, rows 10 to 14: "),
    "no text column": ("b.parquet", lambda path: pq.write_table(pa.table({"x": [1]}), path), "no column 'text'"),
    "text is numbers": ("b.parquet", lambda path: pq.write_table(pa.table({"text": [1]}), path), "int64, not text"),
    "missing file": ("b.parquet", link_to_a_missing_file, "No such file or directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_fails_as_a_whole_and_is_scored_after_its_repair(hashing_head, small, tmp_path, damage):
    score(hashing_head, small, tmp_path / "undamaged")
    name, spoil, reason = DAMAGES[damage]
    good = (small / name).read_bytes()
    spoil(small / name)
    with pytest.raises(TooManyFailures, match=rf"1 of 4 shards failed.*run the same command again.*{name} \("):
        score(hashing_head, small, tmp_path / "out")
    manifest = find_manifest(str(tmp_path / "out"))
    [failed] = manifest.shards_failed
    assert failed.source.endswith(name)
    assert reason in failed.reason
    assert (manifest.counts["read"], manifest.counts["scored"], manifest.counts["shards_failed"]) == (60, 60, 1)
    times = write_times(tmp_path / "out")
    assert len(times) == len(manifest.shards) == 3

    (small / name).unlink()
    (small / name).write_bytes(good)
    repaired = score(hashing_head, small, tmp_path / "out")
    assert (repaired.rows, repaired.shards_failed) == (80, [])
    assert times.items() < write_times(tmp_path / "out").items()
    files = {name: digest for name, digest in output_digests(tmp_path / "out").items() if name != "manifest"}
    assert files.items() < output_digests(tmp_path / "undamaged").items()


def test_a_shard_that_disappears_during_the_run_fails_and_is_scored_when_it_is_back(
    hashing_head, small, tmp_path, monkeypatch
):
    score_one_shard = run_module.score_or_fail

    def move_the_last_shard_first(job, shard, *arguments):
        if shard.uri.endswith("a.parquet"):
            (small / "b.parquet").rename(tmp_path / "elsewhere")
        return score_one_shard(job, shard, *arguments)

    with (
        monkeypatch.context() as patch,
        pytest.raises(TooManyFailures, match=r"b\.parquet \(unreadable, file: .*No such file"),
    ):
        patch.setattr(run_module, "score_or_fail", move_the_last_shard_first)
        score(hashing_head, small, tmp_path / "out")
    (tmp_path / "elsewhere").rename(small / "b.parquet")
    assert score(hashing_head, small, tmp_path / "out").rows == 80


@pytest.mark.parametrize(("when", "name"), [("after", r"\.progress/run.json"), ("before", r"shards/b-\w+\.parquet")])
def test_a_kill_while_failed_shards_are_scored_again_changes_nothing(hashing_head, small, tmp_path, when, name):
    good = (small / "b.parquet").read_bytes()
    empty(small / "b.parquet")
    with pytest.raises(TooManyFailures):
        score(hashing_head, small, tmp_path / "out")
    (small / "b.parquet").write_bytes(good)
    with kill_at(when, name), pytest.raises(Killed):
        score(hashing_head, small, tmp_path / "out")
    score(hashing_head, small, tmp_path / "out")
    score(hashing_head, small, tmp_path / "undisturbed")
    assert output_digests(tmp_path / "out") == output_digests(tmp_path / "undisturbed")


def test_a_share_of_failed_shards_can_be_allowed(hashing_head, small, tmp_path):
    truncate(small / "b.parquet")
    with pytest.raises(TooManyFailures, match=r"max_failed_shards=0\.2 allows"):
        score(hashing_head, small, tmp_path / "out", max_failed_shards=0.2)
    manifest = score(hashing_head, small, tmp_path / "out", max_failed_shards=0.25)
    assert (manifest.rows, len(manifest.shards_failed)) == (60, 1)


def test_the_readable_documents_of_damaged_shards_are_scored_on_request(hashing_head, small, tmp_path):
    truncate(small / "c.jsonl.gz")
    corrupt_a_row_group(small / "b.parquet")
    with pytest.raises(TooManyFailures, match="2 of 4 shards failed"):
        score(hashing_head, small, tmp_path / "out")
    manifest = score(hashing_head, small, tmp_path / "out", damaged_shards="keep")
    assert [shard.rows for shard in manifest.shards][1] == 15
    assert 60 < manifest.rows < 80
    assert (manifest.counts["rejected_truncated"], manifest.counts["rejected_unreadable"]) == (1, 1)
    assert score(hashing_head, small, tmp_path / "keep", damaged_shards="keep").digest == manifest.digest
    with pytest.raises(InputError, match="settings or input"):
        score(hashing_head, small, tmp_path / "out")


def test_a_shard_without_a_readable_document_fails_in_any_case(hashing_head, small, tmp_path):
    empty(small / "b.parquet")
    with pytest.raises(TooManyFailures, match="1 of 4"):
        score(hashing_head, small, tmp_path / "out", damaged_shards="keep")


def test_a_corpus_whose_shards_all_fail_is_an_error_and_can_be_repaired(hashing_head, documents, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("a", "b"):
        empty(corpus / f"{name}.parquet")
    with pytest.raises(InputError, match=r"no shard could be scored: .*a\.parquet .*; .*b\.parquet"):
        score(hashing_head, corpus, tmp_path / "out")
    assert find_manifest(str(tmp_path / "out")) is None
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist(documents[:5]), corpus / f"{name}.parquet")
    assert score(hashing_head, corpus, tmp_path / "out").rows == 10


def test_a_shard_that_changed_is_scored_again_beside_those_that_failed(hashing_head, small, documents, tmp_path):
    good = (small / "b.parquet").read_bytes()
    truncate(small / "b.parquet")
    with pytest.raises(TooManyFailures):
        score(hashing_head, small, tmp_path / "out")
    pq.write_table(pa.Table.from_pylist(documents[:3]), small / "a.parquet")
    (small / "b.parquet").write_bytes(good)
    assert score(hashing_head, small, tmp_path / "out").rows == 63
    score(hashing_head, small, tmp_path / "undisturbed")
    assert output_digests(tmp_path / "out") == output_digests(tmp_path / "undisturbed")


def test_shards_without_a_document_do_not_fail_and_are_counted(hashing_head, small, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), small / "b.parquet")
    (small / "e.jsonl").write_text("")
    manifest = score(hashing_head, small, tmp_path / "out")
    assert (manifest.counts["shards_empty"], manifest.rows, manifest.shards_failed) == (2, 60, [])
    assert [shard.path for shard in manifest.shards if "-b." in shard.path or "-e." in shard.path] == []


def test_shards_with_different_columns_and_types_keep_their_own(hashing_head, documents, tmp_path):
    (tmp_path / "corpus").mkdir()
    columns = [{"n": 1}, {"n": "one", "more": [1.5]}, {"score": "seen", "input_score": 2}]
    for number, extra in enumerate(columns):
        rows = [{**row, **extra} for row in documents[number * 5 :][:5]]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus" / f"{number}.parquet")
    manifest = score(hashing_head, tmp_path / "corpus", tmp_path / "out")
    tables = [pq.read_table(path).to_pylist() for path in manifest.shard_paths()]
    assert [rows[0]["n"] for rows in tables[:2]] == [1, "one"]
    assert (tables[1][0]["more"], tables[2][0]["input_input_score"]) == ([1.5], "seen")
    assert manifest.counts["scored"] == 15


def test_a_shard_on_which_the_engine_raises_fails_and_the_others_are_scored(
    hashing_head, small, documents, tmp_path, monkeypatch
):
    score_texts = Head.score

    def raise_on_one_text(self, texts):
        if documents[25]["text"] in texts:
            raise RuntimeError("the device reported an error\nwith a second line")
        return score_texts(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Head, "score", raise_on_one_text)
        with pytest.raises(TooManyFailures, match=r"b\.parquet \(RuntimeError: the device reported an error\)"):
            score(hashing_head, small, tmp_path / "out")
    undisturbed = score(hashing_head, small, tmp_path / "undisturbed")
    assert score(hashing_head, small, tmp_path / "out").digest == undisturbed.digest


def test_the_digest_of_a_manifest_includes_failed_shards(hashing_head, small, tmp_path):
    truncate(small / "b.parquet")
    manifest = score(hashing_head, small, tmp_path / "out", max_failed_shards=1)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["shards_failed"][0]["name"].startswith("b-")
    without = manifest.model_copy(update={"shards_failed": []})
    assert without.digest != manifest.digest
    assert "shards_failed" not in json.loads(without.to_json())
