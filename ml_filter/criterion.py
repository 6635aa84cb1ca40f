"""A criterion: what a score measures, its range, and the threshold from which a document counts as good.

A prompt defines its criterion. The manifests of annotations and of aggregated scores carry it (`criteria` in their
config), and so does the config.json of a head, so that no later stage asks for it again. Labels that were made
elsewhere have no such manifest: `Criterion.of_labels` describes them by what the user says, or by `DEFAULT_CRITERION`.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator


def _rises(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if high <= low:
        raise ValueError(f"the highest score ({high:g}) must be above the lowest ({low:g})")
    return bounds


ScoreBounds = Annotated[tuple[float, float], AfterValidator(_rises)]
"""Lowest and highest score, both included."""


class Criterion(BaseModel):
    """A criterion, as defined by the prompt that scores it.

    Attributes:
        name: such as `educational_value`.
        low: lowest score.
        high: highest score.
        threshold: documents with at least this score count as good (for adult_content and its like: as a hit).
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

    @classmethod
    def of_labels(cls, name: str, score_range: tuple[float, float] | None, threshold: float | None) -> Self:
        """The criterion of labels that no manifest describes.

        Args:
            name: such as the label column.
            score_range: lowest and highest label (default: that of `DEFAULT_CRITERION`).
            threshold: default: the middle of a given range, or that of `DEFAULT_CRITERION`.
        """
        low, high = score_range or DEFAULT_CRITERION.bounds
        if threshold is None:
            threshold = middle(low, high) if score_range else DEFAULT_CRITERION.threshold
        return cls(name=name, low=low, high=high, threshold=threshold)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return self.low, self.high

    @property
    def values(self) -> list[float]:
        """The whole scores of the range: the classes of a classification."""
        return [self.low + step for step in range(round(self.high - self.low) + 1)]


def middle(low: float, high: float) -> float:
    """The threshold of a range for which none is given."""
    return (low + high) / 2


DEFAULT_CRITERION = Criterion(name="score", low=0, high=5, threshold=3)
"""What is assumed where nothing is known: the scale and threshold of FineWeb-Edu (Penedo et al. 2024, section 4)."""
