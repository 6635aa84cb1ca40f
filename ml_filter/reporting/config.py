"""When a corpus differs too much from the training documents of a head."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ml_filter.config import StageConfig
from ml_filter.heads.profile import SHIFTED


class DriftConfig(StageConfig):
    """Limits from which a scoring run raises an alert, because its head may no longer suit its documents."""

    max_shift: Annotated[float, Field(gt=0)] = Field(
        SHIFTED,
        description="greatest population stability index of scores, lengths or scripts, compared with the training "
        "documents of the head",
    )
    max_unknown_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="greatest share of documents in scripts that are rare among the training documents"
    )
    retrain: str | None = Field(
        None,
        description="file of a continuous training pipeline that is started then, such as "
        "configs/continuous_training.yaml (default: only the alert)",
    )
