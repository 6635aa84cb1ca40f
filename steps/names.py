"""Names of artifacts in the ZenML store, and of the directory that several steps share."""

from enum import StrEnum


class Artifact(StrEnum):
    """Names of step outputs. `{of}` is empty for the sample and `gold_` for the gold documents of a gate."""

    SAMPLE = "sample"
    SAMPLED_SO_FAR = "sampled_so_far"
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
    EXPORTED = "exported"
    FETCHED = "fetched"
    PROOF = "proof"
    PROOF_PAGE = "proof_page"
    JUDGEMENT = "judgement"
    JUDGEMENT_REPORT = "judgement_report"
    ABLATION = "ablation"
    ABLATION_REPORT = "ablation_report"
    INDEX = "index"
    RETRIEVAL_QUESTIONS = "retrieval_questions"
    RETRIEVAL = "retrieval"
    RETRIEVAL_REPORT = "retrieval_report"
    CHUNKS = "chunks"
    WRITTEN_INSTRUCTIONS = "written_instructions"
    EVOLVED_INSTRUCTIONS = "evolved_instructions"
    RATED_INSTRUCTIONS = "rated_instructions"
    PREFERENCES = "preferences"
    INSTRUCTION_DATA = "instruction_data"
    INSTRUCT_REPORT = "instruct_report"
    INSTRUCT_PAGE = "instruct_page"
    TUNED_MODEL = "tuned_model"


DRIFT = "drift"
"""Metadata of a scoring run: `reasons` why its documents do not suit its head, and what to `retrain` then."""


def scored_directory(output: str) -> str:
    """The directory of scored documents; the run fills in the digest."""
    return f"{output}/scored-{{digest}}"
