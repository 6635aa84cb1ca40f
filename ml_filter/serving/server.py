"""Serve a head until SIGTERM or SIGINT."""

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
from ml_filter.heads.kinds import Head, load_head
from ml_filter.heads.load import resolve_head
from ml_filter.heads.train import head_parent
from ml_filter.serving.app import create_app
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.documents import HeadDescription, describe_head
from ml_filter.serving.service import Service

CPU_BATCH_TOKENS = 1024
"""Default of `batch_tokens` on a CPU. Small batches need less padding; docs/serving.md has measurements."""


def serve_head(head: str | Path, config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve a head until SIGTERM or SIGINT, then answer the requests in progress and return.

    `say` is called with one line when the head is loaded.

    Raises:
        InputError: the head does not exist or is incomplete.
        ConfigError: this machine does not have the device, or the address cannot be listened on.
    """
    directory = resolve_head(head)  # only once: a Hub repository may change
    parent = head_parent(directory)  # report a wrong directory before listening
    with _listen(config) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        service = Service(
            lambda: _load(directory, parent, config),
            config,
            lambda about: say(f"{about.head} is ready at {address} ({about.engine}, {about.device}, {about.dtype})"),
        )
        # No access log: the metrics count requests. log_config=None keeps uvicorn from writing its own format.
        settings = uvicorn.Config(
            create_app(service),
            log_config=None,
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=math.ceil(config.timeout_s),  # for clients that read slowly
        )
        _Server(settings, service).run(sockets=[listener])
    if service.error is not None:
        raise service.error


class _Server(uvicorn.Server):
    """After the first signal, answers new requests with 503 until the requests in progress are done."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop the service on the first signal, end the process at once on the second."""
        if self.service.stopping:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.service.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; returning true ends the server."""
        idle = self.service.stopping and self.service.open_requests == 0
        self.should_exit = self.should_exit or idle or self.service.error is not None
        return await super().on_tick(counter)


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        # create_server adds the address to strerror, except for names that cannot be resolved.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another with --host and --port"
        ) from error


def _load(directory: Path, parent: Parent, config: ServeConfig) -> tuple[Head, HeadDescription]:
    """Runs in the scoring thread, because torch sets its number of threads per thread."""
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    score = config.score
    if config.batch_tokens is None and choose_device(config.device).type == "cpu":
        score = score.model_copy(update={"batch_tokens": CPU_BATCH_TOKENS})
    engine = load_head(directory, score)
    engine.score(["Warm up: the first call allocates buffers and loads kernels."])
    return engine, describe_head(parent, engine.info, config)
