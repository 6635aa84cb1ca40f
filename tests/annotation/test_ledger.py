"""The ledger keeps every answer it was given, whatever happens to the process or the file."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.errors import InputError

KEY = Key("d1", "text", "question", 0)


def row(status: str, tokens: int | None = 10, **changes: Any) -> dict[str, Any]:
    blank = dict.fromkeys(ANNOTATION_SCHEMA.names)
    return {**blank, "document_id": "d1", "status": status, "prompt_tokens": tokens, "windows": 1, **changes}


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_a_recorded_answer_is_returned_unchanged(ledger):
    answer = row("scored", score=2.5, raw="Score: 2,5 \N{GRINNING FACE}\0", latency_s=0.1)
    ledger.record(KEY, 0, answer)
    assert ledger.answers(KEY)[0] == [answer]
    assert ledger.statuses(KEY) == {0: "scored"}


@pytest.mark.parametrize(
    "other",
    [
        Key("d2", "text", "question", 0),
        Key("d1", "other text", "question", 0),
        Key("d1", "text", "other question", 0),
        Key("d1", "text", "question", 1),
    ],
    ids=["document", "text", "question", "vote"],
)
def test_an_answer_belongs_to_its_own_key_only(ledger, other):
    ledger.record(KEY, 0, row("scored"))
    assert ledger.answers(other)[0] == []
    assert ledger.statuses(other) == {}


def test_a_failed_answer_is_kept_and_replaced_by_the_next(ledger):
    ledger.record(KEY, 0, row("failed", error="timeout"))
    assert ledger.statuses(KEY) == {0: "failed"}
    ledger.record(KEY, 0, row("scored"))
    assert ledger.statuses(KEY) == {0: "scored"}


def test_windows_without_an_answer_are_open(ledger):
    for window in (3, 1):
        ledger.record(KEY, window, row("scored", windows=4, raw=str(window)))
    assert ledger.statuses(KEY) == {0: "open", 1: "scored", 2: "open", 3: "scored"}
    assert [answer["raw"] for answer in ledger.answers(KEY)[0]] == ["1", "3"]
    ledger.forget(KEY)
    assert ledger.statuses(KEY) == {}


def test_tokens_of_a_replaced_answer_stay_spent(ledger):
    ledger.record(KEY, 0, row("failed", tokens=10, completion_tokens=3))
    ledger.record(KEY, 0, row("scored", tokens=20))
    ledger.record(Key("d2", "text", "question", 0), 0, row("failed", tokens=None))
    ledger.record(Key("d2", "text", "other question", 0), 0, row("scored", tokens=7))
    assert ledger.tokens_used(["question"]) == (30, 3)
    assert ledger.tokens_used(["question", "other question"]) == (37, 3)


def test_assumed_tokens_count_towards_the_budget_and_are_reported_separately(ledger):
    ledger.record(KEY, 0, row("failed", tokens=None), assumed=(40, 5))
    ledger.record(KEY, 0, row("scored", tokens=20, completion_tokens=2), assumed=(0, 0))
    assert ledger.answers(KEY)[1] == (20, 2, 45)
    assert ledger.tokens_used(["question"]) == (60, 7)


def test_tokens_of_dropped_answers_stay_spent(ledger):
    for times in (1, 2):  # cut anew, and once more
        ledger.record(KEY, 0, row("scored", windows=2, completion_tokens=2), assumed=(3, 1))
        ledger.record(KEY, 1, row("failed", windows=2, tokens=5))
        ledger.forget(KEY)
        assert (ledger.answers(KEY)[0], ledger.statuses(KEY)) == ([], {})
        assert ledger.answers(KEY)[1] == (15 * times, 2 * times, 4 * times)
        assert ledger.tokens_used(["question"]) == (18 * times, 3 * times)
    ledger.record(KEY, 0, row("scored"))
    answers, paid = ledger.answers(KEY)
    assert (answers, paid) == ([row("scored")], (40, 4, 8))
    ledger.forget(KEY._replace(document_id="never asked"))
    assert ledger.answers(KEY._replace(document_id="never asked"))[1] == (0, 0, 0)


def test_a_failure_while_answers_are_dropped_changes_nothing(ledger):
    ledger.record(KEY, 0, row("scored"))
    ledger._execute("CREATE TEMP TRIGGER broken BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'broken'); END")
    with pytest.raises(InputError, match="broken"):
        ledger.forget(KEY)
    assert ledger.answers(KEY) == ([row("scored")], (10, 0, 0))
    ledger._execute("DROP TRIGGER broken")
    ledger.forget(KEY)
    assert ledger.answers(KEY) == ([], (10, 0, 0))


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path), pytest.raises(InputError, match=r"in use by another run; wait for it, or use"):
        Ledger(path)
    with Ledger(path) as ledger:
        assert ledger.answers(KEY)[0] == []


# --- Files that are not a ledger, or damaged -----------------------------------------------------------------------


def test_a_file_that_is_not_a_ledger_is_reported_and_left_unchanged(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, not a data base " * 100)
    before = text.read_bytes()
    for _ in range(2):
        with pytest.raises(InputError, match=r"notes\.txt is not a ledger of annotations, or it is damaged"):
            Ledger(text)
    assert text.read_bytes() == before


def test_a_ledger_with_other_columns_is_reported(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE answers (document_id TEXT, text_digest TEXT, question TEXT, vote INTEGER)")
    old.close()
    with pytest.raises(InputError, match="no such column"):
        Ledger(path)


def test_unwritable_paths_are_reported(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot open"):
        Ledger(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_damaged_ledger_is_reported(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        for number in range(500):
            ledger.record(Key(f"d{number}", "text", "question", 0), 0, row("scored", raw="x" * 200))
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 20] = random.Random(1).randbytes(4096 * 18)
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match=r"ledger\.sqlite is not a ledger of annotations, or it is damaged"),
        Ledger(path) as ledger,
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
from test_ledger import Key, Ledger, row
ledger = Ledger(Path(sys.argv[1]))
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
        with Ledger(path) as ledger:
            keys = [Key(f"d{number}", "text", "question", 0) for number in range(last + 1)]
            assert all(ledger.statuses(key) == {0: "scored"} for key in keys)
    assert last > 50
