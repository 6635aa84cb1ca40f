"""Servers for tests: in a thread of this process, or in a process of their own where signals matter."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ml_filter.serving import server
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.service import Service
from tests.serving import controlled_head


class Server:
    """A running server and a client of it. `line` is what it printed when it was ready."""

    line: str
    client: httpx.Client

    def connect(self, line: str) -> None:
        self.line = line
        address = line.split(" is ready at ")[1].split(maxsplit=1)[0]
        self.client = httpx.Client(base_url=address, timeout=60, limits=httpx.Limits(max_connections=None))

    def score(self, *documents: Any, **options: Any) -> httpx.Response:
        """Post documents, each a text or a dictionary."""
        rows = [{"text": document} if isinstance(document, str) else document for document in documents]
        return self.client.post("/score", json={"documents": rows}, **options)

    def metrics(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """Values by name and labels, joined with dots, minus earlier values."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        names = [".".join([s.name.removeprefix("ml_filter_"), *filter(None, s.labels.values())]) for s in samples]
        return {name: sample.value - (since or {}).get(name, 0) for name, sample in zip(names, samples, strict=True)}

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        deadline = time.monotonic() + 60
        while (current := self.metrics().get(name, 0)) != value:
            assert time.monotonic() < deadline, f"{name} is {current}, not {value}"
            time.sleep(0.005)


class ThreadServer(Server):
    """A server in a thread. Leaving the context stops it as SIGTERM would."""

    def __init__(self, head: str, **settings: Any) -> None:
        self.head, self.config = head, ServeConfig(**{"port": 0, **settings})
        self.error: Exception | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Start without waiting for the head."""
        server.load_head = controlled_head.load_controlled
        server.Service = self._service
        self._thread.start()

    def wait_until_ready(self) -> None:
        self._ready.wait(60)
        if self.error is not None:
            raise self.error

    def __enter__(self) -> ThreadServer:
        self.start()
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stopping = True
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.client.close()

    def _service(self, *arguments: Any) -> Service:
        self.service = Service(*arguments)
        return self.service

    def _run(self) -> None:
        try:
            server.serve_head(self.head, self.config, self._say)
        except Exception as error:
            self.error = error
        finally:
            self._ready.set()

    def _say(self, line: str) -> None:
        self.connect(line)
        self._ready.set()


class ProcessServer(Server):
    """`ml-filter serve` in a process of its own."""

    def __init__(self, head: str, log: Path) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, controlled_head.__file__, head, "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def __enter__(self) -> ProcessServer:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "is ready at http://" in line, self.log.read_text()[-3000:]
        self.connect(line)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.client.close()
