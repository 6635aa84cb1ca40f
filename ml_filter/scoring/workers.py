"""Score the shards of a corpus with several workers: what a worker does, which shard it gets, and what if it dies.

`score_with` assigns shards and knows nothing about processes. `LocalWorkers` are processes on this machine;
`ray_workers.RayWorkers` are actors on a cluster. A worker that dies is replaced and its shard is started over.
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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal

from loguru import logger

from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.errors import InputError, MlFilterError
from ml_filter.heads.device import local_rank
from ml_filter.heads.kinds import load_head
from ml_filter.logs import configure_logging
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.cores import threads_per_worker
from ml_filter.scoring.shard import ScoringJob, describe_error, fail_shard, score_shard

_VISIBLE_WITHIN_S, _POLL_S = 60.0, 1.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""Read by torch and the linear algebra libraries, and by tokenizers."""


@dataclass(frozen=True)
class Event:
    """What happened to a worker.

    - ready    its head is loaded
    - rows     it scored `rows` more documents of its shard
    - done     its shard is committed; `rows` were not reported before
    - died     it is gone; `reason` says why
    - refused  `error` would occur with every worker, so the run ends with it
    """

    worker: int
    kind: Literal["ready", "rows", "done", "died", "refused"]
    rows: int = 0
    reason: str = ""
    error: MlFilterError | None = None


class ShardWorker:
    """Runs in a worker's process: holds a head and the output directory."""

    def __init__(self, worker: int, job: ScoringJob, part: str | None, threads: int) -> None:
        self.worker, self.job, self.threads = worker, job, threads
        name = f"{socket.gethostname()}-{os.getpid()}"
        self.out = job.directory(f"{part}/{name}" if part else name, is_helper=True)

    def load(self) -> Event:
        """Load the head."""
        configure_logging(level="WARNING")
        if self.job.has_encoder:
            import torch

            torch.set_num_threads(self.threads)
        try:
            self.head = load_head(self.job.head, self._config())
        except MlFilterError as error:
            return Event(self.worker, "refused", error=error)
        except Exception as error:
            return Event(self.worker, "died", reason=describe_error(error))
        return Event(self.worker, "ready")

    def _config(self) -> ScoreConfig:
        """The settings of the job, with one GPU for this worker if the machine has several."""
        if not self.job.has_encoder:
            return self.job.engine_config
        import torch

        config, gpus = self.job.engine_config, torch.cuda.device_count()
        if config.ray and config.device == "auto" and not config.worker_gpus:
            return config.model_copy(update={"device": "cpu"})
        if gpus > 1 and config.device in ("auto", "cuda"):
            number = local_rank() * self.job.config.workers + self.worker
            return config.model_copy(update={"device": f"cuda:{number % gpus}"})
        return config

    def score(self, shard: InputShard, report: Callable[[Event], None] | None = None) -> Event:
        """Score a shard. If the head raises, this worker ends, because its device may be unusable."""
        reported = 0

        def advance(rows: int) -> None:
            nonlocal reported
            if report is not None:
                reported += rows
                report(Event(self.worker, "rows", rows))

        try:
            result = score_shard(self.job, shard, self.head, self.out, advance)
        except MlFilterError as error:
            return Event(self.worker, "refused", error=error)
        except Exception as error:
            return Event(self.worker, "died", reason=describe_error(error))
        finally:
            self.out.clear_scratch()  # the worker is killed at the end of the run, so it cannot clean up later
        return Event(self.worker, "done", result.counts["read"] - reported)


# --- Assigning shards ------------------------------------------------------------------------------------------------


class Workers(ABC):
    """Workers numbered from 0 to `count` - 1; each scores one shard at a time."""

    count: int

    @abstractmethod
    def start(self, worker: int) -> None:
        """Start a worker, or replace a dead one."""

    @abstractmethod
    def assign(self, worker: int, shard: InputShard) -> None:
        """Let a worker that is ready score a shard."""

    @abstractmethod
    def events(self) -> Sequence[Event]:
        """Wait for the next events and return them."""

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
    """Score every shard or record why it failed. The largest shards go first, so that all workers end together.

    Args:
        attempts: number of workers that may die on a shard before it fails, and how often in a row a worker may die
            before it gets a shard until it is not started again.
        advance: called with the number of documents scored; negative if a worker died and its shard starts over.

    Raises:
        InputError: no worker could be started, or the output of the workers does not appear here.
        MlFilterError: an error that every worker would have.
    """
    largest_first = deque(sorted(shards, key=lambda shard: -(shard.size or 0)))
    schedule = _Schedule(workers, largest_first, out, attempts, advance, to_start=deque(range(workers.count)))
    try:
        while schedule.has_work():
            schedule.assign_shards()
            for event in workers.events():
                schedule.handle(event)
    finally:
        workers.stop()
    _wait_until_visible(out, shards)


def _wait_until_visible(out: OutputDirectory, shards: Sequence[InputShard]) -> None:
    """Wait for results written on other machines, which network file systems show with a delay.

    Raises:
        InputError: a result does not appear, so that worker wrote to its own disk.
    """
    visible = out.finished_shards(shard.name for shard in shards)
    for shard in (shard for shard in shards if shard.name not in visible):
        deadline = time.monotonic() + _VISIBLE_WITHIN_S
        while out.finished_shard(shard.name) is None:
            if time.monotonic() > deadline:
                raise InputError(
                    f"a worker scored {shard.uri}, but its output does not appear in {out.path}. The output must be on "
                    "a file system that all workers share, or a URL"
                )
            time.sleep(_POLL_S)


@dataclass
class _Schedule:
    """Tracks which worker has which shard, and how often each died."""

    workers: Workers
    waiting: deque[InputShard]
    out: OutputDirectory
    attempts: int
    advance: Callable[[int], None]
    to_start: deque[int]
    idle: deque[int] = field(default_factory=deque)
    assigned: dict[int, InputShard] = field(default_factory=dict)
    reported: Counter[int] = field(default_factory=Counter)
    """By worker: documents of the assigned shard that it reported."""
    deaths: Counter[str] = field(default_factory=Counter)
    """By shard: workers that died on it."""
    failed_starts: Counter[int] = field(default_factory=Counter)
    """By worker: deaths in a row without a shard."""

    def has_work(self) -> bool:
        return bool(self.waiting or self.assigned)

    def assign_shards(self) -> None:
        """Assign waiting shards to idle workers; start more workers if shards are left over."""
        while self.waiting and self.idle:
            worker, shard = self.idle.popleft(), self.waiting.popleft()
            self.assigned[worker] = shard
            self.workers.assign(worker, shard)
        while self.waiting and self.to_start:
            self.workers.start(self.to_start.popleft())

    def handle(self, event: Event) -> None:
        if event.error is not None:
            raise event.error
        if event.kind == "ready":
            self.failed_starts[event.worker] = 0
            self.idle.append(event.worker)
        elif event.kind == "died":
            shard = self.assigned.pop(event.worker, None)
            if shard is None:
                self._handle_failed_start(event.worker, event.reason)
            else:
                self._handle_death(event.worker, shard, event.reason)
        else:
            self.reported[event.worker] += event.rows
            self.advance(event.rows)
        if event.kind == "done":
            del self.assigned[event.worker], self.reported[event.worker]
            self.idle.append(event.worker)

    def _handle_death(self, worker: int, shard: InputShard, reason: str) -> None:
        self.to_start.append(worker)
        self.advance(-self.reported.pop(worker, 0))
        result = self.out.finished_shard(shard.name)
        if result is not None:  # it died after committing the shard
            self.advance(result.counts["read"])
            return
        self.deaths[shard.name] += 1
        if self.deaths[shard.name] < self.attempts:
            logger.warning(f"A worker died while scoring {shard.uri} ({reason}); starting the shard over")
            self.waiting.append(shard)
        else:
            fail_shard(self.out, shard, f"{self.attempts} workers died while scoring it; last cause: {reason}")

    def _handle_failed_start(self, worker: int, reason: str) -> None:
        if worker in self.idle:
            self.idle.remove(worker)
        self.failed_starts[worker] += 1
        if self.failed_starts[worker] < self.attempts:
            logger.warning(f"A worker died before it got a shard ({reason}); starting another one")
            self.to_start.append(worker)
            return
        remaining = sum(self.failed_starts[number] < self.attempts for number in range(self.workers.count))
        if not remaining:
            raise InputError(f"every worker died before it got a shard; last cause: {reason}")
        logger.warning(f"{self.attempts} workers in a row died before they got a shard; continuing with {remaining}")


# --- Processes on this machine ---------------------------------------------------------------------------------------


class LocalWorkers(Workers):
    """Processes that share the cores of this machine, and its GPUs if it has several.

    Each worker has its own pipe for shards and events: a queue shared by all would stay locked if a worker is killed
    while holding the lock.
    """

    def __init__(self, job: ScoringJob, out: OutputDirectory, count: int) -> None:
        self.job, self.part, self.count = job, out.part, count
        self.threads = threads_per_worker(job.config, count)
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[Connection, int] = {}

    def start(self, worker: int) -> None:
        """Start a process, or replace a dead one."""
        ours, theirs = self._context.Pipe()
        arguments = (theirs, worker, self.job, self.part, self.threads)
        process = self._context.Process(target=_run_worker, args=arguments, daemon=True)
        with _worker_environment(self.threads):
            process.start()
        theirs.close()
        self._processes[worker] = process
        self._pipes[ours] = worker

    def assign(self, worker: int, shard: InputShard) -> None:
        """Send a shard to a worker that is ready."""
        pipe = next(pipe for pipe, owner in self._pipes.items() if owner == worker)
        with suppress(OSError):  # the worker is dead; the next events will report it
            pipe.send(shard)

    def events(self) -> Sequence[Event]:
        """Wait for the next events and return them."""
        return [self._receive(pipe) for pipe in wait(list(self._pipes)) if isinstance(pipe, Connection)]

    def stop(self) -> None:
        """End all workers."""
        for process in self._processes.values():
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def _receive(self, pipe: Connection) -> Event:
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
    return f"{name}, often because memory ran out" if name == "SIGKILL" else name


@contextmanager
def _worker_environment(threads: int) -> Iterator[None]:
    """Set what a process started now inherits: its number of threads, and to leave Ctrl-C to the parent."""
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


def _run_worker(pipe: Connection, worker: int, job: ScoringJob, part: str | None, threads: int) -> None:
    """The main function of a worker's process: score shards from the pipe until the parent is gone."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    scorer = ShardWorker(worker, job, part, threads)
    event = scorer.load()
    with suppress(EOFError, OSError):  # the parent closed its end of the pipe
        pipe.send(event)
        while event.kind in ("ready", "done"):
            event = scorer.score(pipe.recv(), pipe.send)
            pipe.send(event)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
