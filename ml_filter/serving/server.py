"""Serve a head until a signal ends it."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from ml_filter.documents.manifest import Parent
from ml_filter.errors import ConfigError
from ml_filter.heads.device import choose_device
from ml_filter.heads.engine import Engine, load_engine
from ml_filter.heads.load import resolve_head
from ml_filter.heads.train import head_parent
from ml_filter.serving.app import create_app
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.describe import HeadDescription, describe_head
from ml_filter.serving.service import Service

CPU_BATCH_TOKENS = 1024
"""Of the encoder on a CPU, unless set. The few documents of a batch are padded less so; docs/serving.md has figures."""


def serve_head(head: str | Path, config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve a head until SIGTERM or SIGINT, after which the requests that were taken are answered first.

    Args:
        head: as `resolve_head` knows it.
        config: where to listen, limits, batching.
        say: called with one line when the head is loaded.

    Raises:
        InputError: there is no such head, or no complete one.
        ConfigError: there is no such device here, or the address cannot be listened on.
    """
    directory = resolve_head(head)  # once: a Hub repository may change
    parent = head_parent(directory)  # a wrong directory is named before anything is listened on
    with _listen(config) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        service = Service(
            lambda: _load(directory, parent, config),
            config,
            lambda made: say(f"{made.head} is ready at {address} ({made.engine}, {made.device}, {made.dtype})"),
        )
        # No access log: the metrics count requests. Uvicorn's own lines would go to standard error as they are.
        settings = uvicorn.Config(
            create_app(service),
            log_config=None,
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=math.ceil(config.timeout_s),  # for clients that are slow to take their answer
        )
        _Server(settings, service).run(sockets=[listening])
    if service.error is not None:
        raise service.error


class _Server(uvicorn.Server):
    """Goes on listening after the first signal, to say 503, until all requests that were taken are answered."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the service when it is idle, the second the process at once."""
        if self.service.stopping:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.service.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the server."""
        idle = self.service.stopping and self.service.open_requests == 0
        self.should_exit = self.should_exit or idle or self.service.error is not None
        return await super().on_tick(counter)


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another with --host and --port"
        ) from error


def _load(directory: Path, parent: Parent, config: ServeConfig) -> tuple[Engine, HeadDescription]:
    """In the scoring thread, whose threads for matrix products are set here."""
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    score = config.score
    if config.batch_tokens is None and choose_device(config.device).type == "cpu":
        score = score.model_copy(update={"batch_tokens": CPU_BATCH_TOKENS})
    engine = load_engine(directory, score)
    engine.score(["What is made at the first use is made before the first request."])
    return engine, describe_head(parent, engine.info, config)
