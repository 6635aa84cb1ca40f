"""The ledger in an SQLite file keeps every answer it was given, whatever happens to the process or the file."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ml_filter.annotation.ledger import Key
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.errors import InputError
from tests.annotation.ledgers import KEY, row


@pytest.fixture
def ledger(tmp_path):
    with SqliteLedger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_a_failure_while_answers_are_dropped_changes_nothing(ledger):
    ledger.record(KEY, 0, row("scored"))
    ledger._execute("CREATE TEMP TRIGGER broken BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'broken'); END")
    with pytest.raises(InputError, match="broken"):
        ledger.forget(KEY)
    assert ledger.answers(KEY) == ([row("scored")], (10, 0, 0))
    ledger._execute("DROP TRIGGER broken")
    ledger.forget(KEY)
    assert ledger.answers(KEY) == ([], (10, 0, 0))


# --- Files that are not a ledger, or damaged -----------------------------------------------------------------------


def test_a_file_that_is_not_a_ledger_is_reported_and_left_unchanged(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, not a data base " * 100)
    before = text.read_bytes()
    for _ in range(2):
        with pytest.raises(InputError, match=r"notes\.txt is not a ledger of annotations, or it is damaged"):
            SqliteLedger(text)
    assert text.read_bytes() == before


def test_a_ledger_with_other_columns_is_reported(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE answers (document_id TEXT, text_digest TEXT, question TEXT, vote INTEGER)")
    old.close()
    with pytest.raises(InputError, match="no such column"):
        SqliteLedger(path)


def test_unwritable_paths_are_reported(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot open"):
        SqliteLedger(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        SqliteLedger(tmp_path / "file" / "ledger.sqlite")


def test_a_damaged_ledger_is_reported(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with SqliteLedger(path) as ledger:
        for number in range(500):
            ledger.record(Key(f"d{number}", "text", "question", 0), 0, row("scored", raw="x" * 200))
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 20] = random.Random(1).randbytes(4096 * 18)
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match=r"ledger\.sqlite is not a ledger of annotations, or it is damaged"),
        SqliteLedger(path) as ledger,
    ):
        for number in range(500):
            ledger.answers(Key(f"d{number}", "text", "question", 0))


def test_a_full_disk_is_reported_with_advice_that_keeps_all_answers(ledger):
    ledger.record(KEY, 0, row("scored"))
    [[pages]] = ledger._execute("PRAGMA page_count")
    ledger._execute(f"PRAGMA max_page_count = {pages}")  # what a disk without space does to a data base
    with pytest.raises(InputError, match=r"is full\. Its answers are safe.*free disk space.*same command") as told:
        for vote in range(1, 100):
            ledger.record(KEY._replace(vote=vote), 0, row("scored", raw="x" * 500))
    assert "Move it away" not in str(told.value)
    assert ledger.statuses(KEY) == {0: "scored"}


def test_a_ledger_locked_by_another_program_is_reported(ledger):
    ledger._execute("PRAGMA busy_timeout = 20")
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match=r"is locked\. Its answers are safe.*close other programs"):
        ledger.record(KEY, 0, row("scored"))
    other.close()
    ledger.record(KEY, 0, row("scored"))


# --- Kills -----------------------------------------------------------------------------------------------------------

WRITER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from ml_filter.annotation.ledger import Key
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ledgers import row
ledger = SqliteLedger(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    ledger.record(Key(f"d{{number}}", "text", "question", 0), 0, row("scored", raw="x" * 500))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_recorded_answers_survive_kills(tmp_path):
    path, last, rng = tmp_path / "ledger.sqlite", -1, random.Random(5)
    for _ in range(2):
        line = [sys.executable, "-c", WRITER, str(path), str(last + 1)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline().strip() == str(last + 1)
            time.sleep(rng.uniform(0.02, 0.2))
            os.kill(writer.pid, signal.SIGKILL)
            last = int(writer.stdout.read().split()[-1])
        with SqliteLedger(path) as ledger:
            keys = [Key(f"d{number}", "text", "question", 0) for number in range(last + 1)]
            assert all(ledger.statuses(key) == {0: "scored"} for key in keys)
    assert last > 50
