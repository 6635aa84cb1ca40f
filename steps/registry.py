"""The versions of a head in ZenML: which one is in staging or production, and which ones were in production before.

A version that goes to production gets `production_history` as metadata: the versions that were in production up to it,
the oldest first, itself last. A rollback takes the last one off. What is done by other means is not recorded there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

from zenml import log_metadata
from zenml.client import Client
from zenml.utils.pagination_utils import depaginate

from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.config import Stage
from ml_filter.heads.load import ZENML, resolve_head
from ml_filter.heads.train import TrainedHead, read_head
from steps.names import Artifact

if TYPE_CHECKING:
    from zenml.models import ModelVersionResponse

    from ml_filter.documents.manifest import Manifest

DECISION = "decision"
COMPARED_WITH = "compared_with"
_HISTORY = "production_history"
_ROLLED_BACK = "rolled_back"


def versions_of(model: str) -> list[ModelVersionResponse]:
    """The versions of a model, the oldest first.

    Raises:
        InputError: there is no such model.
    """
    models = {one.name for one in depaginate(Client().list_models)}
    if model not in models:
        known = f"there is {', '.join(sorted(models))}" if models else "there are none; a training pipeline makes them"
        raise InputError(f"there is no model {model!r}: {known}")
    versions = depaginate(Client().list_model_versions, model=model, hydrate=True)
    return sorted(versions, key=lambda version: version.number)


def find_version(model: str, name: str) -> ModelVersionResponse:
    """A version of a model by its number, name or stage.

    Raises:
        InputError: there is no such model or version; says which ones there are.
    """
    versions = versions_of(model)
    for version in versions:
        if name in (str(version.number), version.name) or (name in get_args(Stage) and name == version.stage):
            return version
    known = f"it has {', '.join(map(_named, versions))}" if versions else "it has none"
    raise InputError(f"{model} has no version {name!r}; {known}")


def _named(version: ModelVersionResponse) -> str:
    return f"{version.number} ({version.stage})" if version.stage else str(version.number)


def in_stage(model: str, *stages: Stage) -> ModelVersionResponse | None:
    """The version in the first of the stages that has one."""
    by_stage = {version.stage: version for version in versions_of(model)}
    return next((by_stage[stage] for stage in stages if stage in by_stage), None)


def head_of(version: ModelVersionResponse) -> TrainedHead:
    """The head of a version, where it was trained or copied out of the store.

    Raises:
        InputError: the version has none.
    """
    artifact = version.get_artifact(Artifact.HEAD)
    if artifact is None:
        raise InputError(f"version {version.number} of {version.model.name} has no head: its training did not finish")
    head: TrainedHead = artifact.load()
    return head


def predictions_of(version: ModelVersionResponse) -> Manifest | None:
    """What the version's head said of the gold of its training, where there was gold."""
    artifact = version.get_artifact(Artifact.GOLD_PREDICTIONS)
    if artifact is None:
        return None
    manifest: Manifest = artifact.load()
    return manifest


def find_head(name: str) -> TrainedHead:
    """The head of a name: `zenml:MODEL@VERSION` in ZenML's model store, else as `resolve_head` knows it.

    The version is a number, name or stage; without one it is the one in production, else in staging.

    Raises:
        InputError: there is no such head; says which versions there are.
    """
    if not name.startswith(ZENML):
        return read_head(resolve_head(name))
    model, _, version = name.removeprefix(ZENML).partition("@")
    if version:
        return head_of(find_version(model, version))
    current = in_stage(model, "production", "staging")
    if current is None:
        known = ", ".join(map(_named, versions_of(model))) or "none"
        raise InputError(f"no version of {model} is in production or staging; name one of {known}, as in {name}@1")
    return head_of(current)


def set_stage(version: ModelVersionResponse, stage: Stage, reason: str) -> ModelVersionResponse | None:
    """Put a version in a stage; the one that was there is archived and returned."""
    model = version.model.name
    before = in_stage(model, stage)
    if stage == "production":
        earlier = _history(before) if before else []
        # The history goes first: killed in between, production still knows its own.
        _record(version, _HISTORY, [*earlier, _entry(version, reason)])
    version.set_stage(stage, force=True)
    return before


def promote(model: str, name: str, stage: Stage, *, force: bool, reason: str | None) -> str:
    """Put a version in a stage if the decision that its pipeline recorded allows it now; returns what was done.

    It does where the version was promoted, and the head that it was compared with is the one that it replaces, or
    there is none to replace.

    Args:
        model: name of the model.
        name: number, name or stage of the version.
        stage: where it is to go.
        force: whatever was decided.
        reason: for the record; needed to force.

    Raises:
        ConfigError: forced without a reason.
        InputError: there is no such version, it is there already, or the decision does not allow it.
    """
    if force and not reason:
        raise ConfigError("--force needs --reason, which is kept with the version")
    version = find_version(model, name)
    called = f"version {version.number} of {model}"
    if version.stage == stage:
        raise InputError(f"{called} is in {stage} already")
    if version.stage == "production":
        raise InputError(f"{called} is in production; to take it out, roll back or promote another version")
    if version.get_artifact(Artifact.HEAD) is None:
        raise InputError(f"{called} has no head: its training did not finish")
    allowed = None if force else _allowed(version, called)
    before = set_stage(version, stage, reason or allowed or "")
    return f"{called} is in {stage}" + (f", version {before.number} is archived" if before else "")


def _allowed(version: ModelVersionResponse, called: str) -> str:
    """Why the recorded decision allows the promotion against the head that is in production now, or an InputError."""
    otherwise = "or use --force with --reason"
    decision: Any = version.run_metadata.get(DECISION)
    if decision is None:
        raise InputError(
            f"{called} was never compared: run the training pipeline with gold and promote settings, {otherwise}"
        )
    reasons = "; ".join(decision["reasons"])
    rolled_back: Any = version.run_metadata.get(_ROLLED_BACK)
    if rolled_back is not None:
        raise InputError(f"{called} was rolled back (reason: {rolled_back['reason']}): {otherwise.removeprefix('or ')}")
    if not decision["promoted"]:
        raise InputError(f"{called} was not promoted: {reasons}. Train a better one, {otherwise}")
    production = in_stage(version.model.name, "production")
    compared = decision[COMPARED_WITH]
    if production is not None and production.number != compared:
        raise InputError(
            f"{called} was compared with {f'version {compared}' if compared else 'no head'}, but version "
            f"{production.number} is in production now: run the training pipeline again, {otherwise}"
        )
    return reasons


def roll_back(model: str, reason: str | None) -> str:
    """Put the version in production that was there before the present one; returns what was done.

    Raises:
        InputError: there is no such model, nothing is in production or was before, or it has been deleted.
    """
    versions = {version.number: version for version in versions_of(model)}
    known = ", ".join(map(_named, versions.values())) or "none"
    present = in_stage(model, "production")
    if present is None:
        raise InputError(f"no version of {model} is in production: there is nothing to roll back; it has {known}")
    *history, _ = _history(present)
    if not history:
        raise InputError(
            f"version {present.number} of {model} is the first in production: there is nothing to roll back to; "
            f"promote another version; it has {known}"
        )
    number = history[-1]["version"]
    if number not in versions:
        raise InputError(
            f"version {number} of {model}, which was in production before, has been deleted; promote another version; "
            f"it has {known}"
        )
    _record(versions[number], _HISTORY, history)
    _record(present, _ROLLED_BACK, _entry(versions[number], reason or "not given"))
    versions[number].set_stage("production", force=True)
    return f"version {number} of {model} is in production again, version {present.number} is archived"


def _history(version: ModelVersionResponse) -> list[dict[str, Any]]:
    """The entries up to a version in production, itself last; only itself where someone else put it there."""
    history: Any = version.run_metadata.get(_HISTORY)
    return list(history) if history else [_entry(version, "not recorded")]


def _entry(version: ModelVersionResponse, reason: str) -> dict[str, Any]:
    return {"version": version.number, "at": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason}


def _record(version: ModelVersionResponse, name: str, value: Any) -> None:
    log_metadata(metadata={name: value}, model_version_id=version.id)
