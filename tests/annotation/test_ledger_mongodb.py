"""The ledger in a MongoDB collection: kills, lost connections, and an owner who lost the lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig, AskConfig
from ml_filter.annotation.ledger import Key, open_ledger
from ml_filter.annotation.ledger.mongodb import LEASES, MongoLedger
from ml_filter.config import Settings
from ml_filter.errors import InputError
from tests.annotation.ledgers import KEY, row
from tests.annotation.misbehaving import chat

ROOT = Path(__file__).resolve().parents[2]

OWNER = """
import sys
from ml_filter.annotation.ledger import Key
from ml_filter.annotation.ledger.mongodb import MongoLedger

def answer(number, raw):
    row = {"status": "scored", "windows": 1, "prompt_tokens": 10, "completion_tokens": 0, "raw": raw}
    ledger.record(Key("d1", "text", "question", number), 0, row)

ledger = MongoLedger(sys.argv[1], lease_s=1)
for number in range(50):
    answer(number, str(number))
ledger.flush()
print("saved", flush=True)
for line in sys.stdin:
    try:
        answer(0, "late")
        ledger.flush()
        print("written", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture
def owner(warehouse):
    """A process that holds the ledger and has saved fifty answers; it writes another for each line that it gets."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, warehouse.location("ledger")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert said(process.stdout) == "saved"
    yield process
    process.kill()
    process.communicate()


def said(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


@pytest.mark.slow
def test_after_a_kill_the_next_owner_waits_for_the_lease_and_has_every_saved_answer(owner, warehouse):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    started = time.monotonic()
    with MongoLedger(warehouse.location("ledger"), lease_s=1) as ledger:
        assert time.monotonic() - started < 5
        answers = [ledger.answers(KEY._replace(vote=number))[0][0]["raw"] for number in range(50)]
    assert answers == [str(number) for number in range(50)]


@pytest.mark.slow
def test_an_owner_who_lost_the_lease_stops_and_overwrites_nothing(owner, warehouse):
    key = KEY._replace(vote=0)
    owner.send_signal(signal.SIGSTOP)
    with MongoLedger(warehouse.location("ledger"), lease_s=1) as ledger:
        ledger.record(key, 0, row("scored", raw="new"))
        ledger.flush()
        owner.send_signal(signal.SIGCONT)
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert "another run has taken this ledger" in said(owner.stdout)
        assert ledger.answers(key)[0][0]["raw"] == "new"


def test_an_operation_that_is_repeated_after_a_lost_connection_counts_once(warehouse):
    with MongoLedger(warehouse.location("ledger"), lease_s=10) as ledger:
        write, tries = ledger._write_batch, []

        def repeated(batch):
            write(batch)
            write(batch)
            tries.append(len(batch))

        ledger._write_batch = repeated
        for _ in range(2):
            ledger.record(KEY, 0, row("scored"))
        ledger.forget(KEY)
        ledger.record(KEY, 0, row("scored", raw="last"))
        assert ledger.tokens_used(["question"]) == (30, 0)
        assert ledger.answers(KEY) == ([row("scored", raw="last")], (30, 0, 0))
        assert sum(tries) == 4


def test_the_operation_of_an_earlier_owner_does_not_replace_a_later_one(warehouse):
    with MongoLedger(warehouse.location("ledger"), lease_s=10) as first:
        first.record(KEY, 0, row("scored", raw="early"))
        first.flush()
        batch = {KEY: {"$set": {"answers.0": {}, "last": first._fence * 2**40 + 99}}}
    with MongoLedger(warehouse.location("ledger"), lease_s=10) as second:
        second.record(KEY, 0, row("scored", raw="late"))
        second.flush()
        second._write_batch(batch)
        assert second.answers(KEY)[0][0]["raw"] == "late"


def test_lost_connections_are_survived(warehouse):
    if "127.0.0.1" not in warehouse.url:
        pytest.skip("needs a server with fail points")
    admin = warehouse.database.client.admin
    with MongoLedger(warehouse.location("ledger"), lease_s=10) as ledger:
        lost = {"failCommands": ["update"], "closeConnection": True}
        admin.command("configureFailPoint", "failCommand", mode={"times": 3}, data=lost)
        for number in range(5):
            ledger.record(KEY._replace(vote=number), 0, row("scored"))
        ledger.flush()
        assert ledger.tokens_used(["question"]) == (50, 0)


def test_recording_does_not_wait_for_the_server(warehouse):
    with MongoLedger(warehouse.location("ledger"), lease_s=10) as ledger:
        started = time.monotonic()
        for number in range(1000):
            ledger.record(Key(f"d{number}", "t", "question", 0), 0, row("scored"))
        assert time.monotonic() - started < 1  # a hundredth of it on an idle machine; the server takes seconds
        ledger.flush()
        assert ledger.tokens_used(["question"]) == (10_000, 0)


def test_a_run_with_a_ledger_in_mongodb_asks_once_and_another_output_asks_nothing(
    warehouse, serve, pages, prompt_file, tmp_path
):
    server = serve(lambda _: chat("Score: 3"))
    settings = Settings(_env_file=None, endpoint=server.url, model="m")
    config = AnnotateConfig(prompts=[prompt_file()], ledger=warehouse.location("ledger"))
    for output in ("a", "b"):
        assert annotate_documents(pages(20), config, tmp_path / output, settings).counts["scored"] == 20
    assert len(server.requests) == 20
    assert warehouse.database.ledger.count_documents({"answers.0.status": "scored"}) == 20
    assert warehouse.database[LEASES].find_one()["fence"] == 2


def test_a_server_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setenv("ML_FILTER_MONGODB_TIMEOUT_S", "0.2")
    with pytest.raises(InputError, match=r"^mongodb://127.0.0.1:9/db.ledger: no server answers"):
        open_ledger("mongodb://127.0.0.1:9/db.ledger", AskConfig())
