"""A criterion: what a score measures, on which range, and from which score a document counts as good."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class Criterion(BaseModel):
    """A criterion, as defined by the prompt that scores it.

    Attributes:
        name: such as `educational_value`.
        low: lowest score.
        high: highest score.
        threshold: documents with at least this score count as good.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    low: float
    high: float
    threshold: float

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"{self.name}: high ({self.high:g}) must be above low ({self.low:g})")
        return self

    @property
    def values(self) -> list[float]:
        """The whole scores of the range: the classes of a classification."""
        return [self.low + step for step in range(round(self.high - self.low) + 1)]
