"""Servers on loopback that outlive a test: ZenML's own, and moto's S3, SageMaker, EventBridge and STS."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(module: str, *arguments: str, port: int, log: Path, **environment: str) -> Iterator[None]:
    """`python -m MODULE` while it serves at a port."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**kept, **environment},
            stdout=output,
            stderr=output,
        )
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def zenml_server(directory: Path) -> Iterator[dict[str, str]]:
    """A ZenML server with an empty store; the environment that logs a client in with an API key."""
    port, password = free_port(), "only-on-loopback"
    environment = {
        "ZENML_CONFIG_PATH": str(directory),
        "ZENML_LOCAL_STORES_PATH": str(directory),
        "ZENML_STORE_URL": f"sqlite:///{directory}/zenml.db",
        "ZENML_SERVER_DEPLOYMENT_TYPE": "other",
        "ZENML_SERVER_AUTO_ACTIVATE": "true",
        "ZENML_DEFAULT_USER_NAME": "tester",
        "ZENML_DEFAULT_USER_PASSWORD": password,
        "ZENML_ANALYTICS_OPT_IN": "false",
        "HOME": str(directory),
    }
    application = "zenml.zen_server.zen_server_api:app"
    arguments = [application, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    with serving("uvicorn", *arguments, port=port, log=directory / "server.log", **environment):
        url = f"http://127.0.0.1:{port}"
        form = urllib.parse.urlencode({"grant_type": "password", "username": "tester", "password": password})
        token = _post(f"{url}/api/v1/login", form.encode())["access_token"]
        account = {"name": "runs", "active": True, "full_name": "", "email": None}
        account = _post(f"{url}/api/v1/service_accounts", account, token)
        key = _post(f"{url}/api/v1/service_accounts/{account['id']}/api_keys", {"name": "tests"}, token)
        yield {"ZENML_STORE_URL": url, "ZENML_STORE_API_KEY": key["body"]["key"]}


def _post(url: str, body: bytes | Mapping[str, Any], token: str | None = None) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextmanager
def aws(directory: Path) -> Iterator[dict[str, str]]:
    """moto; the environment that sends every AWS client to it."""
    port = free_port()
    with serving("moto.server", "-H", "127.0.0.1", "-p", str(port), port=port, log=directory / "moto.log"):
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }
