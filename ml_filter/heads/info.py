"""What the config.json of every kind of head contains: criteria, calibration, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.heads.config import HeadKind
from ml_filter.heads.profile import Profile
from ml_filter.location import Location
from ml_filter.statistics.calibration import Calibration
from ml_filter.statistics.rounding import integer_scores

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CROSS_FITTED = "the training documents, each scored by a head fitted on others"
"""The documents whose scores a calibration is fitted on."""
HELD_OUT_FOLD = "a fifth of the training documents, held out from training and used to choose the checkpoint"
"""The same for a fine-tuned encoder."""
_Settings = TypeVar("_Settings", bound=BaseModel)


class CalibratedCriterion(Criterion):
    """A criterion that a head scores, and how the head's scores compare with the labels."""

    calibration: Calibration | None = None

    def integer_scores(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """int_score of scores (not nan): by the calibration if it has one, else rounded, halves upwards."""
        if self.calibration is not None:
            return self.calibration.integer_scores(scores)
        return integer_scores(scores, self.low, self.high)


class HeadInfo(BaseModel):
    """`head` in a head's config.json."""

    engine: HeadKind | Literal["cascade"]
    criteria: list[CalibratedCriterion]
    provenance: dict[str, Any] = {}
    profile: Profile | None = None
    """Of the training documents, with the scores of heads that were fitted on others (of those that have one)."""

    @property
    def names(self) -> list[str]:
        """Names of the criteria, in the order of the scores' columns."""
        return [criterion.name for criterion in self.criteria]


def head_origin(directory: str | Path) -> str:
    """The name of a head in messages and lineage: repository and commit if it is in the Hub's cache, else the path."""
    *_, repository, kind, commit = ("", "", "", *Path(directory).parts)
    owner_and_name = repository.split("--")
    if kind == "snapshots" and owner_and_name[0] == "models" and len(owner_and_name) > 2:
        return f"hf://{owner_and_name[1]}/{'--'.join(owner_and_name[2:])}@{commit}"
    return str(directory)


def uncalibrated(criteria: Iterable[Criterion]) -> list[CalibratedCriterion]:
    """The criteria of a head before calibration."""
    return [CalibratedCriterion(**criterion.model_dump()) for criterion in criteria]


def write_config(directory: str | Path, info: HeadInfo, **own: Any) -> None:
    """Write the config.json of a head without an encoder, with the settings of its kind."""
    content = {"model_type": f"ml_filter_{info.engine}", **own, "head": info.model_dump(mode="json")}
    (Path(directory) / CONFIG_NAME).write_text(json.dumps(content, indent=1) + "\n")


def read_config(directory: str | Path | Location) -> dict[str, Any]:
    """The config.json of a head.

    Raises:
        InputError: it does not exist, or is not a JSON object.
    """
    path = Location(directory) / CONFIG_NAME
    content = path.find_bytes()
    if content is None:
        raise InputError(f"{directory} is not a head: it has no {CONFIG_NAME}. Train one with ml-filter train")
    try:
        config = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object")
    return config


def read_info(directory: str | Path) -> HeadInfo:
    """The criteria and provenance of a head; raises as `read_config` and `info_in`."""
    return info_in(read_config(directory), directory)


def info_in(config: dict[str, Any], directory: str | Path) -> HeadInfo:
    """The criteria and provenance in the config.json of a head in `directory`.

    Raises:
        InputError: it does not describe a head.
    """
    try:
        return HeadInfo.model_validate(config["head"])
    except (KeyError, ValidationError) as error:
        raise InputError(f"{CONFIG_NAME} in {directory} does not describe a head of this version: {error}") from error


def read_weights(
    directory: Path, content: dict[str, Any], kind: str, settings: type[_Settings], names: Sequence[str]
) -> tuple[_Settings, dict[str, NDArray[np.float32]]]:
    """Settings of a head, which are under `kind` in the content of its config.json, and its arrays by name.

    Raises:
        InputError: the settings are invalid, or the weights are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(directory / WEIGHTS_NAME)
        return settings.model_validate(content[kind]), {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{directory} is not a complete {kind} head ({error}); train it again with ml-filter train"
        ) from error
