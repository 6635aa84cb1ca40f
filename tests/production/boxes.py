"""Containers for the tests: each step of a run in its own box."""

from __future__ import annotations

import compileall
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
_BOX = (sys.executable, "-P", str(ROOT / "tests/production/box.py"))
_CODE = ("ml_filter", "steps", "pipelines", "tools", "configs", "pyproject.toml")


def can_make_boxes() -> bool:
    """Whether this system lets a test have its own mounts: as root, or with user namespaces."""
    attempt = subprocess.run(_BOX, check=False, capture_output=True)
    return attempt.returncode == 0 and (Path("/app").is_dir() or os.access("/", os.W_OK))


@dataclass
class Box:
    """A container that was started."""

    name: str
    directory: Path
    process: int
    environment: Mapping[str, str]
    _supervisor: socket.socket

    def wait(self) -> int:
        """The exit code; of a killed box minus the signal's number."""
        return int(self._supervisor.makefile().readline())

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return not select.select([self._supervisor], [], [], 0)[0]

    def kill(self) -> None:
        """SIGKILL, to all of its processes."""
        os.killpg(self.process, signal.SIGKILL)

    @property
    def log(self) -> str:
        """What it printed."""
        return (self.directory / "log").read_text(errors="replace")


class Boxes:
    """Starts boxes. `environment` is what the cluster adds to each: credentials of the object storage."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory, self.environment = directory, dict(environment)
        self.started: list[Box] = []
        self._numbers = count(1)
        Path("/app").mkdir(exist_ok=True)
        self._image = directory / "image"
        for name in _CODE:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            self._image.mkdir(exist_ok=True)
            copy(ROOT / name, self._image / name)
        compileall.compile_dir(self._image, quiet=2)
        self._address = str(directory / "boxes")
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        quiet = {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(directory), "ZENML_CONFIG_PATH": str(directory / "none")}
        with (directory / "boxes.log").open("wb") as log:
            self._server = subprocess.Popen([*_BOX, self._address], env={**kept, **quiet}, stdout=log, stderr=log)

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> Box:
        """Start `python -m MODULE ...` in an empty box with this environment. `files` are put into its home."""
        box = self.directory / f"{next(self._numbers):03d}-{name}"
        shutil.copytree(self._image, box / "app")
        for folder in ("app/home", "tmp"):
            (box / folder).mkdir()
        for file, content in files.items():
            (box / "app/home" / file).parent.mkdir(parents=True, exist_ok=True)
            (box / "app/home" / file).write_text(content)
        own = {"HOME": "/app/home", "TMPDIR": "/tmp", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        environment = {**own, **self.environment, **environment}
        order = {"name": name, "box": str(box), "command": [*command], "environment": environment}
        connection = self._connect()
        connection.sendall(json.dumps({**order, "hidden": ["", str(ROOT)]}).encode() + b"\n")
        process = int(connection.recv(100))
        self.started.append(Box(name, box, process, environment, connection))
        return self.started[-1]

    def _connect(self) -> socket.socket:
        """Wait until the libraries are imported."""
        for _ in range(1200):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._address)
                return connection
            except OSError:
                connection.close()
                if self._server.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError((self.directory / "boxes.log").read_text())

    def close(self) -> None:
        """Stop everything that was started."""
        self._server.kill()
        self._server.wait()
        for box in self.started:
            if box.is_running:
                box.kill()
