"""Workers on a Ray cluster: one actor each, which scores a shard at a time.

Ray places and watches the actors; which shard goes where, and what happens when one dies, is `workers.score_with`'s.
Shards do not travel through Ray: every actor reads its input and writes its output itself, so both must be where all
nodes reach them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loguru import logger

from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.errors import ConfigError
from ml_filter.scoring.cores import usable_cores
from ml_filter.scoring.job import ScoringJob, described
from ml_filter.scoring.workers import Event, ShardWorker, Workers

LOCAL = "local"
_ANSWERS_WITHIN_S = 20.0
_READY_WITHIN_S = 60.0
"""If no worker is by then, what is free is said."""
_OBJECT_STORE_BYTES = 100 * 2**20
"""Only names and counts go through it."""


class _Room(NamedTuple):
    """What a worker asks for, or what a node has."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def _of(resources: Mapping[str, float]) -> _Room:
    return _Room(resources.get("CPU", 0), resources.get("GPU", 0))


class RayWorkers(Workers):
    """Actors of this process's Ray: of one that is running, or that is started for as long as they live.

    Raises:
        ConfigError: Ray is not installed, no cluster answers at the address, or none of its nodes is large enough.
    """

    def __init__(self, job: ScoringJob, out: OutputDirectory, count: int) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("Ray is not installed; `pip install 'ml-filter[ray]'` does it")
        self.job = replace(job, model_directory=_absolute(job.model_directory), output=_absolute(job.output), shards=())
        self.part, self.count = out.part, count
        is_local = job.config.ray == LOCAL
        self.threads = job.config.worker_cpus or (max(1, usable_cores() // count) if is_local else 1)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        self._is_any_ready = False
        self._ours = self._connect()
        import ray

        try:
            self._require_room()
        except ConfigError:
            self.stop()
            raise
        self._actor_class: Any = ray.remote(
            num_cpus=self.threads, num_gpus=job.config.worker_gpus, max_restarts=0, max_task_retries=0
        )(ShardWorker)

    def _require_room(self) -> None:
        """Whether a worker fits on any node; Ray itself waits for such a node without end."""
        import ray

        cpus, gpus = self.threads, self.job.config.worker_gpus
        nodes = [_of(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        if not any(node.cpus >= cpus and node.gpus >= gpus for node in nodes):
            there = "; ".join(f"{count} with {node}" for node, count in Counter(nodes).most_common())
            raise ConfigError(
                f"a worker asks for {_Room(cpus, gpus)}, which no node of the Ray cluster has (nodes: {there}): ask "
                "for less with worker_cpus or worker_gpus, or start such a node first"
            )
        places = sum(int(min(node.cpus // cpus, node.gpus // gpus if gpus else node.cpus)) for node in nodes)
        if places < self.count:
            logger.warning(
                f"the cluster has room for {places} workers of {_Room(cpus, gpus)}: {self.count - places} of "
                f"{self.count} wait until there is more"
            )

    def _connect(self) -> bool:
        """Whether Ray was started or joined here, so that it is left here, too."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads both when it is imported or started
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if ray.is_initialized():
            return False
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self.job.config.ray == LOCAL:
                os.environ.setdefault(
                    "RAY_AUTH_TOKEN", secrets.token_hex(32)
                )  # else Ray leaves one in the home directory
                ray.init(
                    address=LOCAL,
                    num_cpus=self.count * self.threads,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **quiet,
                )
            else:
                _require_answer(str(self.job.config.ray))
                ray.init(address=self.job.config.ray, **quiet)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ConfigError(
                f"no Ray cluster can be used at {self.job.config.ray!r}: {described(error)}. One that asks for a token "
                "needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from error
        return True

    def start(self, worker: int) -> None:
        """Start an actor, or another one in the place of one that died."""
        actor = self._actor_class.remote(worker, self.job, self.part, self.threads)
        self._actors[worker] = actor
        self._calls[actor.load.remote()] = worker

    def give(self, worker: int, shard: InputShard) -> None:
        """Let a worker that is ready score a shard."""
        if shard.format not in ("hub", "installed"):
            shard = replace(shard, uri=_absolute(shard.uri))
        self._calls[self._actors[worker].score.remote(shard)] = worker

    def events(self) -> Sequence[Event]:
        """What has happened; waits until something has."""
        import ray

        calls = list(self._calls)
        done, _ = ray.wait(calls, num_returns=1, timeout=None if self._is_any_ready else _READY_WITHIN_S)
        if not done:
            logger.warning(
                f"No worker is ready after {_READY_WITHIN_S:.0f} s. Each asks the cluster for "
                f"{_Room(self.threads, self.job.config.worker_gpus)}; free are {_of(ray.available_resources())}. It "
                "goes on waiting"
            )
            done, _ = ray.wait(calls, num_returns=1)
        self._is_any_ready = True
        return [self._event(call) for call in done]

    def _event(self, call: Any) -> Event:
        import ray

        worker = self._calls.pop(call)
        try:
            event: Event = ray.get(call)
        except ray.exceptions.RayError as error:
            event = Event(worker, "died", reason=described(error))
        if event.kind == "died":
            ray.kill(self._actors.pop(worker))
        return event

    def stop(self) -> None:
        """End all workers, and the Ray that was started for them."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor)
        if self._ours:
            ray.shutdown()


def _absolute(path: str) -> str:
    """A path as it is understood from any directory: actors have another than the command. Not of a URL or Hub name."""
    return path if "://" in path or path.startswith("hf:") else str(Path(path).absolute())


def _require_answer(address: str) -> None:
    """Whether anything listens there; Ray itself waits for it without end.

    Raises:
        OSError: nothing does.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=_ANSWERS_WITHIN_S).close()
