"""Experiment tracking through Comet: the same metrics online, to an offline archive, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_filter.documents.lineage import made_by
from ml_filter.errors import ConfigError
from ml_filter.settings import Settings, TrackingConfig

if TYPE_CHECKING:
    from ml_filter.documents.manifest import Manifest
    from ml_filter.heads.train import TrainedHead


def track_run(
    config: TrackingConfig,
    name: str,
    metrics: Mapping[str, float],
    parameters: Mapping[str, Any],
    report: str | None = None,
    settings: Settings | None = None,
) -> str:
    """Record one run.

    Args:
        config: off, auto, offline or online, and the project.
        name: the run's name.
        metrics: figures by name.
        parameters: settings by name, without secrets.
        report: an HTML page to attach.
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
    experiment.log_metrics(dict(metrics))
    experiment.log_parameters(dict(parameters))
    if report is not None:
        experiment.log_html(report)
    experiment.end()
    if online:
        return str(experiment.url)
    return str(next(Path(config.directory).glob(f"{experiment.id}*.zip")))


def run_metrics(
    manifests: Sequence[Manifest], head: TrainedHead | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics and parameters of a run: counts of each stage, the head's figures, digests of what made them."""
    metrics: dict[str, float] = {}
    parameters: dict[str, Any] = {}
    for manifest in manifests:
        metrics |= {f"{manifest.kind}_{name}": float(count) for name, count in manifest.counts.items()}
        parameters[f"{manifest.kind}_digest"] = manifest.digest
    parameters |= made_by(manifest.config for manifest in manifests if manifest.kind == "annotations")
    if head is not None:
        metrics |= head.training.evaluation.figures("head_")
        parameters["head_digest"] = head.digest
    return metrics, parameters
