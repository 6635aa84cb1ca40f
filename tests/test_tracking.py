"""Comet gets exactly the figures of the run, and no secrets."""

import json
import zipfile
from typing import Any

import pytest

from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from ml_filter.reporting.run import record_run
from ml_filter.tracking import RunRecord, TrackingConfig, track_run

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
OTHER_ANNOTATOR = ANNOTATIONS.model_copy(update={"config": {**ANNOTATIONS.config, "annotator": "n"}})
SCORES = Manifest(kind="scores", counts={"documents": 4, "votes": 3})


def read_archive(archive: str) -> dict[str, Any]:
    """Content of an offline archive: metrics, parameters, points of the curves, and files by name."""
    content: dict[str, Any] = {"metrics": {}, "parameters": {}, "curves": [], "files": {}}
    with zipfile.ZipFile(archive) as archive_file:
        for message in map(json.loads, archive_file.read("messages.json").decode().splitlines()):
            payload = message["payload"]
            if message["type"] == "metric_msg":
                metric = payload["metric"]
                name, value = metric["metricName"], metric["metricValue"]
                if name == "process duration":  # measured by Comet itself
                    continue
                if metric["step"] is None:
                    content["metrics"][name] = value
                else:
                    content["curves"].append((name, metric["step"], metric["epoch"], value))
            elif message["type"] == "parameter_msg" and payload["param"]["source"] == "manual":
                content["parameters"][payload["param"]["paramName"]] = payload["param"]["paramValue"]
            elif message["type"] == "file_upload":
                content["files"][payload["additional_params"]["fileName"]] = archive_file.read(
                    payload["file_path"]
                ).decode()
    return content


def test_metrics_are_the_counts_of_each_stage_and_parameters_name_its_inputs():
    record = record_run([ANNOTATIONS, SCORES])
    assert record.metrics == {
        "annotations_documents": 4.0,
        "annotations_scored": 3.0,
        "annotations_failed": 1.0,
        "scores_documents": 4.0,
        "scores_votes": 3.0,
    }
    assert record.parameters == {
        "annotations_digest": ANNOTATIONS.digest,
        "scores_digest": SCORES.digest,
        "prompt": "educational_value, danger",
        "prompt_digest": "abc, def",
        "annotator": "m",
    }


def test_all_annotators_are_recorded():
    assert record_run([ANNOTATIONS, OTHER_ANNOTATOR]).parameters["annotator"] == "m, n"


def test_the_record_of_a_head_has_its_figures_settings_digests_and_curves(tmp_path, labelled):
    config = TrainConfig(kind="hashing", label_column="label")
    head = train_head(SourceConfig(paths=[str(labelled)]), config, tmp_path / "head")
    head.training.history = [{"step": 10, "epoch": 1.0, "loss": 0.5}]
    record = record_run([], head)
    assert record.history == head.training.history
    assert record.metrics == head.training.evaluation.figures("head_")
    assert sum(map(sum, record.confusions["test"][1])) == head.training.test_documents
    expected = {
        "head_digest": head.digest,
        "labels_digest": head.training.parents[0].digest,
        "train_kind": "hashing",
        "train_head.balance": 0.5,
    }
    assert record.parameters.items() >= expected.items()


RECORD = RunRecord(
    metrics={"head_spearman": 0.84},
    parameters={"head_digest": "abc", "train_balance": 0.5},
    history=[
        {"step": 10, "epoch": 0.5, "loss": 2.5, "learning_rate": 0.001, "grad_norm": 1.5, "eval_loss": None},
        {"step": 20, "epoch": 1.0, "loss": 1.25, "learning_rate": 0.0, "grad_norm": 0.5, "eval_loss": 1.75},
    ],
    confusions={"gold": ([0, 3], [[5, 1], [2, 7]])},
    pages={"evaluation.html": "<p>the report</p>"},
)


def test_the_offline_archive_contains_figures_curves_matrix_and_page_but_not_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", KEY)
    config = TrackingConfig(mode="offline", directory=str(tmp_path / "deep" / "comet"))
    archive = track_run(config, "a run", RECORD)
    assert [str(path) for path in (tmp_path / "deep" / "comet").iterdir()] == [archive]
    content = read_archive(archive)
    assert (content["metrics"], content["parameters"]) == (RECORD.metrics, RECORD.parameters)
    assert sorted(content["curves"]) == [
        ("eval_loss", 20, 1.0, 1.75),
        ("grad_norm", 10, 0.5, 1.5),
        ("grad_norm", 20, 1.0, 0.5),
        ("learning_rate", 10, 0.5, 0.001),
        ("learning_rate", 20, 1.0, 0.0),
        ("loss", 10, 0.5, 2.5),
        ("loss", 20, 1.0, 1.25),
    ]
    assert content["files"].keys() == {"evaluation.html", "confusion-gold.json"}
    assert content["files"]["evaluation.html"] == "<p>the report</p>"
    matrix = json.loads(content["files"]["confusion-gold.json"])
    assert (matrix["matrix"], matrix["labels"]) == ([[5, 1], [2, 7]], ["0", "3"])
    assert (matrix["rowLabel"], matrix["columnLabel"]) == ("label", "score")
    with zipfile.ZipFile(archive) as archive_file:
        assert not any(KEY.encode() in archive_file.read(name) for name in archive_file.namelist())


def test_comets_error_reports_are_disabled(tmp_path, monkeypatch):
    monkeypatch.delenv("COMET_ERROR_TRACKING_ENABLE", raising=False)
    track_run(TrackingConfig(mode="offline", directory=str(tmp_path)), "a run", RunRecord())
    from comet_ml import error_tracking

    assert not error_tracking.enabled_in_config()


def test_each_offline_run_has_its_own_archive(tmp_path):
    config = TrackingConfig(mode="offline", directory=str(tmp_path))
    first, second = (track_run(config, "a run", RunRecord({"n": n})) for n in (1.0, 2.0))
    assert [read_archive(path)["metrics"] for path in (first, second)] == [{"n": 1.0}, {"n": 2.0}]


def test_auto_without_a_key_is_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", "")
    config = TrackingConfig(mode="auto", directory=str(tmp_path))
    archive = track_run(config, "a run", RunRecord({"n": 1.0}), Settings(_env_file=None))
    assert read_archive(archive)["metrics"] == {"n": 1.0}


def test_off_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert track_run(TrackingConfig(), "a run", RunRecord({"n": 1.0})) == "off"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [None, ""])
def test_online_without_a_key_is_an_error(key, tmp_path, monkeypatch):
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("COMET_API_KEY", key)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="COMET_API_KEY is not set; set it, or use offline or off"):
        track_run(TrackingConfig(mode="online"), "a run", RunRecord(), Settings(_env_file=None))
    assert list(tmp_path.iterdir()) == []
