"""The process of a container: a fork of a process that has imported the libraries, as an image has them installed.

python -P box.py SOCKET     takes a JSON order a connection; answers with the process id, then the exit code
python -P box.py            fails where this is not allowed

Importing the libraries costs 12 s of processor time, and a run has ten steps. Nothing of ml_filter is imported before
the fork. Each box has its own /app with the code, its own home and working directory in it, its own /tmp and host name,
and the environment of the order and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from typing import Any

LIBRARIES = [
    "zenml.entrypoints.step_entrypoint_configuration",
    "zenml.integrations.aws.orchestrators.sagemaker_orchestrator_entrypoint_config",
    "zenml.integrations.kubernetes.orchestrators.kubernetes_orchestrator_entrypoint",
    "zenml.integrations.s3.artifact_stores",
    "aiohttp",
    "babel",
    "jinja2",
    "loguru",
    "matplotlib.pyplot",
    "orjson",
    "pyarrow.dataset",
    "pydantic_settings",
    "rensa",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.linear_model",
    "tenacity",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
]
_NEW_MOUNTS, _NEW_HOST_NAME, _NEW_USERS = 0x20000, 0x4000000, 0x10000000
_BIND, _PRIVATE = 4096, 0x4000 | 0x40000


def enter_namespaces() -> None:
    """Give this process its own mounts and host name.

    Raises:
        OSError: not allowed here.
    """
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_MOUNTS | _NEW_HOST_NAME | (_NEW_USERS if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount("none", "/", _PRIVATE)


def _mount(source: str, target: str, flags: int) -> None:
    _call("mount", source.encode(), target.encode(), None, flags, None)


def _call(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _run(order: dict[str, Any]) -> None:
    """Run `python -m MODULE ...` in the box. Does not return."""
    code = 1
    try:
        os.setsid()
        log = os.open(f"{order['box']}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        enter_namespaces()
        socket.sethostname(order["name"][:63])
        _mount(f"{order['box']}/app", "/app", _BIND)
        _mount(f"{order['box']}/tmp", "/tmp", _BIND)  # last: the box itself may be below the real one
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir("/app")
        sys.path[:] = [path for path in sys.path if path not in order["hidden"]]
        python, option, module, *arguments = order["command"]
        assert (python, option) == ("python", "-m"), order["command"]
        sys.path.insert(0, "/app")
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(address: str) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that supervise a box
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            order = json.loads(connection.makefile().readline())
            process = os.fork()
            if process == 0:
                connection.close()
                _run(order)
            connection.sendall(f"{process}\n".encode())
            _, status = os.waitpid(process, 0)
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    _serve(sys.argv[1]) if len(sys.argv) > 1 else enter_namespaces()
