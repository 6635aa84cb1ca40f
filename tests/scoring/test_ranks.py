"""Several ranks score one corpus without communicating; the result is that of one process."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.scoring import run
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, find_rank, score_corpus, score_rank
from tests.scoring.corpora import output_digests, write_times

pytestmark = pytest.mark.slow


@pytest.fixture
def score(hashing_head, corpus, tmp_path):
    """Score the corpus as one rank, or without a rank."""

    def call(rank=None, source=corpus, output=tmp_path / "out"):
        arguments = (hashing_head, SourceConfig(paths=[str(source)]), ScoreConfig(), output)
        return score_rank(*arguments, rank) if rank else score_corpus(*arguments)

    return call


def test_ranks_at_the_same_time_write_the_bytes_of_one_process(score, scored_by_one_process, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        manifests = list(pool.map(score, [Rank(number, 3) for number in range(3)]))
    assert any(manifest and manifest.counts["scored"] == 120 for manifest in manifests)
    assert output_digests(tmp_path / "out") == scored_by_one_process


def test_only_the_rank_that_finds_all_shards_finished_writes_the_manifest(score, scored_by_one_process, tmp_path):
    assert score(Rank(2, 3)) is None
    assert score(Rank(0, 3)) is None
    assert sorted(name[:7] for name in write_times(tmp_path / "out")) == [f"part-{i}-" for i in (0, 2, 3, 5)]
    assert score(Rank(1, 3)).counts["scored"] == 120
    assert output_digests(tmp_path / "out") == scored_by_one_process
    assert score(Rank(1, 3)).counts["scored"] == 120


def test_ranks_can_write_to_a_url_which_has_no_locks(score, scored_by_one_process):
    manifests = [score(Rank(number, 2), output="memory://ranks") for number in (0, 1)]
    assert manifests[0] is None
    assert manifests[1].digest == scored_by_one_process["manifest"]
    memory = fsspec.filesystem("memory")
    assert not [path for path in memory.find("/ranks") if "progress" in path]
    memory.rm("/ranks", recursive=True)


def test_while_a_rank_writes_the_same_rank_and_the_whole_run_are_refused(
    score, scored_by_one_process, tmp_path, monkeypatch
):
    score_one_shard = run.score_or_fail

    def score_while_others_try(*arguments):
        for other in (None, Rank(0, 2)):
            with pytest.raises(InputError, match="is being written by another process"):
                score(other)
        return score_one_shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run, "score_or_fail", score_while_others_try)
        assert score(Rank(0, 2)) is None
    score()
    assert output_digests(tmp_path / "out") == scored_by_one_process


def test_a_rank_fails_for_its_own_shards_only_and_scores_them_again(score, corpus, tmp_path):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    good = (damaged / "part-1.parquet").read_bytes()
    (damaged / "part-1.parquet").write_bytes(good[:1000])
    with pytest.raises(TooManyFailures, match="1 of 3 shards failed"):
        score(Rank(1, 2), damaged)
    manifest = score(Rank(0, 2), damaged)
    assert (len(manifest.shards), len(manifest.shards_failed)) == (5, 1)
    (damaged / "part-1.parquet").write_bytes(good)
    assert score(Rank(1, 2), damaged).counts["scored"] == 120


@given(st.integers(1, 12), st.integers(0, 40))
def test_each_shard_belongs_to_one_rank_and_ranks_differ_by_at_most_one_shard(world_size, count):
    shards = [InputShard(f"file-{i}", "parquet", str(i)) for i in range(count)]
    shares = [Rank(number, world_size).share(shards) for number in range(world_size)]
    assert sorted((shard for share in shares for shard in share), key=shards.index) == shards
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("rank", "world_size", "environment", "expected"),
    [
        ("2", 3, {}, Rank(2, 3)),
        ("auto", None, {"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Rank(5, 8)),
        ("auto", None, {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Rank(0, 2)),
    ],
)
def test_a_rank_is_given_as_a_number_or_found_in_the_environment(rank, world_size, environment, expected):
    assert find_rank(rank, world_size, environment) == expected


@pytest.mark.parametrize(
    ("rank", "world_size", "environment", "message"),
    [
        ("auto", None, {"SLURM_PROCID": "5"}, "needs RANK and WORLD_SIZE, or SLURM_PROCID and SLURM_NTASKS in the env"),
        ("auto", None, {"RANK": "2", "WORLD_SIZE": "2"}, "invalid rank 2: the ranks of 2 are numbered 0 to 1"),
        ("3", 3, {}, "invalid rank 3: the ranks of 3 are numbered 0 to 2"),
        ("-1", 3, {}, "invalid rank -1: the ranks of 3 are numbered 0 to 2"),
        ("1", None, {}, "--rank requires --world-size"),
    ],
)
def test_an_invalid_rank_is_an_error(rank, world_size, environment, message):
    with pytest.raises(ConfigError, match=message):
        find_rank(rank, world_size, environment)


def test_the_command_says_that_other_ranks_are_not_finished(hashing_head, corpus, tmp_path, capsys):
    options = ["--rank", "0", "--world-size", "6", "--output", str(tmp_path / "out")]
    assert main(["score", hashing_head, str(corpus), *options]) == 0
    assert "the shards of this rank are done" in capsys.readouterr().out
