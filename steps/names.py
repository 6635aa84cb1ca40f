"""The names of artifacts in the ZenML store, in one place."""

from enum import StrEnum


class Artifact(StrEnum):
    """Names of step outputs."""

    SAMPLE = "sample"
    ANNOTATIONS = "annotations"
    SCORES = "scores"
    HEAD = "head"
    GOLD_EVALUATION = "gold_evaluation"
    SCORED = "scored"
    FILTERED = "filtered"
    REPORT = "report"
    TRACKING = "tracking"
