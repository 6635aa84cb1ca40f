"""Comet: the same metrics online, offline, or nowhere."""

import json
import zipfile
from pathlib import Path

import pytest

from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError
from ml_filter.settings import Settings, TrackingConfig
from ml_filter.tracking import run_metrics, track_run

MANIFEST = Manifest(kind="scored", counts={"read": 5, "scored": 4, "failed": 1})


def test_offline_leaves_an_archive_that_holds_the_metrics(tmp_path):
    metrics, parameters = run_metrics([MANIFEST])
    config = TrackingConfig(mode="offline", directory=str(tmp_path / "comet"))
    archive = Path(track_run(config, "a run", metrics, parameters))
    with zipfile.ZipFile(archive) as content:
        messages = "".join(content.read(name).decode(errors="replace") for name in content.namelist() if "json" in name)
    for name in ("scored_read", "scored_scored", "scored_failed"):
        assert json.dumps(name) in messages


def test_off_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert track_run(TrackingConfig(), "a run", {"a": 1.0}, {}) == "off"
    assert not list(tmp_path.iterdir())


def test_online_without_a_key_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="COMET_API_KEY"):
        track_run(TrackingConfig(mode="online"), "a run", {}, {}, settings=Settings(_env_file=None))
