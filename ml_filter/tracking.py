"""Experiment tracking through Comet: the same record online, in an offline archive, or nowhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from ml_filter.documents.lineage import annotation_runs, made_by
from ml_filter.errors import ConfigError
from ml_filter.settings import Settings, TrackingConfig, flat_settings

if TYPE_CHECKING:
    from ml_filter.documents.manifest import Manifest
    from ml_filter.heads.metrics import Evaluation
    from ml_filter.heads.promotion import Decision
    from ml_filter.heads.train import TrainedHead

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


def record_run(
    manifests: Sequence[Manifest],
    head: TrainedHead | None = None,
    evaluations: Sequence[Manifest] = (),
    decision: Decision | None = None,
) -> RunRecord:
    """The record of a run: counts of each stage, digests of what made them, the head and how it does.

    Args:
        manifests: of the stages.
        head: trained in the run: figures on its test documents, settings, curves.
        evaluations: directories that `evaluate_head` wrote for the head, one a criterion: figures, confusion matrix,
            page.
        decision: whether it is promoted, and why.
    """
    record = RunRecord()
    for manifest in manifests:
        record.metrics |= {f"{manifest.kind}_{name}": float(count) for name, count in manifest.counts.items()}
        record.parameters[f"{manifest.kind}_digest"] = manifest.digest
    # A jury is behind the scores; the annotations that the run hands over are of its first member.
    jury = [run for manifest in manifests if manifest.kind == "scores" for run in annotation_runs(manifest)]
    record.parameters |= made_by(jury or [m.config for m in manifests if m.kind == "annotations"])
    if head is not None:
        _add_head(record, head)
    for evaluation in evaluations:
        _add_evaluation(record, evaluation, several=len(evaluations) > 1)
    if decision is not None:
        record.parameters |= {"promoted": decision.promoted, "promotion_reasons": "; ".join(decision.reasons)}
    return record


def _add_head(record: RunRecord, head: TrainedHead) -> None:
    from ml_filter.heads.info import read_info

    training = head.training
    record.history = training.history
    for criterion, evaluation in training.test.items():
        of = f"{criterion}_" if len(training.test) > 1 else ""
        record.metrics |= evaluation.figures(f"head_{of}")
        record.confusions[f"{of}test"] = _confusion(evaluation)
    record.parameters |= {
        "head_digest": head.digest,
        "labels_digest": ", ".join(parent.digest for parent in training.parents),
        **made_by(training.lineage),
        **flat_settings(read_info(head.directory).provenance.get("training", {}), "train_"),
    }


def _add_evaluation(record: RunRecord, manifest: Manifest, *, several: bool) -> None:
    from ml_filter.heads.evaluate import EVALUATION_NAME, REPORT_NAME, HeadEvaluation

    with fsspec.open(manifest.path_of(EVALUATION_NAME), "rb") as file:
        evaluation = HeadEvaluation.model_validate_json(file.read())
    of = f"{evaluation.criterion}_" if several else ""
    with fsspec.open(manifest.path_of(REPORT_NAME), "rb") as file:
        record.pages[f"{of}{REPORT_NAME}"] = file.read().decode()
    record.metrics |= evaluation.figures(f"gold_{of}")
    record.parameters[f"{of}evaluation_digest"] = manifest.digest
    record.confusions[f"{of}gold"] = _confusion(evaluation)


def _confusion(evaluation: Evaluation) -> tuple[list[int], list[list[int]]]:
    return list(evaluation.classes), evaluation.confusion
