"""Several workers over the shards of a corpus: what each does, who gets which shard, and what happens when one dies.

`score_with` hands out shards and knows nothing of processes; `LocalWorkers` are processes on this machine, and
`distributed.RayWorkers` are actors on a cluster. A worker that dies is replaced and its shard begun again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal

from loguru import logger

from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.errors import InputError, MlFilterError
from ml_filter.heads.device import local_rank
from ml_filter.heads.engine import load_engine
from ml_filter.logs import configure_logging
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.cores import usable_cores
from ml_filter.scoring.job import ScoringJob, described, fail_shard, score_shard

_VISIBLE_WITHIN_S = 60.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""Read by torch and the linear algebra libraries, and by tokenizers."""


@dataclass(frozen=True)
class Event:
    """What a worker has to say.

    - ready    its engine is loaded, it can be given a shard
    - rows     it has scored so many more documents of its shard
    - done     its shard is committed; `rows` are those that it has not told of
    - died     it is gone, and why
    - refused  what is wrong would be wrong with any worker; the run ends with this error
    """

    worker: int
    kind: Literal["ready", "rows", "done", "died", "refused"]
    rows: int = 0
    reason: str = ""
    error: MlFilterError | None = None


class ShardWorker:
    """What runs in a worker's process: an engine, and the way into the output directory."""

    def __init__(self, worker: int, job: ScoringJob, part: str | None, threads: int) -> None:
        self.worker, self.job, self.threads = worker, job, threads
        me = f"{socket.gethostname()}-{os.getpid()}"
        self.out = job.directory(f"{part}/{me}" if part else me, is_helper=True)

    def load(self) -> Event:
        """Load the engine."""
        import torch

        configure_logging(level="WARNING")
        torch.set_num_threads(self.threads)
        try:
            self.engine = load_engine(self.job.model_directory, self._config())
        except MlFilterError as error:
            return Event(self.worker, "refused", error=error)
        except Exception as error:
            return Event(self.worker, "died", reason=described(error))
        return Event(self.worker, "ready")

    def _config(self) -> ScoreConfig:
        """The job's, with a device of the worker's own where the settings leave the choice."""
        import torch

        config, gpus = self.job.engine_config, torch.cuda.device_count()
        if config.ray and config.device == "auto" and not config.worker_gpus:
            return config.model_copy(update={"device": "cpu"})
        if gpus > 1 and config.device in ("auto", "cuda"):
            number = local_rank() * self.job.config.workers + self.worker
            return config.model_copy(update={"device": f"cuda:{number % gpus}"})
        return config

    def score(self, shard: InputShard, tell: Callable[[Event], None] | None = None) -> Event:
        """Score a shard. What the engine raises is the end of this worker: a device may be in a bad state."""
        told = 0

        def advance(rows: int) -> None:
            nonlocal told
            if tell is not None:
                told += rows
                tell(Event(self.worker, "rows", rows))

        try:
            result = score_shard(self.job, shard, self.engine, self.out, advance)
        except MlFilterError as error:
            return Event(self.worker, "refused", error=error)
        except Exception as error:
            return Event(self.worker, "died", reason=described(error))
        finally:
            self.out.clear_scratch()  # a worker is killed when it is no longer needed, so this is its last chance
        return Event(self.worker, "done", result.counts["read"] - told)


# --- Who gets which shard --------------------------------------------------------------------------------------------


class Workers(ABC):
    """Workers by number, from 0 to `count` - 1; each scores one shard at a time."""

    count: int

    @abstractmethod
    def start(self, worker: int) -> None:
        """Start a worker, or another one in the place of one that died."""

    @abstractmethod
    def give(self, worker: int, shard: InputShard) -> None:
        """Let a worker that is ready score a shard."""

    @abstractmethod
    def events(self) -> Sequence[Event]:
        """What has happened; waits until something has."""

    @abstractmethod
    def stop(self) -> None:
        """End all workers, whatever they are doing."""


def score_with(
    workers: Workers,
    shards: Sequence[InputShard],
    out: OutputDirectory,
    attempts: int,
    advance: Callable[[int], None],
) -> None:
    """Have every shard scored, or failed with the reason; the largest first, so that all workers end together.

    Args:
        attempts: a shard over which so many workers died fails, and a worker is given up that died so many times in a
            row without a shard.
        advance: is told how many more documents were scored; fewer where a worker died over them.

    Raises:
        InputError: all workers were given up, or write where this process cannot see it.
        MlFilterError: what a worker says that would be wrong with any.
    """
    schedule = _Schedule(workers, shards, out, attempts, advance)
    try:
        while schedule.has_work():
            schedule.hand_out()
            for event in workers.events():
                schedule.take(event)
    finally:
        workers.stop()
    _wait_until_visible(out, shards)


def _wait_until_visible(out: OutputDirectory, shards: Sequence[InputShard]) -> None:
    """Network file systems show late what another machine wrote; its own disk is never seen."""
    visible = out.all_done(shard.name for shard in shards)
    for shard in (shard for shard in shards if shard.name not in visible):
        deadline = time.monotonic() + _VISIBLE_WITHIN_S
        while out.done(shard.name) is None:
            if time.monotonic() > deadline:
                raise InputError(
                    f"a worker has scored {shard.uri}, but not to the {out.path} that is seen here; the output must be "
                    "on a file system that all workers share, or a URL"
                )
            time.sleep(1)


class _Schedule:
    """Which shard is where, and which worker does what."""

    def __init__(
        self,
        workers: Workers,
        shards: Sequence[InputShard],
        out: OutputDirectory,
        attempts: int,
        advance: Callable[[int], None],
    ) -> None:
        self.workers, self.out, self.attempts, self.advance = workers, out, attempts, advance
        self.waiting = deque(sorted(shards, key=lambda shard: -(shard.size or 0)))
        self.absent = deque(range(workers.count))
        self.idle: deque[int] = deque()
        self.at_work: dict[int, InputShard] = {}
        self.told: Counter[int] = Counter()
        """Documents of the shard at work that a worker has told of."""
        self.deaths: Counter[str] = Counter()
        """Of workers, by shard."""
        self.false_starts: Counter[int] = Counter()
        self.given_up = 0

    def has_work(self) -> bool:
        return bool(self.waiting or self.at_work)

    def hand_out(self) -> None:
        """Give waiting shards to idle workers; where shards are left over, start absent workers."""
        while self.waiting and self.idle:
            worker, shard = self.idle.popleft(), self.waiting.popleft()
            self.at_work[worker] = shard
            self.workers.give(worker, shard)
        while self.waiting and self.absent:
            self.workers.start(self.absent.popleft())

    def take(self, event: Event) -> None:
        if event.error is not None:
            raise event.error
        if event.kind == "ready":
            self.false_starts[event.worker] = 0
            self.idle.append(event.worker)
        elif event.kind == "died":
            self._bury(event.worker, event.reason)
        else:
            self.told[event.worker] += event.rows
            self.advance(event.rows)
        if event.kind == "done":
            del self.at_work[event.worker], self.told[event.worker]
            self.idle.append(event.worker)

    def _bury(self, worker: int, reason: str) -> None:
        shard = self.at_work.pop(worker, None)
        if shard is None:
            self._without_shard(worker, reason)
            return
        self.absent.append(worker)
        self.advance(-self.told.pop(worker, 0))
        done = self.out.done(shard.name)
        if done is not None:  # it died after it had committed the shard
            self.advance(done.counts["read"])
            return
        self.deaths[shard.name] += 1
        if self.deaths[shard.name] < self.attempts:
            logger.warning(f"A worker died over {shard.uri} ({reason}); the shard is begun again")
            self.waiting.append(shard)
        else:
            fail_shard(self.out, shard, f"{self.attempts} workers died over it, the last: {reason}")

    def _without_shard(self, worker: int, reason: str) -> None:
        if worker in self.idle:
            self.idle.remove(worker)
        self.false_starts[worker] += 1
        if self.false_starts[worker] < self.attempts:
            logger.warning(f"A worker died before it had a shard ({reason}); another takes its place")
            self.absent.append(worker)
            return
        self.given_up += 1
        left = self.workers.count - self.given_up
        if not left:
            raise InputError(f"no worker lives until it has a shard; the last died so: {reason}")
        logger.warning(f"{self.attempts} workers in a row died before they had a shard; {left} go on")


# --- Processes on this machine ---------------------------------------------------------------------------------------


class LocalWorkers(Workers):
    """Processes that share the cores of this machine, and its GPUs where it has several.

    Shards and events go through a pipe for each worker: a queue that all share is left locked by one that is killed.
    """

    def __init__(self, job: ScoringJob, out: OutputDirectory, count: int) -> None:
        self.job, self.part, self.count = job, out.part, count
        self.threads = job.config.worker_cpus or max(1, usable_cores() // count)
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[Connection, int] = {}

    def start(self, worker: int) -> None:
        """Start a process, or another one in the place of one that died."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, worker, self.job, self.part, self.threads), daemon=True
        )
        with _inherited(self.threads):
            process.start()
        theirs.close()
        self._processes[worker] = process
        self._pipes[ours] = worker

    def give(self, worker: int, shard: InputShard) -> None:
        """Let a worker that is ready score a shard."""
        with suppress(OSError):  # it has died, which its end of the pipe will say
            self._pipe(worker).send(shard)

    def events(self) -> Sequence[Event]:
        """What has happened; waits until something has."""
        return [self._event(pipe) for pipe in wait(list(self._pipes)) if isinstance(pipe, Connection)]

    def stop(self) -> None:
        """End all workers."""
        for process in self._processes.values():
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def _pipe(self, worker: int) -> Connection:
        return next(pipe for pipe, owner in self._pipes.items() if owner == worker)

    def _event(self, pipe: Connection) -> Event:
        worker = self._pipes[pipe]
        process = self._processes[worker]
        try:
            event: Event = pipe.recv()
        except (EOFError, OSError):
            process.join()
            event = Event(worker, "died", reason=_cause_of_death(process.exitcode))
        if event.kind == "died":
            process.kill()
            process.join()
            pipe.close()
            del self._pipes[pipe]
        return event


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What a process that starts now is born with: a number of threads, and no ear for Ctrl-C, which its parent has."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, str(threads))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
        if in_main:
            signal.signal(signal.SIGINT, handler)


def _work(pipe: Connection, worker: int, job: ScoringJob, part: str | None, threads: int) -> None:
    """A worker's process: shards come, events go, until its parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    scorer = ShardWorker(worker, job, part, threads)
    event = scorer.load()
    with suppress(EOFError, OSError):  # the parent's end of the pipe is gone
        pipe.send(event)
        while event.kind in ("ready", "done"):
            event = scorer.score(pipe.recv(), pipe.send)
            pipe.send(event)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
