"""ZenML's own server, on loopback."""

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


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def zenml_server(directory: Path) -> Iterator[dict[str, str]]:
    """A ZenML server with an empty store; the environment that logs a client in with an API key."""
    port, password = free_port(), "only-on-loopback"
    environment = {
        "PATH": os.environ["PATH"],
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
    command = [sys.executable, "-m", "uvicorn", "zenml.zen_server.zen_server_api:app", "--log-level", "warning"]
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise RuntimeError((directory / "server.log").read_text())
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        form = urllib.parse.urlencode({"grant_type": "password", "username": "tester", "password": password})
        token = _post(f"{url}/api/v1/login", form.encode())["access_token"]
        account = {"name": "runs", "active": True, "full_name": "", "email": None}
        account = _post(f"{url}/api/v1/service_accounts", account, token)
        key = _post(f"{url}/api/v1/service_accounts/{account['id']}/api_keys", {"name": "tests"}, token)
        yield {"ZENML_STORE_URL": url, "ZENML_STORE_API_KEY": key["body"]["key"]}
    finally:
        process.terminate()
        process.wait()


def _post(url: str, body: bytes | Mapping[str, Any], token: str | None = None) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
