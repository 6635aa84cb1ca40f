"""What every head says of itself, whatever its engine: criteria, score ranges, calibration, provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError, field_validator

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.heads.config import HeadEngine
from ml_filter.heads.profile import Profile
from ml_filter.statistics.calibration import Calibration
from ml_filter.statistics.rounding import integer_scores

CONFIG_NAME = "config.json"
CROSSED = "the training documents, each scored by a head fitted on others"
HELD_OUT = "a fifth of the training documents, which the encoder was not trained on but its checkpoint was chosen by"
"""What the scores behind a calibration are of, in place of `CROSSED` where the encoder was trained."""


class CalibratedCriterion(Criterion):
    """A criterion that a head scores, and how the head's scores compare with the labels."""

    calibration: Calibration | None = None

    def integer_scores(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """int_score of scores (not nan): by the calibration where there is one, else rounded, halves upwards."""
        if self.calibration is not None:
            return self.calibration.integer_scores(scores)
        return integer_scores(scores, self.low, self.high)


class HeadInfo(BaseModel):
    """`head` in a head's config.json."""

    engine: HeadEngine | Literal["cascade"]
    criteria: list[CalibratedCriterion]
    provenance: dict[str, Any] = {}
    profile: Profile | None = None
    """Of the training documents, with the scores of heads that were fitted on others (of those that have one)."""

    @field_validator("criteria", mode="before")
    @classmethod
    def _accept_criteria_without_calibration(cls, criteria: list[Any]) -> list[Any]:
        return [entry.model_dump() if type(entry) is Criterion else entry for entry in criteria]

    @property
    def names(self) -> list[str]:
        """Names of the criteria, in the order of the scores' columns."""
        return [criterion.name for criterion in self.criteria]


def write_config(directory: str | Path, info: HeadInfo, **own: Any) -> None:
    """Write the config.json of a head without an encoder, with settings of its engine's own."""
    content = {"model_type": f"ml_filter_{info.engine}", **own, "head": info.model_dump(mode="json")}
    (Path(directory) / CONFIG_NAME).write_text(json.dumps(content, indent=1) + "\n")


def read_info(directory: str | Path) -> HeadInfo:
    """What a head's config.json says.

    Raises:
        InputError: there is none, or it is no head's.
    """
    path = Path(directory) / CONFIG_NAME
    try:
        return HeadInfo.model_validate(json.loads(path.read_text())["head"])
    except FileNotFoundError:
        raise InputError(f"{directory} holds no head (no {CONFIG_NAME}); make one with ml-filter train") from None
    except (ValueError, KeyError, ValidationError) as error:
        raise InputError(f"{path} does not describe a head of this version: {error}") from error
