"""Logging and names of pipeline runs."""

import logging

import pytest

from ml_filter.config import Settings
from ml_filter.errors import ConfigError, InputError
from ml_filter.pipeline.config import ScoringPipelineConfig
from tools.outcome import without_traceback
from tools.run import main, read_config, unique_name


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


def test_an_unknown_option_is_named_in_one_line_with_the_form_of_settings(capsys):
    assert main(["scoring", "--min-score", "2"]) == 2
    printed = capsys.readouterr().err
    assert printed == "error: unknown arguments: --min-score; settings are NAME=VALUE; see --help\n"


def test_a_wrong_environment_variable_is_named_and_its_value_is_not(monkeypatch):
    monkeypatch.setenv("ML_FILTER_ALERT_ON", "sk-secret")
    monkeypatch.setenv("ML_FILTER_TRACE_SHARE", "2")
    with pytest.raises(ConfigError, match=r"ALERT_ON: .*success, drift.*; ML_FILTER_TRACE_SHARE: ") as wrong:
        Settings()
    assert "sk-secret" not in str(wrong.value)


def test_a_warehouse_that_is_no_collection_is_refused_before_anything_runs(tmp_path):
    file = tmp_path / "scoring.yaml"
    file.write_text("parameters: {}")
    with pytest.raises(ConfigError, match=r"warehouse\.filtered: 'runs/x' is not of the form mongodb://"):
        read_config(file, ["warehouse.filtered=runs/x"], ScoringPipelineConfig)
