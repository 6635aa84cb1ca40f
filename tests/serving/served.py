"""`ml-filter serve` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

TOLD = Path(__file__).with_name("told.py")


class Served:
    """A server, whose head does as told.py says, and a client of it."""

    def __init__(self, head: str, scratch: Path, *options: str, **environment: str) -> None:
        self.log = scratch / "stderr.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(TOLD), head, "--port", "0", *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        self.client = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None))

    def __enter__(self) -> Served:
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert "is ready at http://" in self.line, self.log.read_text()[-3000:]
        self.client.base_url = self.line.split(" is ready at ")[1].split()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.end()

    def score(self, *documents: Any, **given: Any) -> httpx.Response:
        """Post documents, each a text or a dictionary."""
        rows = [{"text": document} if isinstance(document, str) else document for document in documents]
        return self.client.post("/score", json={"documents": rows}, **given)

    def metrics(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """Values by name, with those of labels behind dots; what they have grown by since earlier ones."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        names = [".".join([s.name.removeprefix("ml_filter_"), *filter(None, s.labels.values())]) for s in samples]
        return {name: sample.value - (since or {}).get(name, 0) for name, sample in zip(names, samples, strict=True)}

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        while self.metrics().get(name, 0) != value:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.01)

    def end(self) -> int:
        """Close the client, wait for the process; its exit code."""
        self.client.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(timeout=60)
