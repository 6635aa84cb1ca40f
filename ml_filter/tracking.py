"""Experiment tracking through Comet: the same record online, in an offline archive, or nowhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ml_filter.config import Settings, StageConfig
from ml_filter.errors import ConfigError

if TYPE_CHECKING:
    pass

TrackingMode = Literal["off", "auto", "offline", "online"]


class TrackingConfig(StageConfig):
    """Comet: `online` needs COMET_API_KEY, `offline` writes an archive, `auto` goes online where there is a key."""

    mode: TrackingMode = "off"
    project: str = "ml-filter"
    directory: str = "runs/comet"


_AXES = ("step", "epoch")


@dataclass
class RunRecord:
    """What is recorded of a run.

    Attributes:
        metrics: figures by name.
        parameters: settings and digests by name, without secrets.
        history: rows of the curves, as training goes on: `step`, `epoch` where known, and the figures at that point,
            such as `loss`, `learning_rate`, `grad_norm`. What is None is not drawn.
        confusions: by name of the labels, the classes and documents by label (rows) and score (columns).
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
        config: off, auto, offline or online, and the project.
        name: the run's name.
        record: what there is to record.
        settings: holds the key; read from the environment when not given.

    Returns:
        The experiment's URL, the path of the offline archive, or "off".

    Raises:
        ConfigError: mode is online and there is no COMET_API_KEY.
    """
    if config.mode == "off":
        return "off"
    settings = settings or Settings()
    online = config.mode == "online" or (config.mode == "auto" and bool(settings.comet_api_key))
    # Half of its imports would report errors to a third party, offline too.
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
        offline_directory=config.directory,
    )
    if online:
        if not settings.comet_api_key:  # absent or empty
            raise ConfigError("tracking.mode is online, and COMET_API_KEY is not set; set it, or use offline or off")
        experiment = comet_ml.start(
            api_key=settings.comet_api_key.get_secret_value(),
            project_name=config.project,
            online=True,
            experiment_config=common,
        )
    else:
        Path(config.directory).mkdir(parents=True, exist_ok=True)
        experiment = comet_ml.start(project_name=config.project, online=False, experiment_config=common)
    _log(experiment, record)
    experiment.end()
    if online:
        return str(experiment.url)
    return str(next(Path(config.directory).glob(f"{experiment.id}*.zip")))


def _log(experiment: Any, record: RunRecord) -> None:
    experiment.log_metrics(record.metrics)
    experiment.log_parameters(record.parameters)
    for of, (classes, matrix) in record.confusions.items():
        experiment.log_confusion_matrix(
            matrix=matrix,
            labels=[str(name) for name in classes],
            title=f"Rounded scores against labels: {of}",
            row_label="label",
            column_label="score",
            file_name=f"confusion-{of}.json",
        )
    for name, page in record.pages.items():
        experiment.log_asset_data(page, name=name)
    # The curves last: Comet gives what comes after a step that step.
    for row in record.history:
        drawn = {name: value for name, value in row.items() if name not in _AXES and value is not None}
        experiment.log_metrics(drawn, **{axis: row[axis] for axis in _AXES if row.get(axis) is not None})
