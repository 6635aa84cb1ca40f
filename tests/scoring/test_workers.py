"""Several workers and ranks on one corpus: whoever is killed, the bytes are those of one undisturbed process."""

import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

import fsspec
import psutil
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.scoring import workers
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, find_rank, score_corpus, score_rank
from ml_filter.scoring.workers import Event, Workers, score_with
from tests.scoring.corpora import (
    command,
    content,
    is_alive,
    kill,
    shard_times,
    start,
    wait_for_worker,
    wait_until,
    workers_at,
)

TWO = ScoreConfig(workers=2)


def score(head: str, corpus: Path, output: Path | str, config: ScoreConfig = TWO, rank: Rank | None = None):
    source = SourceConfig(paths=[str(corpus)])
    return score_rank(head, source, config, output, rank) if rank else score_corpus(head, source, config, output)


def spawned() -> list[int]:
    """The processes that this one has started for multiprocessing, but for its resource tracker."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [process.pid] if any("spawn_main" in argument for argument in process.cmdline()) else []
    return found


# --- Workers ---------------------------------------------------------------------------------------------------------


def test_two_workers_give_the_bytes_of_one_process_although_one_is_killed_over_a_shard(
    cheap_head, corpus, undisturbed, tmp_path
):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(score, cheap_head, corpus, tmp_path / "out")
        kill(wait_for_worker(tmp_path / "out"))
        manifest = running.result()
    assert manifest.counts["scored"] == 3600
    assert content(tmp_path / "out") == undisturbed


def test_killed_at_random_again_and_again_it_ends_with_the_same_bytes(cheap_head, corpus, undisturbed, tmp_path):
    output = tmp_path / "out"
    kept: dict[str, int] = {}
    for shards in sorted(random.sample(range(4), 2)):
        with start(cheap_head, corpus, output, "--workers", "2") as running:
            wait_until(lambda count=shards: workers_at(output) and len(list(output.glob("shards/*"))) >= count, running)
            orphans = workers_at(output)
        wait_until(lambda left=orphans: not any(map(is_alive, left)))  # they end with the one that started them
        assert find_manifest(str(output)) is None
        done = {path.name.removesuffix(".json") for path in output.glob(".progress/0*.json")}
        if (output / "shards").exists():
            kept |= {name: time for name, time in shard_times(output).items() if name.removesuffix(".parquet") in done}
    score(cheap_head, corpus, output)
    assert content(output) == undisturbed
    assert kept.items() <= shard_times(output).items()


def test_a_shard_that_kills_every_worker_fails_and_the_others_are_scored(cheap_head, corpus, undisturbed, tmp_path):
    output = tmp_path / "out"
    with start(cheap_head, corpus, output, "--workers", "2") as running:
        wait_until(lambda: kill(*workers_at(output, "00002-part-2")), running)
        _, errors = running.communicate()
    assert running.returncode == 1
    assert "part-2.parquet (3 workers died over it, the last: SIGKILL, as when memory runs out)" in errors
    assert [failed.name for failed in find_manifest(str(output)).shards_failed] == ["00002-part-2"]
    kept = shard_times(output)
    assert len(kept) == 5
    score(cheap_head, corpus, output)
    assert content(output) == undisturbed
    assert kept.items() < shard_times(output).items()


def test_ctrl_c_ends_the_command_and_its_workers_and_a_rerun_goes_on(cheap_head, corpus, undisturbed, tmp_path):
    with start(cheap_head, corpus, tmp_path / "out", "--workers", "2") as running:
        wait_until(lambda: workers_at(tmp_path / "out"), running)
        at_work = workers_at(tmp_path / "out")
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate()
    assert running.returncode not in (0, 1, 2)
    assert "Traceback" not in errors
    assert not any(map(is_alive, at_work))
    score(cheap_head, corpus, tmp_path / "out", ScoreConfig())
    assert content(tmp_path / "out") == undisturbed


def test_workers_that_all_die_before_they_have_a_shard_end_the_run(cheap_head, corpus, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(score, cheap_head, corpus, tmp_path / "out")
        wait_until(lambda: kill(*spawned()) or running.done())
        with pytest.raises(InputError, match="no worker lives until it has a shard; the last died so: SIGKILL"):
            running.result()


def test_what_is_wrong_with_any_worker_is_said_once(cheap_head, corpus, tmp_path):
    head = shutil.copytree(cheap_head, tmp_path / "head")
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="holds no complete hashing head"):
        score(str(head), corpus, tmp_path / "broken")
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "shards" / "00005-part-5.parquet").mkdir()
    with pytest.raises(InputError, match="out cannot be written to: "):
        score(cheap_head, corpus, tmp_path / "out")


PRODUCTS = """
import torch
from ml_filter.heads.arithmetic import steady_arithmetic
steady_arithmetic()
draw = torch.Generator().manual_seed(0)
weights = torch.randn(2688, 150, generator=draw)
for rows in range(1, 41):
    embeddings = torch.randn(rows, 2688, generator=draw)
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made.append(embeddings @ weights)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2]), rows
"""


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch multiplies without MKL")
def test_products_do_not_depend_on_the_number_of_threads():
    subprocess.run([sys.executable, "-c", PRODUCTS], check=True)


# --- Who gets which shard --------------------------------------------------------------------------------------------


class Mortal(Workers):
    """Workers that commit a row a shard, or die when they start, before they commit or after, as a script says."""

    def __init__(self, count: int, out: OutputDirectory, script: list[str]) -> None:
        self.count, self.out, self.script = count, out, script
        self.happened: list[Event] = []
        self.alive: set[int] = set()
        self.begun: list[str] = []

    def start(self, worker: int) -> None:
        assert worker not in self.alive
        dies = self._next() == "at start"
        self.happened.append(Event(worker, "died", reason="at start") if dies else Event(worker, "ready"))
        self.alive -= {worker}
        self.alive |= set() if dies else {worker}

    def give(self, worker: int, shard: InputShard) -> None:
        assert worker in self.alive
        self.begun.append(shard.name)
        fate = self._next()
        self.happened.append(Event(worker, "rows", 1))
        if fate != "before":
            with self.out.new_shard(shard.name) as writer, self.out.new_rejects(shard.name) as rejects:
                writer.write(pa.table({"id": [shard.name]}))
            self.out.commit(shard.name, writer, rejects, {"read": 1})
        self.happened.append(Event(worker, "done") if fate in ("well", "at start") else Event(worker, "died"))
        if fate in ("before", "after"):
            self.alive.remove(worker)

    def events(self) -> list[Event]:
        assert self.happened, "nothing will ever happen"
        happened, self.happened = self.happened[:1], self.happened[1:]
        return happened

    def stop(self) -> None:
        self.alive.clear()

    def _next(self) -> str:
        return self.script.pop() if self.script else "well"


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(0, 6),
    st.lists(st.sampled_from(["well", "at start", "before", "after"]), max_size=25),
)
def test_whoever_dies_when_each_shard_is_committed_once_or_failed_after_enough_deaths(count, shards, script):
    names = [InputShard(f"file-{i}", "parquet", str(i)) for i in range(shards)]
    told = []
    with TemporaryDirectory() as directory, OutputDirectory(directory, "test", {}, []) as out:
        mortal = Mortal(count, out, list(script))
        try:
            score_with(mortal, names, out, 3, told.append)
        except InputError as error:
            assert "no worker lives" in str(error)
            assert script.count("at start") >= 3 * count
            return
        finally:
            assert not mortal.alive
        results = [out.done(shard.name) for shard in names]
    for shard, result in zip(names, results, strict=True):
        assert mortal.begun.count(shard.name) == 3 if result.failed else mortal.begun.count(shard.name) <= 3
    assert sum(told) == sum(result.counts["read"] for result in results)


def test_shards_that_become_visible_one_after_the_other_are_each_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_VISIBLE_WITHIN_S", 2.0)
    shards = [InputShard(f"file-{i}", "parquet", str(i)) for i in range(4)]
    with OutputDirectory(tmp_path, "test", {}, []) as out:
        timers = [Timer(i + 1.0, out.fail, (shards[i].name, "", "late")) for i in range(3)]
        for timer in timers:
            timer.start()
        workers._wait_until_visible(out, shards[:3])
        with pytest.raises(InputError, match="scored file-3, but not to the "):
            workers._wait_until_visible(out, shards)


# --- Ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_that_know_nothing_of_each_other_give_the_bytes_of_one_process(cheap_head, corpus, undisturbed, tmp_path):
    with ExitStack() as stack:
        options = [("--rank", str(i), "--world-size", "3") for i in range(3)]
        ranks = [stack.enter_context(start(cheap_head, corpus, tmp_path / "out", *option)) for option in options]
        said = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], said
    assert sum("3,600" in output for output, _ in said) >= 1
    assert content(tmp_path / "out") == undisturbed


def test_only_the_rank_that_finds_all_shards_done_writes_the_manifest(cheap_head, corpus, undisturbed, tmp_path):
    config = ScoreConfig()
    assert score(cheap_head, corpus, tmp_path / "out", config, Rank(2, 3)) is None
    assert score(cheap_head, corpus, tmp_path / "out", TWO, Rank(0, 3)) is None
    assert sorted(shard_times(tmp_path / "out")) == [f"0000{i}-part-{i}.parquet" for i in (0, 2, 3, 5)]
    assert score(cheap_head, corpus, tmp_path / "out", config, Rank(1, 3)).counts["scored"] == 3600
    assert content(tmp_path / "out") == undisturbed
    assert score(cheap_head, corpus, tmp_path / "out", config, Rank(1, 3)).counts["scored"] == 3600


def test_ranks_share_a_url_where_there_are_no_locks(cheap_head, corpus, undisturbed):
    made = [score(cheap_head, corpus, "memory://ranks", ScoreConfig(), Rank(number, 2)) for number in (0, 1)]
    assert made[0] is None
    assert made[1].digest == undisturbed["manifest"]
    memory = fsspec.filesystem("memory")
    assert not [path for path in memory.find("/ranks") if "progress" in path]
    memory.rm("/ranks", recursive=True)


def test_while_a_rank_writes_neither_it_nor_the_whole_may_be_begun_again(cheap_head, corpus, undisturbed, tmp_path):
    with start(cheap_head, corpus, tmp_path / "out", "--rank", "0", "--world-size", "2") as running:
        wait_until(lambda: list(tmp_path.glob("out/.progress/scratch/rank-0/*")), running)
        running.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match="is being written by another process"):
            score(cheap_head, corpus, tmp_path / "out", ScoreConfig())
        with pytest.raises(InputError, match="is being written by another process"):
            score(cheap_head, corpus, tmp_path / "out", ScoreConfig(), Rank(0, 2))
    score(cheap_head, corpus, tmp_path / "out", ScoreConfig())
    assert content(tmp_path / "out") == undisturbed


def test_a_rank_answers_for_its_own_shards_and_does_them_again(cheap_head, corpus, tmp_path):
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    good = (broken / "part-1.parquet").read_bytes()
    (broken / "part-1.parquet").write_bytes(good[:1000])
    with pytest.raises(TooManyFailures, match="1 of 3 shards failed"):
        score(cheap_head, broken, tmp_path / "out", ScoreConfig(), Rank(1, 2))
    manifest = score(cheap_head, broken, tmp_path / "out", ScoreConfig(), Rank(0, 2))
    assert (len(manifest.shards), len(manifest.shards_failed)) == (5, 1)
    (broken / "part-1.parquet").write_bytes(good)
    assert score(cheap_head, broken, tmp_path / "out", ScoreConfig(), Rank(1, 2)).counts["scored"] == 3600


@given(st.integers(1, 12), st.integers(0, 40))
def test_ranks_share_every_shard_out_once(world, shards):
    listed = [InputShard(f"file-{i}", "parquet", str(i)) for i in range(shards)]
    shares = [Rank(number, world).share(listed) for number in range(world)]
    assert sorted((s for share in shares for s in share), key=listed.index) == listed
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("rank", "world", "environment", "found"),
    [
        ("2", 3, {}, Rank(2, 3)),
        ("auto", None, {"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Rank(5, 8)),
        ("auto", None, {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Rank(0, 2)),
        ("auto", None, {"SLURM_PROCID": "5"}, "the environment has none of RANK with WORLD_SIZE"),
        ("auto", None, {"RANK": "2", "WORLD_SIZE": "2"}, "rank 2: ranks of 2 are numbered 0 to 1"),
        ("3", 3, {}, "rank 3: ranks of 3 are numbered 0 to 2"),
        ("-1", 3, {}, "rank -1: ranks of 3 are numbered 0 to 2"),
        ("1", None, {}, "rank 1: of how many"),
    ],
)
def test_a_rank_is_given_or_found_in_the_environment(rank, world, environment, found):
    if isinstance(found, Rank):
        assert find_rank(rank, world, environment) == found
    else:
        with pytest.raises(ConfigError, match=found):
            find_rank(rank, world, environment)


def test_the_command_says_that_shards_of_other_ranks_are_open_and_that_workers_are_idle(cheap_head, corpus, tmp_path):
    call = command(cheap_head, corpus, tmp_path / "out", "--rank", "0", "--world-size", "6", "--workers", "3")
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    assert "not yet those of all others" in done.stdout
    assert "1 shards are open, 2 of 3 workers stay idle" in done.stderr
