"""A real Ray cluster of two workers on this machine, one of which is killed."""

import sys
import tempfile

import pytest
from corpora import content, kill, start, wait_for_worker

from ml_filter.errors import ConfigError
from ml_filter.scoring.run import Rank, score_corpus, score_rank
from ml_filter.settings import ScoreConfig, SourceConfig


def test_two_workers_on_ray_give_the_bytes_of_one_process_although_one_is_killed_over_a_shard(
    cheap_head, corpus, undisturbed, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as logs:
        monkeypatch.setenv("RAY_TMPDIR", logs)
        with start(cheap_head, corpus, output, "--workers", "2", "--ray", "local") as running:
            kill(wait_for_worker(output, running))
            said, errors = running.communicate()
        assert running.returncode == 0, errors
        assert "3,600" in said
        assert "A worker died" in errors
    assert content(output) == undisturbed


def test_without_ray_the_way_to_get_it_is_named(cheap_head, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; `pip install 'ml-filter\[ray\]'`"):
        score_corpus(cheap_head, SourceConfig(paths=[str(corpus)]), ScoreConfig(ray="local"), tmp_path / "out")


def test_ranks_and_ray_are_two_ways_of_which_one_is_taken(cheap_head, corpus, tmp_path):
    source = SourceConfig(paths=[str(corpus)])
    with pytest.raises(ConfigError, match="give rank or ray, not both"):
        score_rank(cheap_head, source, ScoreConfig(ray="local"), tmp_path / "out", Rank(0, 2))
