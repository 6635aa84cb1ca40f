"""What every ledger promises, wherever it is."""

from __future__ import annotations

import pytest

from ml_filter.annotation.ledger import Key
from ml_filter.errors import InputError
from tests.annotation.ledgers import KEY, OpenLedger, row


@pytest.fixture
def ledger(open_new):
    with open_new() as opened:
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


def test_a_second_writer_is_refused_until_the_first_is_done(open_new: OpenLedger):
    with open_new() as first:
        with pytest.raises(InputError, match=r"in use by another run.*wait for it, or use another"):
            open_new()
        first.record(KEY, 0, row("scored"))
    with open_new() as second:
        assert second.statuses(KEY) == {0: "scored"}


def test_a_ledger_that_is_opened_again_has_all_answers_and_tokens(open_new: OpenLedger):
    other = KEY._replace(vote=1)
    with open_new() as ledger:
        assert ledger.is_worthless()
        ledger.record(KEY, 0, row("failed", tokens=10, completion_tokens=3), assumed=(2, 1))
        ledger.record(KEY, 0, row("scored", tokens=20, raw="\N{GRINNING FACE}\0"))
        ledger.record(other, 0, row("scored", windows=2))
        ledger.forget(other)
    for _ in range(2):
        with open_new() as ledger:
            assert ledger.answers(KEY) == ([row("scored", tokens=20, raw="\N{GRINNING FACE}\0")], (30, 3, 3))
            assert (ledger.answers(other), ledger.statuses(other)) == (([], (10, 0, 0)), {})
            assert ledger.tokens_used(["question"]) == (42, 4)
            assert not ledger.is_worthless()


def test_what_was_flushed_is_saved_while_the_ledger_is_open(open_new: OpenLedger):
    with open_new() as ledger:
        ledger.record(KEY, 0, row("scored"))
        ledger.wait_for_room()
        assert ledger.has_room()
        ledger.flush()
        assert ledger.statuses(KEY) == {0: "scored"}
