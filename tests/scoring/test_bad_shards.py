"""What becomes of a corpus some of whose shards cannot be read, and how it is mended."""

import gzip
import json
import shutil
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError, TooManyFailures
from ml_filter.heads.engine import LexicalEngine
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from tests.scoring.corpora import command, content, shard_times, start, wait_until


@pytest.fixture
def small(documents, tmp_path):
    """A shard of each kind of file, of 20 documents each; the second is the one that will be damaged."""
    directory = tmp_path / "small"
    directory.mkdir()
    pq.write_table(pa.Table.from_pylist(documents[:20]), directory / "a.parquet")
    pq.write_table(pa.Table.from_pylist(documents[20:40]), directory / "b.parquet", row_group_size=5)
    lines = "".join(json.dumps(row) + "\n" for row in documents[40:]).encode()
    (directory / "c.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (directory / "d.jsonl.zst").write_bytes(zstandard.compress(lines))
    return directory


def run(head, corpus, output, **settings):
    return score_corpus(head, SourceConfig(paths=[str(corpus)]), ScoreConfig(**settings), output)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_a_row_group(path):
    start = pq.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)


def link_to_nowhere(path):
    path.unlink()
    path.symlink_to(path.parent / "gone")


DAMAGES = {
    "cut off Parquet": ("b.parquet", cut, "unreadable, file: "),
    "cut off gzip": ("c.jsonl.gz", cut, "truncated, after line "),
    "cut off zstandard": ("d.jsonl.zst", cut, "truncated, after line "),
    "nothing in a Parquet file": ("b.parquet", lambda path: path.write_bytes(b""), "unreadable, file: "),
    "nothing in a gzip file": ("c.jsonl.gz", lambda path: path.write_bytes(b""), "truncated, file: it has no bytes"),
    "no Parquet": ("b.parquet", lambda path: path.write_bytes(b"PAR1 no Parquet PAR1"), "unreadable, file: "),
    "a spoilt row group": ("b.parquet", spoil_a_row_group, "unreadable, rows 10 to 14: "),
    "no text column": ("b.parquet", lambda path: pq.write_table(pa.table({"x": [1]}), path), "no column 'text'"),
    "no text in it": ("b.parquet", lambda path: pq.write_table(pa.table({"text": [1]}), path), "holds int64, not text"),
    "a link to nowhere": ("b.parquet", link_to_nowhere, "unreadable, file: FileNotFoundError"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_fails_whole_and_is_scored_once_it_is_mended(cheap_head, small, tmp_path, damage):
    run(cheap_head, small, tmp_path / "whole")
    name, spoil, reason = DAMAGES[damage]
    good = (small / name).read_bytes()
    spoil(small / name)
    with pytest.raises(TooManyFailures, match=rf"1 of 4 shards failed.*run the same command again.*{name} \("):
        run(cheap_head, small, tmp_path / "out")
    manifest = find_manifest(str(tmp_path / "out"))
    [failed] = manifest.shards_failed
    assert failed.source.endswith(name)
    assert reason in failed.reason
    assert (manifest.counts["read"], manifest.counts["scored"], manifest.counts["shards_failed"]) == (60, 60, 1)
    kept = shard_times(tmp_path / "out")
    assert len(kept) == len(manifest.shards) == 3

    (small / name).unlink()
    (small / name).write_bytes(good)
    made = run(cheap_head, small, tmp_path / "out")
    assert (made.rows, made.shards_failed) == (80, [])
    assert kept.items() < shard_times(tmp_path / "out").items()
    without_pins = {key: digest for key, digest in content(tmp_path / "out").items() if key != "manifest"}
    assert without_pins.items() < content(tmp_path / "whole").items()


def test_a_shard_that_vanishes_while_others_are_scored_fails_and_is_scored_when_it_is_back(
    cheap_head, corpus, undisturbed, tmp_path
):
    moved = tmp_path / "corpus"
    shutil.copytree(corpus, moved)
    with start(cheap_head, moved, tmp_path / "out") as running:
        wait_until(lambda: list(tmp_path.glob("out/.progress/scratch/00000*")), running)
        (moved / "part-5.parquet").rename(tmp_path / "elsewhere")
        _, errors = running.communicate()
    assert running.returncode == 1
    assert "1 of 6 shards failed" in errors
    assert "part-5.parquet (unreadable, file: FileNotFoundError" in errors
    assert "Traceback" not in errors
    (tmp_path / "elsewhere").rename(moved / "part-5.parquet")
    again = subprocess.run(command(cheap_head, moved, tmp_path / "out"), check=True, capture_output=True, text=True)
    assert "3,600" in again.stdout
    shards = {name: digest for name, digest in undisturbed.items() if name != "manifest"}
    assert shards.items() < content(tmp_path / "out").items()


def test_a_run_that_is_killed_while_it_does_failed_shards_again_gives_the_same(cheap_head, small, tmp_path):
    good = (small / "b.parquet").read_bytes()
    (small / "b.parquet").write_bytes(b"")
    with pytest.raises(TooManyFailures):
        run(cheap_head, small, tmp_path / "out")
    (small / "b.parquet").write_bytes(good)
    with start(cheap_head, small, tmp_path / "out") as running:
        wait_until(lambda: not (tmp_path / "out" / "manifest.json").exists(), running)
    run(cheap_head, small, tmp_path / "out")
    run(cheap_head, small, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_share_of_failed_shards_is_tolerated_where_that_is_set(cheap_head, small, tmp_path):
    cut(small / "b.parquet")
    with pytest.raises(TooManyFailures, match=r"max_failed_shards=0\.2 tolerates"):
        run(cheap_head, small, tmp_path / "out", max_failed_shards=0.2)
    manifest = run(cheap_head, small, tmp_path / "out", max_failed_shards=0.25)
    assert (manifest.rows, len(manifest.shards_failed)) == (60, 1)


def test_what_can_be_read_of_a_damaged_shard_is_scored_where_that_is_asked_for(cheap_head, small, tmp_path):
    cut(small / "c.jsonl.gz")
    spoil_a_row_group(small / "b.parquet")
    with pytest.raises(TooManyFailures, match="2 of 4 shards failed"):
        run(cheap_head, small, tmp_path / "out")
    manifest = run(cheap_head, small, tmp_path / "out", damaged_shards="keep")
    assert [shard.rows for shard in manifest.shards][1] == 15
    assert 60 < manifest.rows < 80
    assert (manifest.counts["rejected_truncated"], manifest.counts["rejected_unreadable"]) == (1, 1)
    assert run(cheap_head, small, tmp_path / "keep", damaged_shards="keep").digest == manifest.digest
    with pytest.raises(InputError, match="finished run of other settings"):
        run(cheap_head, small, tmp_path / "out")


def test_a_shard_of_which_nothing_can_be_read_fails_in_any_case(cheap_head, small, tmp_path):
    (small / "b.parquet").write_bytes(b"")
    with pytest.raises(TooManyFailures, match="1 of 4"):
        run(cheap_head, small, tmp_path / "out", damaged_shards="keep")


def test_a_corpus_of_which_every_shard_fails_is_an_error_and_can_be_mended(cheap_head, documents, tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in ("a", "b"):
        (tmp_path / "corpus" / f"{name}.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"no shard could be scored: .*a\.parquet .*; .*b\.parquet"):
        run(cheap_head, tmp_path / "corpus", tmp_path / "out")
    assert find_manifest(str(tmp_path / "out")) is None
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist(documents[:5]), tmp_path / "corpus" / f"{name}.parquet")
    assert run(cheap_head, tmp_path / "corpus", tmp_path / "out").rows == 10


def test_mending_a_shard_is_no_leave_to_change_one_that_is_scored(cheap_head, small, documents, tmp_path):
    cut(small / "b.parquet")
    with pytest.raises(TooManyFailures):
        run(cheap_head, small, tmp_path / "out")
    pq.write_table(pa.Table.from_pylist(documents[:3]), small / "a.parquet")
    with pytest.raises(InputError, match="finished run of other settings or input"):
        run(cheap_head, small, tmp_path / "out")


def test_shards_without_a_document_are_no_failures_and_are_counted(cheap_head, small, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), small / "b.parquet")
    (small / "e.jsonl").write_text("")
    manifest = run(cheap_head, small, tmp_path / "out")
    assert (manifest.counts["shards_empty"], manifest.rows, manifest.shards_failed) == (2, 60, [])


def test_shards_of_different_columns_and_types_keep_their_own(cheap_head, documents, tmp_path):
    (tmp_path / "corpus").mkdir()
    columns = [{"n": 1}, {"n": "one", "more": [1.5]}, {"score": "seen", "input_score": 2}]
    for number, extra in enumerate(columns):
        rows = [{**row, **extra} for row in documents[number * 5 :][:5]]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus" / f"{number}.parquet")
    manifest = run(cheap_head, tmp_path / "corpus", tmp_path / "out")
    tables = [pq.read_table(path).to_pylist() for path in manifest.shard_paths()]
    assert [rows[0]["n"] for rows in tables[:2]] == [1, "one"]
    assert (tables[1][0]["more"], tables[2][0]["input_input_score"]) == ([1.5], "seen")
    assert manifest.counts["scored"] == 15


def test_a_shard_that_the_engine_cannot_score_fails_and_the_others_are_scored(
    cheap_head, small, documents, tmp_path, monkeypatch
):
    scores = LexicalEngine.raw

    def raise_over_one(self, texts):
        if documents[25]["text"] in texts:
            raise RuntimeError("the device hiccups\nat length")
        return scores(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(LexicalEngine, "raw", raise_over_one)
        with pytest.raises(TooManyFailures, match=r"b\.parquet \(RuntimeError: the device hiccups\)"):
            run(cheap_head, small, tmp_path / "out")
    assert run(cheap_head, small, tmp_path / "out").digest == run(cheap_head, small, tmp_path / "whole").digest


def test_failed_shards_are_part_of_what_a_manifest_pins(cheap_head, small, tmp_path):
    cut(small / "b.parquet")
    manifest = run(cheap_head, small, tmp_path / "out", max_failed_shards=1)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["shards_failed"][0]["name"] == "00001-b"
    whole = manifest.model_copy(update={"shards_failed": []})
    assert whole.digest != manifest.digest
    assert "shards_failed" not in json.loads(whole.to_json())
