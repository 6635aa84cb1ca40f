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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loguru import logger

from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.sources import InputShard
from ml_filter.errors import ConfigError
from ml_filter.scoring.job import ScoringJob, described
from ml_filter.scoring.workers import Event, ShardWorker, Workers, usable_cores

LOCAL = "local"
_ANSWERS_WITHIN_S = 20.0
_OBJECT_STORE_BYTES = 100 * 2**20
"""Only names and counts go through it."""


class RayWorkers(Workers):
    """Actors of this process's Ray: of one that is running, or that is started for as long as they live.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
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
        self._ours = self._connect()
        import ray

        self._actor_class: Any = ray.remote(
            num_cpus=self.threads, num_gpus=job.config.worker_gpus, max_restarts=0, max_task_retries=0
        )(ShardWorker)
        cpus, wanted = ray.cluster_resources().get("CPU", 0), count * self.threads
        if cpus < wanted:
            logger.warning(
                f"{count} workers of {self.threads} CPUs ask for {wanted} CPUs, the cluster has {cpus:.0f}: some wait "
                "until there is room"
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

        done, _ = ray.wait(list(self._calls), num_returns=1)
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
