"""Workers on a Ray cluster: one actor per worker, each scoring one shard at a time.

Ray places and monitors the actors; `workers.score_with` assigns the shards and handles deaths. Shards do not travel
through Ray: every actor reads its input and writes its output directly, so all nodes must be able to reach both.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loguru import logger

from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.errors import ConfigError
from ml_filter.extras import require_extra
from ml_filter.location import Location
from ml_filter.scoring.config import RAY_LOCAL
from ml_filter.scoring.cores import threads_per_worker
from ml_filter.scoring.shard import ScoringJob, describe_error
from ml_filter.scoring.workers import Event, ShardWorker, Workers

_CONNECT_TIMEOUT_S = 20.0
_READY_WITHIN_S = 60.0
"""If no worker is ready by then, a warning says which resources are free."""
_OBJECT_STORE_BYTES = 100 * 2**20
"""Small, because only names and counts pass through it."""


class _Resources(NamedTuple):
    """What a worker requests, or what a node has."""

    cpus: float
    gpus: float

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> _Resources:
        return cls(resources.get("CPU", 0), resources.get("GPU", 0))

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


class RayWorkers(Workers):
    """Actors on a running Ray cluster, or on a cluster that is started for this run.

    Raises:
        ConfigError: Ray is not installed, no cluster answers at the address, or no node is large enough for a worker.
    """

    def __init__(self, job: ScoringJob, out: OutputDirectory, count: int) -> None:
        require_extra("ray", "--ray", "ray")
        self.job = replace(job, head=_absolute(job.head), output=_absolute(job.output), shards=())
        self.part, self.count = out.part, count
        self.threads = threads_per_worker(job.config, count)
        self.request = _Resources(self.threads, job.config.worker_gpus)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        self._is_any_ready = False
        self._started_ray = self._connect()
        import ray

        try:
            self._check_capacity()
        except ConfigError:
            self.stop()
            raise
        self._actor_class: Any = ray.remote(
            num_cpus=self.threads, num_gpus=job.config.worker_gpus, max_restarts=0, max_task_retries=0
        )(ShardWorker)

    def _check_capacity(self) -> None:
        """Refuse a worker that fits on no node, for which Ray would wait forever."""
        import ray

        cpus, gpus = self.request
        nodes = [_Resources.of(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        if not any(node.cpus >= cpus and node.gpus >= gpus for node in nodes):
            available = "; ".join(f"{count} with {node}" for node, count in Counter(nodes).most_common())
            raise ConfigError(
                f"a worker requests {self.request}, more than any node of the Ray cluster has (nodes: {available}). "
                "Reduce worker_cpus or worker_gpus, or add a larger node"
            )
        capacity = sum(int(min(node.cpus // cpus, node.gpus // gpus if gpus else node.cpus)) for node in nodes)
        if capacity < self.count:
            logger.warning(
                f"The Ray cluster has room for {capacity} of {self.count} workers with {self.request} each; the others "
                "start when resources become free"
            )

    def _connect(self) -> bool:
        """Connect to Ray, and return whether `stop` must disconnect again."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads both when it is imported or started
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if ray.is_initialized():
            return False
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self.job.config.ray == RAY_LOCAL:
                # Without a token in the environment Ray writes one to the home directory.
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                ray.init(
                    address=RAY_LOCAL,
                    num_cpus=self.count * self.threads,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **quiet,
                )
            else:
                _check_reachable(str(self.job.config.ray))
                ray.init(address=self.job.config.ray, **quiet)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ConfigError(
                f"cannot connect to a Ray cluster at {self.job.config.ray!r}: {describe_error(error)}. If the cluster "
                "requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from error
        return True

    def start(self, worker: int) -> None:
        """Start an actor, or replace a dead one."""
        actor = self._actor_class.remote(worker, self.job, self.part, self.threads)
        self._actors[worker] = actor
        self._calls[actor.load.remote()] = worker

    def assign(self, worker: int, shard: InputShard) -> None:
        """Let a worker that is ready score a shard."""
        if shard.format not in ("hub", "installed", "mongodb"):
            shard = replace(shard, uri=_absolute(shard.uri))
        self._calls[self._actors[worker].score.remote(shard)] = worker

    def events(self) -> Sequence[Event]:
        """Wait for the next events and return them."""
        import ray

        calls = list(self._calls)
        done, _ = ray.wait(calls, num_returns=1, timeout=None if self._is_any_ready else _READY_WITHIN_S)
        if not done:
            logger.warning(
                f"No worker is ready after {_READY_WITHIN_S:.0f} s. Each requests {self.request} of the cluster, which "
                f"has {_Resources.of(ray.available_resources())} free. Still waiting"
            )
            done, _ = ray.wait(calls, num_returns=1)
        self._is_any_ready = True
        return [self._result(call) for call in done]

    def _result(self, call: Any) -> Event:
        import ray

        worker = self._calls.pop(call)
        try:
            event: Event = ray.get(call)
        except ray.exceptions.RayError as error:
            event = Event(worker, "died", reason=describe_error(error))
        if event.kind == "died":
            ray.kill(self._actors.pop(worker))
        return event

    def stop(self) -> None:
        """End all workers, and disconnect from Ray if this object connected."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor)
        if self._started_ray:
            ray.shutdown()


def _absolute(path: str) -> str:
    """An absolute path, because actors have another working directory. URLs and Hub names stay as they are."""
    return str(Location(path).absolute)


def _check_reachable(address: str) -> None:
    """Check that something listens at the address, for which Ray itself would wait forever.

    Raises:
        OSError: nothing does.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=_CONNECT_TIMEOUT_S).close()
