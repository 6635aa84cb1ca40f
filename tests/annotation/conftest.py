"""Servers, prompts and documents of the annotation tests."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from ml_filter.annotation.config import AnnotateConfig, AskConfig
from ml_filter.annotation.ledger import open_ledger
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.documents.config import SourceConfig
from tests.annotation.ledgers import OpenLedger
from tests.annotation.misbehaving import PROMPT, MisbehavingServer, Reply, Request
from tests.warehouse import WAREHOUSES, new_warehouse


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Request], Reply | dict[str, Any]]], MisbehavingServer]]:
    """Start servers that answer by a rule; all are stopped after the test."""
    servers: list[MisbehavingServer] = []

    def start(answer: Callable[[Request], Reply | dict[str, Any]]) -> MisbehavingServer:
        server = MisbehavingServer(answer)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(params=["sqlite", "memory", "s3", *WAREHOUSES])
def open_new(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenLedger]:
    """Opens a ledger of each implementation, the same one each time."""
    monkeypatch.setenv("ML_FILTER_LEASE_S", "0.4")
    with ExitStack() as stack:
        if request.param == "sqlite":
            location = str(tmp_path / "ledger.sqlite")
        elif request.param == "memory":
            location = f"memory://{uuid.uuid4().hex}"
        elif request.param == "s3":
            location = f"{request.getfixturevalue('bucket').url}/ledger"
        else:
            location = stack.enter_context(new_warehouse(request, request.param)).location("ledger")
        yield lambda: open_ledger(location, AskConfig())


@pytest.fixture
def prompt_file(tmp_path: Path) -> Callable[..., str]:
    """Write a short prompt, with some fields changed, and give its path."""

    def write(name: str = "short", **changes: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**PROMPT, "name": name, **changes}))
        return str(path)

    return write


@pytest.fixture
def pages(tmp_path: Path) -> Callable[[int], SourceConfig]:
    """A file of N short pages d0, d1, ..., each marked by its id."""

    def write(count: int) -> SourceConfig:
        path = tmp_path / "pages.jsonl"
        rows = [{"id": f"d{i}", "text": f"[d{i}] a page about subject {i}"} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceConfig(paths=[str(path)])

    return write


@pytest.fixture
def asking(prompt_file: Callable[..., str]) -> Callable[..., AnnotateConfig]:
    """An impatient configuration for a server: no retries, one second, everything may fail unless said otherwise."""

    def configure(server: MisbehavingServer, **changes: Any) -> AnnotateConfig:
        fields = {"endpoints": [server.url], "model": "m", "max_concurrency": 4, "timeout_s": 1.0, "max_retries": 0}
        fields |= {"max_failed_share": 1.0, "max_outage_s": 1.0}
        if "prompts" not in changes:
            fields["prompts"] = [prompt_file()]
        return AnnotateConfig.model_validate({**fields, **changes})

    return configure


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupt the next run as Ctrl-C does, as soon as it has recorded a number of answers. Later runs go on."""

    def arm(answers: int) -> None:
        record, recorded = SqliteLedger.record, count(1)

        def record_then_interrupt(self: SqliteLedger, *arguments: Any) -> None:
            record(self, *arguments)
            if next(recorded) == answers:
                raise KeyboardInterrupt

        monkeypatch.setattr(SqliteLedger, "record", record_then_interrupt)

    return arm
