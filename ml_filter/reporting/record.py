"""The record of a run for experiment tracking."""

from __future__ import annotations

from collections.abc import Sequence

import fsspec

from ml_filter.config import flat_settings
from ml_filter.documents.lineage import annotation_runs, annotation_summary
from ml_filter.documents.manifest import Manifest
from ml_filter.evaluation.promotion import Decision
from ml_filter.evaluation.result import EVALUATION_NAME, REPORT_NAME, HeadEvaluation
from ml_filter.heads.info import read_info
from ml_filter.heads.train import TrainedHead
from ml_filter.statistics.evaluation import Evaluation
from ml_filter.tracking import RunRecord


def record_run(
    manifests: Sequence[Manifest],
    head: TrainedHead | None = None,
    evaluations: Sequence[Manifest] = (),
    decision: Decision | None = None,
) -> RunRecord:
    """Collect counts and digests of each stage, and figures, settings and curves of the head that the run trained.

    `evaluations` are the directories that `evaluate_head` wrote for the head, one per criterion.
    """
    record = RunRecord()
    for manifest in manifests:
        record.metrics |= {f"{manifest.kind}_{name}": float(count) for name, count in manifest.counts.items()}
        record.parameters[f"{manifest.kind}_digest"] = manifest.digest
    # The scores know every annotator; the annotations passed to the run may be those of the first one only.
    runs = [run for manifest in manifests if manifest.kind == "scores" for run in annotation_runs(manifest)]
    record.parameters |= annotation_summary(runs or [m.config for m in manifests if m.kind == "annotations"])
    if head is not None:
        _add_head(record, head)
    for evaluation in evaluations:
        _add_evaluation(record, evaluation, several=len(evaluations) > 1)
    if decision is not None:
        record.parameters |= {"promoted": decision.promoted, "promotion_reasons": "; ".join(decision.reasons)}
    return record


def _add_head(record: RunRecord, head: TrainedHead) -> None:
    training = head.training
    record.history = training.history
    for criterion, evaluation in training.test.items():
        prefix = f"{criterion}_" if len(training.test) > 1 else ""
        record.metrics |= evaluation.figures(f"head_{prefix}")
        record.confusions[f"{prefix}test"] = _confusion(evaluation)
    record.parameters |= {
        "head_digest": head.digest,
        "labels_digest": ", ".join(parent.digest for parent in training.parents),
        **annotation_summary(training.lineage),
        **flat_settings(read_info(head.directory).provenance.get("training", {}), "train_"),
    }


def _add_evaluation(record: RunRecord, manifest: Manifest, *, several: bool) -> None:
    with fsspec.open(manifest.path_of(EVALUATION_NAME), "rb") as file:
        evaluation = HeadEvaluation.model_validate_json(file.read())
    prefix = f"{evaluation.criterion}_" if several else ""
    with fsspec.open(manifest.path_of(REPORT_NAME), "rb") as file:
        record.pages[f"{prefix}{REPORT_NAME}"] = file.read().decode()
    record.metrics |= evaluation.figures(f"gold_{prefix}")
    record.parameters[f"{prefix}evaluation_digest"] = manifest.digest
    record.confusions[f"{prefix}gold"] = _confusion(evaluation)


def _confusion(evaluation: Evaluation) -> tuple[list[int], list[list[int]]]:
    return list(evaluation.classes), evaluation.confusion
