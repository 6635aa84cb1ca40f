"""Logging and names of pipeline runs."""

import logging

from ml_filter.errors import InputError
from tools.outcome import without_traceback
from tools.run import unique_name


def record_of(error: Exception) -> logging.LogRecord:
    return logging.LogRecord("zenml", logging.ERROR, "", 0, "step failed", (), (type(error), error, None))


def test_an_error_that_says_what_to_do_is_logged_without_a_traceback():
    wrapped = RuntimeError("step failed")
    wrapped.__cause__ = InputError("a.jsonl does not exist")
    for error, keeps in ((InputError("x"), False), (wrapped, False), (KeyError("x"), True)):
        record = record_of(error)
        assert without_traceback(record)
        assert bool(record.exc_info) == keeps


def test_a_name_of_runs_can_be_used_again():
    assert unique_name("nightly") == "nightly-{date}-{time}"
    assert unique_name("{time}-nightly") == "{time}-nightly"
    assert unique_name(None) is None
