import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.errors import InputError
from ml_filter.selection.select import filter_corpus
from ml_filter.settings import FilterConfig, SourceConfig


def scored(path: Path, scores: list[float | None], **columns) -> pa.Table:
    count = len(scores)
    table = pa.table(
        {
            "id": [f"{path.stem}-{i}" for i in range(count)],
            "text": [f"text {i}" for i in range(count)],
            "meta": [{"n": i, "tags": ["a"]} for i in range(count)],
            "score": pa.array(scores, pa.float64()),
            **columns,
        }
    )
    pq.write_table(table, path)
    return table


def keep(path: Path, min_score: float, output: Path) -> Manifest:
    return filter_corpus(SourceConfig(paths=[str(path)]), FilterConfig(min_score=min_score), output)


def table_of(manifest: Manifest) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in manifest.shard_paths()])


def test_documents_at_or_above_the_minimum_are_kept_with_all_their_columns(tmp_path):
    before = scored(tmp_path / "a.parquet", [2.9, 3.0, None, 3.1, 0.0, 5.0])
    manifest = keep(tmp_path / "a.parquet", 3.0, tmp_path / "out")
    assert table_of(manifest).equals(before.take([1, 3, 5]))


def test_every_document_is_counted_as_kept_dropped_or_unscored(tmp_path):
    scored(tmp_path / "a.parquet", [2.9, 3.0, None, 3.1, None])
    (tmp_path / "b.jsonl").write_text('{"text": "t", "score": 4}\nbroken\n{"text": "u", "score": null}\n')
    manifest = keep(tmp_path, 3.0, tmp_path / "out")
    assert manifest.counts == {
        "read": 7,
        "kept": 3,
        "dropped": 1,
        "unscored": 3,
        "rejected": 1,
        "rejected_invalid_json": 1,
    }


SCORES = st.lists(st.none() | st.floats(0, 5), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(shards=st.lists(SCORES, min_size=1, max_size=3), place=st.integers(0, 10), free=st.floats(0, 5))
def test_exactly_the_scores_that_reach_the_minimum_are_kept_in_order(shards, place, free):
    scores = [score for shard in shards for score in shard]
    chosen = scores[place % len(scores)]
    minimum = free if chosen is None else chosen  # a score that is there, so that the border itself is tried
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number, shard in enumerate(shards):
            scored(directory / f"part-{number}.parquet", shard)
        manifest = keep(directory, minimum, directory / "out")
        kept = [score for path in manifest.shard_paths() for score in pq.read_table(path)["score"].to_pylist()]
    assert kept == [score for score in scores if score is not None and score >= minimum]
    counts = manifest.counts
    assert counts["kept"] + counts["dropped"] + counts["unscored"] == counts["read"] == len(scores)


def test_nothing_may_be_left(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, None])
    manifest = keep(tmp_path / "a.parquet", 3.0, tmp_path / "out")
    assert (manifest.shards, manifest.counts["kept"], manifest.counts["dropped"]) == ([], 0, 1)


def test_whole_numbers_are_scores_and_a_shard_without_any_score_is_unscored(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "score": 3}\n{"text": "u", "score": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "v", "score": null}\n')
    manifest = keep(tmp_path, 3, tmp_path / "out")
    assert table_of(manifest)["text"].to_pylist() == ["t"]
    assert manifest.counts["unscored"] == 1


def test_a_corpus_that_is_not_scored_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t"}\n')
    with pytest.raises(InputError, match="has no column 'score'; make it with ml-filter score"):
        keep(tmp_path / "a.jsonl", 3, tmp_path / "a")
    (tmp_path / "b.jsonl").write_text('{"text": "t", "score": "high"}\n')
    with pytest.raises(InputError, match="column 'score' holds string, not numbers"):
        keep(tmp_path / "b.jsonl", 3, tmp_path / "b")


def test_a_finished_filter_is_returned_and_another_minimum_refused(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 4.0])
    first = keep(tmp_path / "a.parquet", 3, tmp_path / "out")
    assert keep(tmp_path / "a.parquet", 3, tmp_path / "out") == first
    with pytest.raises(InputError, match="other settings or input"):
        keep(tmp_path / "a.parquet", 2, tmp_path / "out")


def test_a_filtered_corpus_can_be_filtered_again(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 3.0, 4.0])
    keep(tmp_path / "a.parquet", 2, tmp_path / "first")
    second = keep(tmp_path / "first", 4, tmp_path / "second")
    assert table_of(second)["score"].to_pylist() == [4.0]
    assert second.parents[0].digest == find_manifest(str(tmp_path / "first")).digest


FILTER = """
import sys
from ml_filter.selection.select import filter_corpus
from ml_filter.settings import FilterConfig, SourceConfig
filter_corpus(SourceConfig(paths=[sys.argv[1]]), FilterConfig(min_score=3), sys.argv[2])
"""


def test_killed_at_any_shard_and_run_again_it_gives_the_same_bytes(tmp_path):
    corpus, killed = tmp_path / "corpus", tmp_path / "killed"
    corpus.mkdir()
    for number in range(100):
        rows = [{"id": f"{number}-{i}", "text": "t", "score": i % 6} for i in range(50)]
        (corpus / f"part-{number:03d}.jsonl").write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    for done in (10, 40):
        running = subprocess.Popen([sys.executable, "-c", FILTER, str(corpus), str(killed)], stderr=subprocess.DEVNULL)
        while running.poll() is None and len(list(killed.glob("shards/*.parquet"))) < done:
            time.sleep(0.001)
        running.kill()
        running.wait()
        assert find_manifest(str(killed)) is None
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("shards/*.parquet")}
    assert 40 <= len(kept) < 100
    again, whole = keep(corpus, 3, killed), keep(corpus, 3, tmp_path / "whole")
    assert again.digest == whole.digest
    assert again.counts["rejected"] == 100
    for name in ["rejects.jsonl", *(shard.path for shard in whole.shards)]:
        digests = {hashlib.sha256((root / name).read_bytes()).hexdigest() for root in (killed, tmp_path / "whole")}
        assert len(digests) == 1
    untouched = [path for path in kept if path.stat().st_mtime_ns == kept[path]]
    assert len(untouched) >= len(kept) - 1  # the last may have been in place without being marked as done
