"""Cron expressions of Kubernetes and EventBridge: what is refused, and what is translated from one to the other."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from croniter import croniter
from hypothesis import assume, given
from hypothesis import strategies as st

from ml_filter.errors import ConfigError
from tools.cron import checked_cron, next_time

DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
START = datetime(2027, 1, 1, tzinfo=UTC)


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    """Fields of five-field cron: stars, numbers, ranges, steps, lists."""
    number = st.integers(low, high)
    # Of two different numbers: croniter, the reference, takes 1-1 as the whole range.
    span = st.lists(number, min_size=2, max_size=2, unique=True).map(lambda ends: f"{min(ends)}-{max(ends)}")
    step = st.integers(1, high)
    element = st.one_of(
        number.map(str),
        span,
        st.builds("{}/{}".format, st.one_of(st.just("*"), number.map(str), span), step),
    )
    return st.one_of(st.just("*"), st.lists(element, min_size=1, max_size=3).map(",".join))


EXPRESSIONS = st.builds(
    "{} {} {} {} {}".format, fields(0, 59), fields(0, 23), fields(1, 28), fields(1, 12), fields(0, 6)
)


def is_due(expression: str, moment: datetime) -> bool:
    """Whether an expression of EventBridge comes due at a moment, after the table in its documentation."""
    minute, hour, day, month, weekday, year = expression.split()
    assert (day == "?") != (weekday == "?")
    assert not re.search(r"[/L#]", weekday)
    assert year == "*"
    return (
        has(minute, 0, 59, moment.minute)
        and has(hour, 0, 23, moment.hour)
        and (day == "?" or has(day, 1, 31, moment.day))
        and has(month, 1, 12, moment.month)
        and (weekday in ("?", "*") or moment.strftime("%a").upper() in weekday.split(","))
    )


def has(field: str, low: int, high: int, value: int) -> bool:
    for element in field.split(","):
        span, _, step = element.partition("/")
        assert not (step and ("*" in span or "-" in span)), "a step that EventBridge may not take"
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        end = int(last) if last else high if step else int(first)
        if value in range(int(first), end + 1, int(step or 1)):
            return True
    return False


@given(EXPRESSIONS)
def test_a_translated_expression_comes_due_at_the_same_times(expression):
    assume("*/1" not in expression.split())  # the same as * in Kubernetes, but not in croniter
    try:
        translated = checked_cron(expression, "eventbridge")
    except ConfigError as error:
        assert "on a day of the month and also on a weekday" in str(error)
        assert "*" not in expression.split()[2::2]
        return
    times = croniter(expression, START - timedelta(minutes=1))
    due = [times.get_next(datetime) for _ in range(3)]
    for moment in due:
        assert is_due(translated, moment)
        assert sum(is_due(translated, moment + timedelta(minutes=n)) for n in range(-90, 0)) == len(
            [*earlier(expression, moment)]
        )
    assert next_time(translated, START - timedelta(minutes=1)) == due[0]
    assert checked_cron(translated, "eventbridge") == translated


def earlier(expression: str, moment: datetime) -> list[datetime]:
    """The times in the ninety minutes before."""
    times = croniter(expression, moment)
    found = []
    while (previous := times.get_prev(datetime)) >= moment - timedelta(minutes=90):
        found.append(previous)
    return found


@pytest.mark.slow
@given(EXPRESSIONS)
def test_kubernetes_takes_every_five_fields_as_they_are(expression):
    assert checked_cron(expression, "five fields") == expression


@pytest.mark.parametrize(
    ("expression", "dialect", "reason"),
    [
        ("0 3 * * ? *", "five fields", "it has 6 fields. This stack takes five fields: minute hour day month weekday"),
        ("0 3 * *", "five fields", "it has 4 fields"),
        ("0 3 * *", "eventbridge", "it has 4 fields. This stack takes six fields"),
        ("61 * * * *", "five fields", "minute '61': '61' is not between 0 and 59"),
        ("0 3 * * 7", "five fields", "weekday '7': '7' is not between 0 and 6"),
        ("0 3 * * MON-FOO", "five fields", "'FOO' is not between 0 and 6"),
        ("*/0 3 * * *", "five fields", "minute '*/0': the step is 0"),
        ("0 20-4 * * *", "five fields", "hour '20-4': the range is backwards"),
        ("0 3 30 2 *", "five fields", "no day 30 in FEB"),
        ("@reboot", "five fields", "it has 1 fields"),
        ("at three", "eventbridge", "it has 2 fields"),
        ("0 3 * * * *", "eventbridge", "one of day and weekday has to be ?, and only one"),
        ("0 3 ? * ? *", "eventbridge", "one of day and weekday has to be ?, and only one"),
        ("0 ? * * ? *", "eventbridge", "hour '?': only day or weekday can be ?"),
        ("0 3 ? * 2/2 *", "eventbridge", "name the days, as MON,WED"),
        ("0 3 ? * 0 *", "eventbridge", "weekday '0': '0' is not between 1 and 7"),
        ("0 3 31 4,6 ? *", "eventbridge", "no day 31 in APR or JUN"),
        ("0 3 1 1 ? 2020", "eventbridge", "year 2020 is over"),
        ("0 3 1 * 1", "eventbridge", "on a day of the month and also on a weekday"),
    ],
)
def test_an_expression_that_the_orchestrator_would_refuse_is_refused_before(expression, dialect, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)) as error:
        checked_cron(expression, dialect)
    assert repr(expression) in str(error.value)


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("cron(0 3 ? * 6L 2027)", datetime(2027, 1, 29, 3)),  # the last Friday
        ("0 3 ? * 2#1 *", datetime(2027, 1, 4, 3)),  # the first Monday
        ("0 3 ? * MON-FRI *", datetime(2027, 1, 1, 3)),
        ("0 3 ? * 3-4,SAT *", datetime(2027, 1, 2, 3)),
        ("0 3 ? * L *", datetime(2027, 1, 2, 3)),  # Saturday
        ("0 3 L * ? *", datetime(2027, 1, 31, 3)),
        ("0 3 1 * ? 2028-2030", datetime(2028, 1, 1, 3)),
        ("0 3 15W * ? *", None),
    ],
)
def test_special_days_of_eventbridge_are_taken_and_the_next_one_is_known(expression, due):
    checked = checked_cron(expression, "eventbridge")
    assert next_time(checked, START) == (due and due.replace(tzinfo=UTC))


def test_short_forms_and_question_marks_are_those_of_kubernetes():
    assert checked_cron("@daily", "five fields") == "0 0 * * *"
    assert checked_cron("@weekly", "eventbridge") == "0 0 ? * SUN *"
    assert checked_cron("0 3 ? * MON-FRI", "eventbridge") == "0 3 ? * MON,TUE,WED,THU,FRI *"
