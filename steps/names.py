"""The names of artifacts in the ZenML store, and of a directory that several steps share, in one place."""

from enum import StrEnum


class Artifact(StrEnum):
    """Names of step outputs. `{of}` is nothing for the sample and `gold_` for the gate's gold documents."""

    SAMPLE = "sample"
    DEDUPLICATED = "deduplicated"
    DECONTAMINATED = "decontaminated"
    ANNOTATIONS = "{of}annotations"
    SCORES = "{of}scores"
    GATE = "gate"
    LABELLED = "labelled"
    HEAD = "head"
    GOLD_EVALUATION = "gold_evaluation"
    GOLD_PREDICTIONS = "gold_predictions"
    CASCADE = "cascade"
    SCORED = "scored"
    FILTERED = "filtered"
    REPORT = "report"
    DECISION = "decision"
    COMPARISON = "comparison"
    TRACKING = "tracking"


def scored_directory(output: str) -> str:
    """Where scored documents go, whichever step scores them; the run fills in the digest."""
    return f"{output}/scored-{{digest}}"
