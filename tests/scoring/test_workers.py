"""Several workers score one corpus; whichever dies at whichever point, the result is that of one process."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryDirectory
from threading import Timer

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError, TooManyFailures
from ml_filter.scoring import workers
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.scoring.workers import Event, Workers, score_with
from tests.kills import kill_at
from tests.scoring.corpora import (
    is_alive,
    kill,
    output_digests,
    start,
    wait_for_worker,
    wait_until,
    workers_writing,
    write_times,
)
from tests.small import sign_head


def score(head, corpus, output, **settings):
    return score_corpus(head, SourceConfig(paths=[str(corpus)]), ScoreConfig(**settings), output)


# --- Workers in this process -----------------------------------------------------------------------------------------


SHARD_POINTS = [
    ("before", r"shards/part-2-\w+\.parquet"),
    ("after", r"shards/part-2-\w+\.parquet"),
    ("after", r"\.progress/part-2-\w+\.rejects.jsonl"),
    ("after", r"\.progress/part-2-\w+\.json"),
]


@pytest.mark.parametrize(("when", "name"), SHARD_POINTS)
def test_a_worker_that_dies_while_committing_a_shard_is_replaced(
    in_process, hashing_head, corpus, scored_by_one_process, tmp_path, when, name
):
    with kill_at(when, name):
        assert score(hashing_head, corpus, tmp_path / "out", workers=2).counts["scored"] == 120
    assert output_digests(tmp_path / "out") == scored_by_one_process


def test_a_shard_that_kills_every_worker_fails_and_a_rerun_scores_only_that_shard(
    in_process, hashing_head, corpus, scored_by_one_process, tmp_path
):
    output = tmp_path / "out"
    with kill_at("after", r"shards/part-2-\w+\.parquet", every_time=True), pytest.raises(TooManyFailures) as failure:
        score(hashing_head, corpus, output, workers=2)
    assert "part-2.parquet (3 workers died while scoring it; last cause: a kill)" in str(failure.value)
    [failed] = find_manifest(str(output)).shards_failed
    assert failed.source.endswith("part-2.parquet")
    times = write_times(output)
    assert len(times) == 5
    score(hashing_head, corpus, output, workers=2)
    assert output_digests(output) == scored_by_one_process
    assert times.items() < write_times(output).items()


def test_an_error_that_every_worker_would_have_ends_the_run(in_process, hashing_head, corpus, tmp_path):
    head = shutil.copytree(hashing_head, tmp_path / "head")
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    sign_head(head)
    with pytest.raises(InputError, match="hashing head"):
        score(str(head), corpus, tmp_path / "broken", workers=2)
    last = list_shards(SourceConfig(paths=[str(corpus)]))[0][5]
    (tmp_path / "out" / "shards" / f"{last.name}.parquet").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot write to .*out: "):
        score(hashing_head, corpus, tmp_path / "out", workers=2)


def test_workers_without_a_shard_are_not_started(in_process, hashing_head, corpus, tmp_path):
    lines: list[str] = []
    listener = logger.add(lines.append, format="{message}")
    score(hashing_head, corpus, tmp_path / "out", workers=9)
    logger.remove(listener)
    assert any("3 of 9 workers are idle: only 6 shards are left" in line for line in lines)


# --- Worker processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced(hashing_head, large_corpus, large_corpus_scored_by_one_process, tmp_path):
    output = tmp_path / "out"
    warnings: list[str] = []
    listener = logger.add(warnings.append, level="WARNING", format="{message}")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(score, hashing_head, large_corpus, output, workers=2)
        kill(wait_for_worker(output))
        assert running.result().counts["scored"] == 2400
    logger.remove(listener)
    assert "A worker died while scoring" in warnings[0]
    assert "SIGKILL, often because memory ran out" in warnings[0]
    assert output_digests(output) == large_corpus_scored_by_one_process


@pytest.mark.slow
def test_workers_end_with_a_killed_command_and_a_rerun_keeps_its_finished_shards(
    hashing_head, large_corpus, large_corpus_scored_by_one_process, tmp_path
):
    output = tmp_path / "out"
    with start(hashing_head, large_corpus, output, "--workers", "2") as running:
        wait_until(lambda: workers_writing(output) and list(output.glob(".progress/part-*.json")), running)
        orphans = workers_writing(output)
    wait_until(lambda: not any(map(is_alive, orphans)))
    assert find_manifest(str(output)) is None
    finished = {path.name.removesuffix(".json") for path in output.glob(".progress/part-*.json")}
    kept = {name: time for name, time in write_times(output).items() if name.removesuffix(".parquet") in finished}
    score(hashing_head, large_corpus, output)
    assert output_digests(output) == large_corpus_scored_by_one_process
    assert kept
    assert kept.items() <= write_times(output).items()


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_workers_without_a_traceback(hashing_head, large_corpus, tmp_path):
    with start(hashing_head, large_corpus, tmp_path / "out", "--workers", "2") as running:
        wait_for_worker(tmp_path / "out", running)
        pids = workers_writing(tmp_path / "out")
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate()
    assert running.returncode not in (0, 1, 2)
    assert "Traceback" not in errors
    assert not any(map(is_alive, pids))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch multiplies without MKL")
def test_matrix_products_do_not_depend_on_the_number_of_threads():
    """This process called `steady_arithmetic` before it multiplied anything."""
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2688, 150, generator=generator)
    for rows in range(1, 41):
        embeddings = torch.randn(rows, 2688, generator=generator)
        products = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            products.append(embeddings @ weights)
        torch.set_num_threads(before)
        assert torch.equal(products[0], products[1]), rows
        assert torch.equal(products[0], products[2]), rows


# --- Assigning shards ------------------------------------------------------------------------------------------------


class ScriptedWorkers(Workers):
    """Workers that commit one row per shard. The script says when they die: at the start, before or after a commit."""

    def __init__(self, count: int, out: OutputDirectory, script: list[str]) -> None:
        self.count, self.out, self.script = count, out, script
        self.pending: list[Event] = []
        self.alive: set[int] = set()
        self.assigned: list[str] = []

    def start(self, worker: int) -> None:
        assert worker not in self.alive
        if self._next() == "at start":
            self.pending.append(Event(worker, "died", reason="at start"))
        else:
            self.pending.append(Event(worker, "ready"))
            self.alive.add(worker)

    def assign(self, worker: int, shard: InputShard) -> None:
        assert worker in self.alive
        self.assigned.append(shard.name)
        fate = self._next()
        self.pending.append(Event(worker, "rows", 1))
        if fate != "before":
            with self.out.new_shard(shard.name) as writer, self.out.new_rejects(shard.name) as rejects:
                writer.write(pa.table({"id": [shard.name]}))
            self.out.commit(shard.name, writer, rejects, {"read": 1})
        self.pending.append(Event(worker, "died" if fate in ("before", "after") else "done"))
        if fate in ("before", "after"):
            self.alive.remove(worker)

    def events(self) -> list[Event]:
        assert self.pending, "the schedule waits although nothing can happen"
        return [self.pending.pop(0)]

    def stop(self) -> None:
        self.alive.clear()

    def _next(self) -> str:
        return self.script.pop() if self.script else "lives"


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(0, 6),
    st.lists(st.sampled_from(["lives", "at start", "before", "after"]), max_size=25),
)
def test_each_shard_is_committed_once_or_fails_after_three_deaths(count, shard_count, script):
    shards = [InputShard(f"file-{i}", "parquet", str(i)) for i in range(shard_count)]
    advances = []
    with TemporaryDirectory() as directory, OutputDirectory(directory, "test", {}, []) as out:
        scripted = ScriptedWorkers(count, out, list(script))
        try:
            score_with(scripted, shards, out, 3, advances.append)
        except InputError as error:
            assert "every worker died before it got a shard" in str(error)
            assert script.count("at start") >= 3 * count
            return
        finally:
            assert not scripted.alive
        results = [out.finished_shard(shard.name) for shard in shards]
    for shard, result in zip(shards, results, strict=True):
        attempts = scripted.assigned.count(shard.name)
        assert attempts == 3 if result.failed else attempts <= 3
    assert sum(advances) == sum(result.counts["read"] for result in results)


def test_results_that_a_file_system_shows_late_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_VISIBLE_WITHIN_S", 0.5)
    monkeypatch.setattr(workers, "_POLL_S", 0.05)
    shards = [InputShard(f"file-{i}", "parquet", str(i)) for i in range(3)]
    with OutputDirectory(tmp_path, "test", {}, []) as out:
        timers = [Timer(0.2 * (i + 1), out.record_failure, (shards[i].name, "", "late")) for i in range(2)]
        for timer in timers:
            timer.start()
        workers._wait_until_visible(out, shards[:2])
        with pytest.raises(InputError, match="a worker scored file-2, but its output does not appear in "):
            workers._wait_until_visible(out, shards)
