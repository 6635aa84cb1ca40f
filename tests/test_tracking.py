"""What reaches Comet: exactly the figures of the run, and no secret."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError
from ml_filter.settings import Settings, TrackingConfig
from ml_filter.tracking import run_metrics, track_run

KEY = "comet-very-secret-key"
ANNOTATIONS = Manifest(
    kind="annotations",
    counts={"documents": 4, "scored": 3, "failed": 1},
    config={
        "prompts": [{"name": "educational_value", "digest": "abc"}, {"name": "danger", "digest": "def"}],
        "annotator": "m",
        "seed": 1,
    },
)
OTHER_JUDGE = ANNOTATIONS.model_copy(update={"config": {**ANNOTATIONS.config, "annotator": "n"}})
SCORES = Manifest(kind="scores", counts={"documents": 4, "votes": 3})


def recorded(archive: Path) -> dict[str, Any]:
    """Metrics, parameters and pages in an offline archive."""
    with zipfile.ZipFile(archive) as content:
        lines = content.read("messages.json").decode().splitlines()
    found: dict[str, Any] = {"metrics": {}, "parameters": {}, "html": []}
    for message in map(json.loads, lines):
        payload = message["payload"]
        if message["type"] == "metric_msg":
            found["metrics"][payload["metric"]["metricName"]] = payload["metric"]["metricValue"]
        elif message["type"] == "parameter_msg":
            found["parameters"][payload["param"]["paramName"]] = payload["param"]["paramValue"]
        elif message["type"] == "html":
            found["html"].append(payload["html"])
    found["metrics"].pop("process duration", None)  # Comet's own, when it measures one
    return found


def test_metrics_are_the_counts_of_each_stage_and_parameters_say_what_made_them():
    metrics, parameters = run_metrics([ANNOTATIONS, SCORES])
    assert metrics == {
        "annotations_documents": 4.0,
        "annotations_scored": 3.0,
        "annotations_failed": 1.0,
        "scores_documents": 4.0,
        "scores_votes": 3.0,
    }
    assert parameters == {
        "annotations_digest": ANNOTATIONS.digest,
        "scores_digest": SCORES.digest,
        "prompt": "educational_value, danger",
        "prompt_digest": "abc, def",
        "annotator": "m",
    }


def test_every_judge_of_a_jury_is_a_parameter():
    assert run_metrics([ANNOTATIONS, OTHER_JUDGE])[1]["annotator"] == "m, n"


def test_the_offline_archive_holds_these_and_the_report_and_nothing_of_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", KEY)
    metrics, parameters = run_metrics([ANNOTATIONS, SCORES])
    config = TrackingConfig(mode="offline", directory=str(tmp_path / "deep" / "comet"))
    archive = track_run(config, "a run", metrics, parameters, "<p>the report</p>")
    assert [str(path) for path in (tmp_path / "deep" / "comet").iterdir()] == [archive]
    assert recorded(Path(archive)) == {"metrics": metrics, "parameters": parameters, "html": ["<p>the report</p>"]}
    with zipfile.ZipFile(archive) as content:
        assert not any(KEY.encode() in content.read(name) for name in content.namelist())


def test_each_offline_run_has_an_archive_of_its_own(tmp_path):
    config = TrackingConfig(mode="offline", directory=str(tmp_path))
    first, second = (track_run(config, "a run", {"n": n}, {}) for n in (1.0, 2.0))
    assert [recorded(Path(path))["metrics"] for path in (first, second)] == [{"n": 1.0}, {"n": 2.0}]


def test_auto_without_a_key_is_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", "")
    config = TrackingConfig(mode="auto", directory=str(tmp_path))
    archive = track_run(config, "a run", {"n": 1.0}, {}, settings=Settings(_env_file=None))
    assert recorded(Path(archive))["metrics"] == {"n": 1.0}


def test_off_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert track_run(TrackingConfig(), "a run", {"n": 1.0}, {}) == "off"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [None, ""])
def test_online_without_a_key_is_refused_before_anything_is_sent(key, tmp_path, monkeypatch):
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("COMET_API_KEY", key)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="COMET_API_KEY is not set; set it, or use offline or off"):
        track_run(TrackingConfig(mode="online"), "a run", {}, {}, settings=Settings(_env_file=None))
    assert list(tmp_path.iterdir()) == []
