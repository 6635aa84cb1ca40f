"""Scoring on a real Ray cluster on this machine."""

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
from ml_filter.scoring import ray_workers
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, score_corpus, score_rank
from tests.scoring.corpora import kill, output_digests, start, wait_for_worker, wait_until


@pytest.mark.slow
def test_two_ray_workers_write_the_bytes_of_one_process_although_one_is_killed(
    hashing_head, large_corpus, large_corpus_scored_by_one_process, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as logs:
        monkeypatch.setenv("RAY_TMPDIR", logs)
        with start(hashing_head, large_corpus, output, "--workers", "2", "--ray", "local") as running:
            kill(wait_for_worker(output, running))
            shown, errors = running.communicate()
        assert running.returncode == 0, errors
        assert "2,400" in shown
        assert "A worker died" in errors
    assert output_digests(output) == large_corpus_scored_by_one_process


@pytest.fixture
def small_cluster(monkeypatch):
    """A Ray cluster of one CPU and no GPU in this process."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as logs:
        monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init("local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False, _temp_dir=logs)
        yield
        ray.shutdown()


@pytest.mark.slow
def test_a_worker_too_large_for_every_node_is_refused_and_one_without_a_free_node_waits_with_a_warning(
    small_cluster, hashing_head, corpus, scored_by_one_process, tmp_path, monkeypatch
):
    source = SourceConfig(paths=[str(corpus)])
    for request in ({"worker_gpus": 1, "worker_cpus": 1}, {"worker_cpus": 64}):
        message = r"more than any node of the Ray cluster has \(nodes: 1 with 1 CPUs and 0 GPUs\)"
        with pytest.raises(ConfigError, match=message):
            score_corpus(hashing_head, source, ScoreConfig(ray="local", **request), tmp_path / "out")
    monkeypatch.setattr(ray_workers, "_READY_WITHIN_S", 1.0)
    warnings: list[str] = []
    listener = logger.add(warnings.append, level="WARNING", format="{message}")
    busy = ray.remote(num_cpus=1)(Counter).remote()
    ray.get(busy.total.remote())
    with ThreadPoolExecutor(1) as pool:
        config = ScoreConfig(ray="local", worker_cpus=1)
        running = pool.submit(score_corpus, hashing_head, source, config, tmp_path / "out")
        wait_until(lambda: warnings or running.done())
        ray.kill(busy)
        running.result()
    logger.remove(listener)
    expected = "No worker is ready after 1 s. Each requests 1 CPUs and 0 GPUs of the cluster, which has 0 CPUs"
    assert expected in warnings[0]
    assert output_digests(tmp_path / "out") == scored_by_one_process


def test_without_ray_the_error_says_how_to_install_it(hashing_head, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="--ray needs ray; install the extra ray with `make setup EXTRAS=ray`"):
        score_corpus(hashing_head, SourceConfig(paths=[str(corpus)]), ScoreConfig(ray="local"), tmp_path / "out")


def test_a_rank_cannot_be_combined_with_ray(hashing_head, corpus, tmp_path):
    source = SourceConfig(paths=[str(corpus)])
    with pytest.raises(ConfigError, match="give either a rank or ray, not both"):
        score_rank(hashing_head, source, ScoreConfig(ray="local"), tmp_path / "out", Rank(0, 2))
