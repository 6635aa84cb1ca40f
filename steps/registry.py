"""The versions of a head in ZenML: promote them to staging or production, and roll back.

A version that is promoted to production gets the metadata `production_history`: the versions that have been in
production, oldest first, itself last. A rollback removes the last entry. Changes by other means, such as the dashboard,
are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

from zenml import get_step_context, log_metadata
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.orchestrators.step_run_utils import link_output_artifacts_to_model_version
from zenml.utils.pagination_utils import depaginate

from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.config import Stage
from ml_filter.heads.store import ZENML, read_head
from ml_filter.heads.trained import TrainedHead
from steps.names import Artifact

if TYPE_CHECKING:
    from zenml.models import ModelVersionResponse

    from ml_filter.documents.manifest import Manifest

DECISION = "decision"
COMPARED_WITH = "compared_with"
HEAD_METADATA = ("figures", "weights_digest", "lineage")
"""What the training of a head records with its version."""
_HISTORY = "production_history"
_ROLLED_BACK = "rolled_back"
_NO_HEAD = "{} has no head because its training did not finish"


def versions_of(model: str) -> list[ModelVersionResponse]:
    """The versions of a model, oldest first.

    Raises:
        InputError: the model does not exist.
    """
    names = {item.name for item in depaginate(Client().list_models)}
    if model not in names:
        existing = f"existing models: {', '.join(sorted(names))}" if names else "run a training pipeline to create one"
        raise InputError(f"unknown model {model!r}; {existing}")
    versions = depaginate(Client().list_model_versions, model=model, hydrate=True)
    return sorted(versions, key=lambda version: version.number)


def find_version(model: str, name: str) -> ModelVersionResponse:
    """Find a version of a model by its number, name or stage.

    Raises:
        InputError: the model or version does not exist; the message lists those that do.
    """
    versions = versions_of(model)
    for version in versions:
        if name in (str(version.number), version.name) or (name in get_args(Stage) and name == version.stage):
            return version
    existing = f"existing versions: {_listed(versions)}"
    if name in get_args(Stage):
        to = f" --to {name}" if name != "production" else ""
        raise InputError(f"no version of {model} is in {name}; run poetry poe promote {model} VERSION{to} ({existing})")
    raise InputError(f"{model} has no version {name!r}; {existing}")


def _listed(versions: Iterable[ModelVersionResponse]) -> str:
    names = [f"{version.number} ({version.stage})" if version.stage else str(version.number) for version in versions]
    return ", ".join(names) or "none"


def in_stage(model: str, *stages: Stage) -> ModelVersionResponse | None:
    """The version in the first of these stages that is occupied."""
    by_stage = {version.stage: version for version in versions_of(model)}
    return next((by_stage[stage] for stage in stages if stage in by_stage), None)


def head_of(version: ModelVersionResponse) -> TrainedHead:
    """The head of a version, without its weights.

    Raises:
        InputError: the version has no head.
    """
    artifact = version.get_artifact(Artifact.HEAD)
    if artifact is None:
        raise InputError(
            f"version {version.number} of {version.model.name} has no head because its training did not finish"
        )
    head: TrainedHead = artifact.load()
    return head.model_copy(update={"origin": f"{ZENML}{version.model.name}@{version.number}"})


def predictions_of(version: ModelVersionResponse) -> Manifest | None:
    """The predictions of a version's head on the gold of its training run; None if the run had no gold."""
    artifact = version.get_artifact(Artifact.GOLD_PREDICTIONS)
    if artifact is None:
        return None
    manifest: Manifest = artifact.load()
    return manifest


def find_head(name: str) -> TrainedHead:
    """Load a head: `zenml:MODEL[@VERSION]` from ZenML's store, any other name as in `read_head`.

    VERSION is a number, name or stage. Default: the version in production, else the one in staging.

    Raises:
        InputError: the head does not exist; the message lists the versions that do.
    """
    if not name.startswith(ZENML):
        return read_head(name)
    model, _, version = name.removeprefix(ZENML).partition("@")
    if version:
        return head_of(find_version(model, version))
    current = in_stage(model, "production", "staging")
    if current is None:
        raise InputError(
            f"no version of {model} is in production or staging; choose a version, as in {name}@1 (existing versions: "
            f"{_listed(versions_of(model))})"
        )
    return head_of(current)


def adopt_skipped_steps() -> None:
    """Link the outputs of steps that a rerun skips, such as the head, to the version of the run.

    ZenML does this for steps that it takes from the cache, but not for skipped ones.
    """
    context = get_step_context()
    run, version = context.pipeline_run, context.model_version
    if version is None or run.original_run is None:
        return
    skipped = [step for step in run.steps.values() if step.status == ExecutionStatus.SKIPPED]
    for step in skipped:
        link_output_artifacts_to_model_version(step.outputs, version)
    earlier = run.original_run.get_hydrated_version().model_version
    if earlier is not None and any(Artifact.HEAD in step.outputs for step in skipped):
        known: Any = earlier.run_metadata
        for name in HEAD_METADATA:
            if name in known:
                _record(version, name, known[name])


def set_stage(version: ModelVersionResponse, stage: Stage, reason: str) -> ModelVersionResponse | None:
    """Move a version to a stage. The version that was there is archived and returned."""
    model = version.model.name
    before = in_stage(model, stage)
    if stage == "production":
        earlier = _history(before) if before else []
        # The history is recorded first: after a kill in between, the version in production still has its own history.
        _record(version, _HISTORY, [*earlier, _entry(version, reason)])
    version.set_stage(stage, force=True)
    return before


def promote(model: str, name: str, stage: Stage, *, force: bool, reason: str | None) -> str:
    """Move a version to a stage if the decision of its training run allows it, and return what was done.

    The decision allows it if it was positive and compared the version with the current production version, or if
    there is nothing to replace.

    Args:
        model: name of the model.
        name: number, name or stage of the version.
        stage: the new stage.
        force: ignore the decision.
        reason: recorded with the version; required with `force`.

    Raises:
        ConfigError: `force` without a reason.
        InputError: the version does not exist or is already in this stage, or the decision does not allow it.
    """
    if force and not reason:
        raise ConfigError("--force requires --reason, which is recorded with the version")
    version = find_version(model, name)
    label = f"version {version.number} of {model}"
    if version.stage == stage:
        raise InputError(f"{label} is already in {stage}")
    if version.stage == "production":
        raise InputError(f"{label} is in production; to replace it, roll back or promote another version")
    if version.get_artifact(Artifact.HEAD) is None:
        raise InputError(_NO_HEAD.format(label))
    allowed = None if force else _allowing_reasons(version, label)
    before = set_stage(version, stage, reason or allowed or "")
    return f"{label} is now in {stage}" + (f"; version {before.number} is archived" if before else "")


def _allowing_reasons(version: ModelVersionResponse, label: str) -> str:
    """The reasons of the recorded decision; an InputError if it does not allow the promotion."""
    decision: Any = version.run_metadata.get(DECISION)
    if decision is None:
        raise InputError(
            f"{label} has not been compared with another head; run the training pipeline with the settings gold and "
            "promote, or use --force with --reason"
        )
    reasons = "; ".join(decision["reasons"])
    rolled_back: Any = version.run_metadata.get(_ROLLED_BACK)
    if rolled_back is not None:
        raise InputError(f"{label} was rolled back (reason: {rolled_back['reason']}); use --force with --reason")
    if not decision["promoted"]:
        raise InputError(f"{label} was not promoted: {reasons}. Train a better head, or use --force with --reason")
    production = in_stage(version.model.name, "production")
    compared = decision[COMPARED_WITH]
    if production is not None and production.number != compared:
        raise InputError(
            f"{label} was compared with {f'version {compared}' if compared else 'no head'}, but version "
            f"{production.number} is in production now; run the training pipeline again, or use --force with --reason"
        )
    return reasons


def roll_back(model: str, reason: str | None) -> str:
    """Return the previous version to production, and return what was done.

    Raises:
        InputError: the model does not exist, no version is or was in production before, or the previous version was
            deleted.
    """
    versions = {version.number: version for version in versions_of(model)}
    existing = f"existing versions: {_listed(versions.values())}"
    current = in_stage(model, "production")
    if current is None:
        raise InputError(f"nothing to roll back: no version of {model} is in production; {existing}")
    *history, _ = _history(current)
    if not history:
        raise InputError(
            f"nothing to roll back to: version {current.number} of {model} is the first in production; promote another "
            f"version ({existing})"
        )
    number = history[-1]["version"]
    if number not in versions:
        raise InputError(
            f"version {number} of {model}, which was in production before, has been deleted; promote another version "
            f"({existing})"
        )
    _record(versions[number], _HISTORY, history)
    _record(current, _ROLLED_BACK, _entry(versions[number], reason or "not given"))
    versions[number].set_stage("production", force=True)
    return f"version {number} of {model} is in production again; version {current.number} is archived"


def _history(version: ModelVersionResponse) -> list[dict[str, Any]]:
    """The history of a version in production, itself last; only itself if it was set by other means."""
    history: Any = version.run_metadata.get(_HISTORY)
    return list(history) if history else [_entry(version, "not recorded")]


def _entry(version: ModelVersionResponse, reason: str) -> dict[str, Any]:
    return {"version": version.number, "at": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason}


def _record(version: ModelVersionResponse, name: str, value: Any) -> None:
    log_metadata(metadata={name: value}, model_version_id=version.id)
