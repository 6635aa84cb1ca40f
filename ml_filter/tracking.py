"""Experiment tracking with Comet: record a run online, in an offline archive, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ml_filter.config import Settings, StageConfig
from ml_filter.errors import ConfigError
from ml_filter.location import Location


class TrackingConfig(StageConfig):
    """Experiment tracking with Comet."""

    mode: Literal["off", "auto", "offline", "online"] = Field(
        "off", description="online requires COMET_API_KEY; offline writes an archive; auto is online if there is a key"
    )
    project: str = Field("ml-filter", description="Comet project")
    directory: str = Field("runs/comet", description="directory or URL of offline archives")


_AXES = ("step", "epoch")


@dataclass
class RunRecord:
    """The record of a run.

    Attributes:
        metrics: figures by name.
        parameters: settings and digests by name, without secrets.
        history: points of the training curves: `step`, `epoch` if known, and figures such as `loss`, `learning_rate`
            and `grad_norm`. Figures that are None are not drawn.
        confusions: confusion matrices by name of the labels: the classes, and the number of documents by label (rows)
            and score (columns).
        pages: HTML by file name.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float | None]] = ()
    confusions: dict[str, tuple[list[int], list[list[int]]]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)


def track_run(config: TrackingConfig, name: str, record: RunRecord, settings: Settings | None = None) -> str:
    """Record one run.

    Args:
        config: mode, project and directory.
        name: name of the run.
        record: what to record.
        settings: settings with the key; default: read from the environment.

    Returns:
        The URL of the experiment, the path of the offline archive, or "off".

    Raises:
        ConfigError: the mode is online and COMET_API_KEY is not set.
    """
    if config.mode == "off":
        return "off"
    settings = settings or Settings()
    with tempfile.TemporaryDirectory(prefix="ml_filter-comet-") as archives:
        return _track(config, name, record, settings, Path(archives))


def _track(config: TrackingConfig, name: str, record: RunRecord, settings: Settings, archives: Path) -> str:
    online = config.mode == "online" or (config.mode == "auto" and bool(settings.comet_api_key))
    # Importing comet_ml would otherwise report errors to a third party, even offline.
    os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "false")
    import comet_ml

    common = comet_ml.ExperimentConfig(
        name=name,
        log_code=False,
        log_graph=False,
        parse_args=False,
        auto_output_logging=False,  # type: ignore[arg-type]
        auto_metric_logging=False,
        auto_param_logging=False,
        log_git_metadata=False,
        log_git_patch=False,
        log_env_details=False,
        offline_directory=str(archives),
    )
    if online and not settings.comet_api_key:  # absent or empty
        raise ConfigError("tracking.mode is online but COMET_API_KEY is not set; set it, or use offline or off")
    experiment = comet_ml.start(
        api_key=settings.comet_api_key.get_secret_value() if online and settings.comet_api_key else None,
        project_name=config.project,
        online=online,
        experiment_config=common,
    )
    _log(experiment, record)
    experiment.end()
    if online:
        return str(experiment.url)
    archive = next(archives.glob(f"{experiment.id}*.zip"))
    target = Location(config.directory) / archive.name
    target.copy_here(archive)
    return str(target)


def _log(experiment: Any, record: RunRecord) -> None:
    experiment.log_metrics(record.metrics)
    experiment.log_parameters(record.parameters)
    for name, (classes, matrix) in record.confusions.items():
        experiment.log_confusion_matrix(
            matrix=matrix,
            labels=[str(label) for label in classes],
            title=f"Rounded scores against labels: {name}",
            row_label="label",
            column_label="score",
            file_name=f"confusion-{name}.json",
        )
    for name, page in record.pages.items():
        experiment.log_asset_data(page, name=name)
    # The curves come last: Comet assigns a step to everything that is logged after it.
    for row in record.history:
        drawn = {name: value for name, value in row.items() if name not in _AXES and value is not None}
        experiment.log_metrics(drawn, **{axis: row[axis] for axis in _AXES if row.get(axis) is not None})
