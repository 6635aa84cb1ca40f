"""Cron expressions, checked in the dialect of the orchestrator before a schedule is created.

Kubernetes takes five fields: minute, hour, day of the month, month, weekday (0 is Sunday). EventBridge, which starts
pipelines of SageMaker, takes six: a year comes last, weekdays count from 1, and one of the two fields for days is `?`.
Sources: kubernetes.io/docs, CronJob; github.com/robfig/cron, which Kubernetes parses with; docs.aws.amazon.com,
EventBridge Scheduler, schedule types.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from ml_filter.errors import ConfigError

Dialect = Literal["five fields", "eventbridge"]
_FORMS = {
    "five fields": "five fields: minute hour day month weekday, as in '0 3 * * 1-5'",
    "eventbridge": "six fields: minute hour day month weekday year, with ? as day or weekday, as in '0 3 * * ? *'",
}
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ELEMENT = re.compile(r"(?:(?P<all>[*?])|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?")
_SPECIAL_DAY = re.compile(r"L|LW|([1-9]|[12]\d|3[01])W")
_SPECIAL_WEEKDAY = re.compile(rf"L|([1-7]|{'|'.join(_DAYS)})(L|#[1-5])")


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def values(self, text: str) -> set[int]:
        """The values that a field with `*`, lists, ranges and steps stands for."""
        return {value for element in text.split(",") for value in self._element(element, text)}

    def _element(self, element: str, text: str) -> range:
        match = _ELEMENT.fullmatch(element)
        if match is None:
            raise ConfigError(f"{self.name} {text!r}: {element!r} is not a number, name, range or step")
        if match["all"]:
            first, last = self.low, self.high
        else:
            first = self._number(match["first"], text)
            last = self._number(match["last"], text) if match["last"] else self.high if match["step"] else first
        step = int(match["step"] or 1)
        if step == 0 or last < first:
            raise ConfigError(f"{self.name} {text!r}: {'the step is 0' if step == 0 else 'the range is backwards'}")
        return range(first, last + 1, step)

    def _number(self, text: str, field: str) -> int:
        if text.upper() in self.names:
            return self.low + self.names.index(text.upper())
        if not text.isdecimal() or not self.low <= int(text) <= self.high:
            raise ConfigError(f"{self.name} {field!r}: {text!r} is not between {self.low} and {self.high}")
        return int(text)


_MINUTE, _HOUR = _Field("minute", 0, 59), _Field("hour", 0, 23)
_DAY, _MONTH = _Field("day", 1, 31), _Field("month", 1, 12, _MONTHS)
_WEEKDAY, _AWS_WEEKDAY = _Field("weekday", 0, 6, _DAYS), _Field("weekday", 1, 7, _DAYS)
_YEAR = _Field("year", 1970, 2199)


def checked_cron(expression: str, dialect: Dialect) -> str:
    """The expression as the orchestrator takes it; five fields are translated for EventBridge if that is unambiguous.

    Raises:
        ConfigError: it is not of this dialect, or never comes due; with the form that is.
    """
    text = _MACROS.get(expression.strip().lower(), expression).strip()
    text = text.removeprefix("cron(").removesuffix(")") if dialect == "eventbridge" else text
    fields = text.split()
    try:
        if dialect == "eventbridge" and len(fields) == 6:
            return _check_six(fields)
        if len(fields) != 5:
            raise ConfigError(f"it has {len(fields)} fields")
        _check_five(fields)
        return " ".join(fields if dialect == "five fields" else _translated(fields))
    except ConfigError as error:
        raise ConfigError(f"cron {expression!r}: {error}. This stack takes {_FORMS[dialect]}") from None


def next_time(expression: str, after: datetime | None = None) -> datetime | None:
    """When a checked expression of either dialect comes due next, in UTC; None: never, or not known.

    Nearest weekdays (`15W`) are not known.
    """
    from croniter import CroniterError, croniter

    fields = expression.split()
    if len(fields) == 6:
        if "W" in fields[2]:
            return None
        weekday = re.sub(r"(?<!#)\d", lambda number: str(int(number[0]) - 1), fields[4])
        weekday = re.sub(r"^(\w+)L$", r"L\1", "6" if weekday == "L" else weekday)
        fields = [*fields[:4], weekday, "0", fields[5]]
    try:
        found: datetime = croniter(" ".join(fields).replace("?", "*"), after or datetime.now(UTC)).get_next(datetime)
    except CroniterError:
        return None
    return found


def _check_five(fields: list[str]) -> None:
    minute, hour, day, month, weekday = fields
    _MINUTE.values(minute), _HOUR.values(hour), _WEEKDAY.values(weekday)
    days, months = _DAY.values(day), _MONTH.values(month)
    if _is_any(weekday):  # otherwise a weekday is enough
        _check_comes_due(days, months)


def _check_six(fields: list[str]) -> str:
    minute, hour, day, month, weekday, year = (field.upper() for field in fields)
    for field, text in ((_MINUTE, minute), (_HOUR, hour), (_MONTH, month), (_YEAR, year)):
        if "?" in text:
            raise ConfigError(f"{field.name} {text!r}: only day or weekday can be ?")
        field.values(text)
    if (day == "?") == (weekday == "?"):
        raise ConfigError("one of day and weekday has to be ?, and only one")
    if "/" in weekday or "?" in day[1:] + weekday[1:]:
        raise ConfigError(f"{'weekday' if '/' in weekday else 'day or weekday'} {weekday!r}: name the days, as MON,WED")
    if not _SPECIAL_WEEKDAY.fullmatch(weekday):
        _AWS_WEEKDAY.values(weekday)
    if not _SPECIAL_DAY.fullmatch(day):
        _check_comes_due(_DAY.values(day), _MONTH.values(month))
    if max(_YEAR.values(year)) < datetime.now(UTC).year:
        raise ConfigError(f"year {year} is over")
    return " ".join((minute, hour, day, month, weekday, year))


def _check_comes_due(days: set[int], months: set[int]) -> None:
    if min(days) > max(_LENGTHS[month - 1] for month in months):
        raise ConfigError(f"no day {min(days)} in {' or '.join(_MONTHS[month - 1] for month in sorted(months))}")


def _translated(fields: list[str]) -> list[str]:
    minute, hour, day, month, weekday = fields
    if not _is_any(day) and not _is_any(weekday):
        raise ConfigError(
            "it comes due on a day of the month and also on a weekday, which EventBridge cannot say in one schedule: "
            "create one for each"
        )
    days = "?" if _is_any(day) and not _is_any(weekday) else _plain(day, _DAY)
    weekdays = "?" if days != "?" else ",".join(_DAYS[number] for number in sorted(_WEEKDAY.values(weekday)))
    return [_plain(minute, _MINUTE), _plain(hour, _HOUR), days, _plain(month, _MONTH), weekdays, "*"]


def _plain(text: str, field: _Field) -> str:
    """A field in the forms that every dialect has: `*`, numbers, names, ranges, and steps from a number on."""
    if any(map(_is_any, text.split(","))):
        return "*"
    return ",".join(_plain_element(element, field) for element in text.upper().split(","))


def _plain_element(element: str, field: _Field) -> str:
    start, _, step = element.partition("/")
    if start in ("*", "?"):
        return f"{field.low}/{step}"
    return ",".join(map(str, sorted(field.values(element)))) if step and "-" in start else element


def _is_any(text: str) -> bool:
    return text in ("*", "?", "*/1", "?/1")
