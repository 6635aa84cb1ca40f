"""A real Ray cluster of two workers on this machine, one of which is killed."""

import secrets
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError
from ml_filter.scoring import distributed
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, score_corpus, score_rank
from tests.scoring.corpora import content, kill, start, wait_for_worker, wait_until


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


@pytest.fixture
def small_cluster(monkeypatch):
    """A Ray of one CPU and no GPU in this process."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as logs:
        monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init("local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False, _temp_dir=logs)
        yield
        ray.shutdown()


def test_a_worker_that_fits_on_no_node_is_refused_and_one_that_finds_none_free_waits_with_a_warning(
    small_cluster, cheap_head, corpus, undisturbed, tmp_path, monkeypatch
):
    source = SourceConfig(paths=[str(corpus)])
    for asked in ({"worker_gpus": 1, "worker_cpus": 1}, {"worker_cpus": 64}):
        with pytest.raises(
            ConfigError, match=r"which no node .* has \(nodes: 1 with 1 CPUs and 0 GPUs\): ask for less"
        ):
            score_corpus(cheap_head, source, ScoreConfig(ray="local", **asked), tmp_path / "out")
    monkeypatch.setattr(distributed, "_READY_WITHIN_S", 1.0)
    said: list[str] = []
    listener = logger.add(said.append, level="WARNING", format="{message}")
    hog = ray.remote(num_cpus=1)(Counter).remote()
    ray.get(hog.total.remote())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            score_corpus, cheap_head, source, ScoreConfig(ray="local", worker_cpus=1), tmp_path / "out"
        )
        wait_until(lambda: said or running.done())
        ray.kill(hog)
        running.result()
    logger.remove(listener)
    assert "No worker is ready after 1 s. Each asks the cluster for 1 CPUs and 0 GPUs; free are 0 CPUs" in said[0]
    assert content(tmp_path / "out") == undisturbed


def test_without_ray_the_way_to_get_it_is_named(cheap_head, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; `pip install 'ml-filter\[ray\]'`"):
        score_corpus(cheap_head, SourceConfig(paths=[str(corpus)]), ScoreConfig(ray="local"), tmp_path / "out")


def test_ranks_and_ray_are_two_ways_of_which_one_is_taken(cheap_head, corpus, tmp_path):
    source = SourceConfig(paths=[str(corpus)])
    with pytest.raises(ConfigError, match="give rank or ray, not both"):
        score_rank(cheap_head, source, ScoreConfig(ray="local"), tmp_path / "out", Rank(0, 2))
