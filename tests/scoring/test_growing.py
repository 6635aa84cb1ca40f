"""A corpus that grows is scored once: only what is new or changed, to the bytes of a run from nothing."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError
from ml_filter.heads.kinds import Head
from ml_filter.scoring import run
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, score_corpus, score_rank
from ml_filter.scoring.shard import fail_shard
from tests.kills import Killed, kill_at
from tests.scoring.corpora import output_digests, write_times

pytestmark = pytest.mark.model


@pytest.fixture
def corpus(documents, tmp_path) -> Path:
    """Five files of 8 documents, of which each has a broken line."""
    for number in (1, 3, 4, 6, 8):
        write_file(tmp_path / "corpus", number, documents)
    return tmp_path / "corpus"


def write_file(directory: Path, number: int, documents, first: int = 0) -> None:
    directory.mkdir(exist_ok=True)
    rows = documents[(7 * number + first) % 40 :][:8]
    lines = [json.dumps({"id": f"{number}-{i}", "text": row["text"]}) for i, row in enumerate(rows)]
    (directory / f"part-{number}.jsonl").write_text("\n".join([*lines, "{broken"]))


def grow(directory: Path, documents) -> None:
    """Add a file that sorts first, and one in the middle."""
    for number in (0, 5):
        write_file(directory, number, documents)


@pytest.fixture
def score(hashing_head, corpus, tmp_path):
    def call(output=tmp_path / "out", rank=None, **settings):
        arguments = (hashing_head, SourceConfig(paths=[str(corpus)]), ScoreConfig(**settings), output)
        return score_rank(*arguments, rank) if rank else score_corpus(*arguments)

    return call


@pytest.fixture
def scored_texts(monkeypatch) -> list[str]:
    """Every text that a head is asked to score in this process."""
    texts: list[str] = []
    method = Head.score_with_details

    def record(self, batch, *arguments):
        texts.extend(batch)
        return method(self, batch, *arguments)

    monkeypatch.setattr(Head, "score_with_details", record)
    return texts


@pytest.mark.parametrize("workers", [1, 2])
def test_only_new_files_are_scored(in_process, score, corpus, documents, tmp_path, scored_texts, workers):
    score(workers=workers)
    before, scored = write_times(tmp_path / "out"), len(scored_texts)
    grow(corpus, documents)
    grown = score(workers=workers)
    assert (grown.shards_new, grown.shards_reused, grown.counts["scored"]) == (2, 5, 56)
    assert len(scored_texts) - scored == 16
    after = write_times(tmp_path / "out")
    assert (before.items() < after.items(), len(after)) == (True, 7)
    at_once = score(tmp_path / "at-once")
    assert grown.digest == at_once.digest
    assert output_digests(tmp_path / "out") == output_digests(tmp_path / "at-once")
    assert [shard.path[7:13] for shard in grown.shards] == [f"part-{number}" for number in (0, 1, 3, 4, 5, 6, 8)]


def test_a_changed_file_is_scored_again_and_a_vanished_one_leaves_the_output(score, corpus, documents, tmp_path):
    score()
    grow(corpus, documents)
    write_file(corpus, 3, documents, first=2)
    (corpus / "part-8.jsonl").unlink()
    grown = score()
    assert (grown.shards_new, grown.shards_reused) == (3, 3)
    score(tmp_path / "at-once")
    assert output_digests(tmp_path / "out") == output_digests(tmp_path / "at-once")


def test_a_second_run_says_that_nothing_was_new(score):
    score()
    again = score()
    assert (again.shards_new, again.shards_reused) == (0, 5)


def test_the_directory_named_by_a_digest_stays_the_same_for_a_grown_corpus(score, corpus, documents, tmp_path):
    output = f"{tmp_path}/scored-{{digest}}"
    before = score(output).root
    grow(corpus, documents)
    assert score(output).root == before
    assert score(output, damaged_shards="keep").root != before


def test_another_head_is_refused(score, corpus, documents, encoder_head, tmp_path):
    score()
    grow(corpus, documents)
    with pytest.raises(InputError, match="already contains a finished run with different settings or input"):
        score_corpus(encoder_head, SourceConfig(paths=[str(corpus)]), ScoreConfig(), tmp_path / "out")


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("before", r"\.progress/reused\.jsonl"),
        ("after", r"\.progress/reused\.jsonl"),
        ("after", r"\.progress/run\.json"),
        ("after", r"shards/part-0-\w+\.parquet"),
        ("after", r"\.progress/part-0-\w+\.json"),
        ("after", r"rejects\.jsonl"),
        ("after", r"\.shards\.jsonl"),
        ("after", r"manifest\.json"),
    ],
)
@pytest.mark.parametrize("changes", [False, True])
def test_killed_while_it_grows_it_is_completed_by_the_same_command(
    score, corpus, documents, tmp_path, when, name, changes
):
    score()
    grow(corpus, documents)
    if changes:
        write_file(corpus, 3, documents, first=2)
        (corpus / "part-8.jsonl").unlink()
    with kill_at(when, name), pytest.raises(Killed):
        score()
    if not changes:
        assert find_manifest(str(tmp_path / "out")) is not None
    score()
    score(tmp_path / "at-once")
    assert output_digests(tmp_path / "out") == output_digests(tmp_path / "at-once")


def test_ranks_score_only_what_is_new(score, corpus, documents, tmp_path):
    for number in (0, 1):
        score(rank=Rank(number, 2))
    before = write_times(tmp_path / "out")
    grow(corpus, documents)
    assert score(rank=Rank(1, 2)) is not None or score(rank=Rank(0, 2)) is not None
    grown = find_manifest(str(tmp_path / "out"))
    assert (grown.shards_new, grown.shards_reused) == (2, 5)
    assert before.items() < write_times(tmp_path / "out").items()
    score(tmp_path / "at-once")
    assert output_digests(tmp_path / "out") == output_digests(tmp_path / "at-once")


def test_a_rank_that_has_nothing_new_leaves_the_rest_to_the_others(score, corpus, documents, tmp_path):
    score()
    old = find_manifest(str(tmp_path / "out"))
    write_file(corpus, 0, documents)  # the first file, so of rank 0
    assert score(rank=Rank(1, 2)) is None
    assert find_manifest(str(tmp_path / "out")) == old
    assert score(rank=Rank(0, 2)).counts["scored"] == 48


def test_source_and_output_on_s3_grow_like_directories(hashing_head, corpus, documents, bucket, tmp_path):
    s3 = fsspec.filesystem("s3")

    def upload(*numbers: int) -> None:
        for number in numbers:
            s3.put_file(str(corpus / f"part-{number}.jsonl"), f"{bucket.name}/corpus/part-{number}.jsonl")

    def score(output):
        source = SourceConfig(paths=[f"{bucket.url}/corpus"])
        return score_corpus(hashing_head, source, ScoreConfig(), f"{bucket.url}/{output}")

    def content(output):
        others = ("manifest.json", ".shards.jsonl")
        keys = [key for key in bucket.keys(f"{output}/") if not key.endswith(others)]
        return {key.removeprefix(output): s3.cat(f"{bucket.name}/{key}") for key in keys}

    upload(1, 3, 4, 6, 8)
    score("grown")
    grow(corpus, documents)
    upload(0, 5)
    s3.rm_file(f"{bucket.name}/corpus/part-1.jsonl")
    with kill_at("after", r"\.progress/part-0-\w+\.json"), pytest.raises(Killed):
        score("grown")
    assert find_manifest(f"{bucket.url}/grown").counts["scored"] == 40  # still the old one
    grown = score("grown")
    assert (grown.shards_new, grown.shards_reused) == (2, 4)
    assert grown.digest == score("at-once").digest
    assert content("grown") == content("at-once")
    assert len(content("grown")) == 7


def test_a_failed_shard_is_tried_again_when_the_corpus_has_grown(score, corpus, documents, tmp_path):
    good = (corpus / "part-3.jsonl").read_bytes()
    (corpus / "part-3.jsonl").write_bytes(b"")
    (corpus / "part-3.jsonl").rename(corpus / "part-3.parquet")
    score(max_failed_shards=1)
    grow(corpus, documents)
    (corpus / "part-3.parquet").unlink()
    (corpus / "part-3.jsonl").write_bytes(good)
    assert score().counts["scored"] == 56
    score(tmp_path / "at-once")
    assert output_digests(tmp_path / "out") == output_digests(tmp_path / "at-once")


def test_a_copy_of_a_directory_without_its_results_is_scored_again(score, corpus, documents, tmp_path):
    score()
    shutil.copytree(tmp_path / "out", tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    grow(corpus, documents)
    copied = score(tmp_path / "copy")
    assert (copied.shards_new, copied.shards_reused) == (7, 0)
    assert copied.digest == score().digest


def test_a_rank_that_begins_while_another_finishes_keeps_its_manifest(score, corpus, monkeypatch):
    output = "memory://two-ranks/out"  # nothing is locked there
    score_one, reuse_finished = run.score_or_fail, run._reuse_finished
    manifests = []

    def fail_for_the_first(job, shard, head, out, advance):
        if shard.uri.endswith("part-1.jsonl"):
            return fail_shard(out, shard, "a broken device")
        return score_one(job, shard, head, out, advance)

    def reuse_after_the_other_rank(*arguments):
        monkeypatch.setattr(run, "_reuse_finished", reuse_finished)
        manifests.append(score(output, rank=Rank(0, 2)))
        return reuse_finished(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "score_or_fail", fail_for_the_first)
        assert score(output, max_failed_shards=1).counts["scored"] == 32
    monkeypatch.setattr(run, "_reuse_finished", reuse_after_the_other_rank)
    assert score(output, rank=Rank(1, 2)).counts["scored"] == 40
    assert find_manifest(output) == manifests[0]
    fsspec.filesystem("memory").rm("/two-ranks", recursive=True)
