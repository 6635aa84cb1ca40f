import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.documents.schema import ANNOTATION_SCHEMA

KEY = Key("d1", "text", "question", 0)


def row(status: str, tokens: int = 10, **changes: object) -> dict:
    return {
        **dict.fromkeys(ANNOTATION_SCHEMA.names),
        "document_id": "d1",
        "status": status,
        "prompt_tokens": tokens,
        **changes,
    }


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_what_was_recorded_comes_back_whole(ledger):
    answer = row("scored", score=2.5, raw="Score: 2,5 \N{GRINNING FACE}\0", latency_s=0.1)
    ledger.record(KEY, answer)
    assert ledger.get(KEY) == answer
    assert ledger.has_score(KEY)


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
def test_an_answer_counts_for_its_own_key_only(ledger, other):
    ledger.record(KEY, row("scored"))
    assert ledger.get(other) is None
    assert not ledger.has_score(other)


def test_a_failed_answer_is_kept_but_is_no_score_and_is_replaced_by_the_next(ledger):
    ledger.record(KEY, row("failed", error="timeout"))
    assert not ledger.has_score(KEY)
    assert ledger.counts("question") == {"failed": 1}
    ledger.record(KEY, row("scored"))
    assert ledger.has_score(KEY)
    assert ledger.counts("question") == {"scored": 1}
    assert ledger.counts("other question") == {}


def test_tokens_of_a_replaced_answer_stay_spent(ledger):
    ledger.record(KEY, row("failed", tokens=10, completion_tokens=3))
    ledger.record(KEY, row("scored", tokens=20))
    ledger.record(Key("d2", "text", "question", 0), row("failed", tokens=None))
    assert ledger.tokens_used() == 33


def test_every_answer_survives_a_kill_right_after_it(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_ledger import Key, Ledger, row
ledger = Ledger(Path(sys.argv[1]))
for number in range(200):
    ledger.record(Key(f"d{{number}}", "text", "question", 0), row("scored"))
print("recorded", flush=True)
sys.stdin.read()
"""
    path = tmp_path / "ledger.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "recorded\n"
        os.kill(writer.pid, signal.SIGKILL)
    with Ledger(path) as ledger:
        assert ledger.counts("question") == {"scored": 200}
        assert all(ledger.has_score(Key(f"d{number}", "text", "question", 0)) for number in range(200))
