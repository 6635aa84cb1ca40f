"""The model card of a head: README.md with the Hub's YAML header, filled from the files of the head."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ml_filter.config import flat_settings
from ml_filter.documents.lineage import annotation_summary
from ml_filter.evaluation.result import HeadEvaluation
from ml_filter.heads.info import CROSS_FITTED, HELD_OUT_FOLD, CalibratedCriterion, HeadInfo, read_config, read_info
from ml_filter.heads.kinds import HEADS
from ml_filter.heads.train import TrainedHead
from ml_filter.rendering.html import render_text
from ml_filter.statistics.evaluation import Evaluation
from ml_filter.statistics.metrics import PAIR_FIGURES
from ml_filter.statistics.quality import Quality

_FIGURES = (
    "spearman",
    "pearson",
    "mae",
    "macro_f1",
    "precision_at_threshold",
    "recall_at_threshold",
    "f1_at_threshold",
)
_INDEXED = {"spearman": "spearmanr", "pearson": "pearsonr", "mae": "mae", "macro_f1": "f1"}
"""Figures of the header's model index, with their names on the Hub."""


def write_model_card(
    head: TrainedHead, name: str, evaluations: Sequence[HeadEvaluation] = (), license: str = "unknown"
) -> str:
    """Return the text of the card. Of local paths it states only the last part, with the digest."""
    info = read_info(head.directory)
    runs: list[dict[str, Any]] = list(head.training.lineage)
    return render_text(
        "publishing/templates/model_card.md",
        header=_header(info, name, evaluations, license),
        name=name,
        description=HEADS[info.engine].description,
        info=info,
        settings=flat_settings(HEADS[info.engine].used_settings(info.provenance.get("training", {}))),
        reads=HEADS[info.engine].text_limit(Path(head.directory), read_config(head.directory)),
        head=head,
        runs=runs,
        annotators=annotation_summary(runs)["annotator"] if runs else None,
        languages=sorted({prompt["language"] for run in runs for prompt in run["prompts"] if prompt["language"]}),
        evaluations=evaluations,
        evaluated=_evaluated(head, evaluations),
        value_of=_value_of,
        good_from=_good_from,
        figures={figure: PAIR_FIGURES[figure] for figure in _FIGURES},
        local_name=local_name,
    )


def _header(info: HeadInfo, name: str, evaluations: Sequence[HeadEvaluation], license: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    encoder = str(info.provenance.get("training", {}).get("encoder", ""))
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=local_name(evaluation.labels),
            dataset_name=f"{local_name(evaluation.labels)}, {evaluation.label_column}",
            metric_type=kind,
            metric_name=PAIR_FIGURES[figure],
            metric_value=round(value, 4),
        )
        for evaluation in evaluations
        for figure, kind in _INDEXED.items()
        if (value := evaluation.intervals[figure].value) is not None
    ]
    card = ModelCardData(
        license=license,
        # Only names on the Hub: it rejects local directories.
        base_model=encoder if re.fullmatch(r"[\w.-]+/[\w.-]+", encoder) else None,
        pipeline_tag="text-classification",
        library_name="ml-filter",
        tags=["data-quality", "pretraining-data", *info.names],
        model_name=name,
        eval_results=results or None,
    )
    return str(card.to_yaml()).strip()


def _evaluated(head: TrainedHead, evaluations: Sequence[HeadEvaluation]) -> list[tuple[str, str, Evaluation]]:
    """Rows of criterion, labels and figures: those of training, then the evaluations."""
    training = head.training
    tuned = read_info(head.directory).provenance.get("training", {}).get("finetune")
    crossed = HELD_OUT_FOLD if tuned else CROSS_FITTED
    rows: list[tuple[str, str, Evaluation]] = []
    for name in training.test:
        rows.append((name, crossed.removeprefix("the training "), training.cross_validated[name]))
        rows.append((name, "held-out documents", training.test[name]))
    for evaluation in evaluations:
        labels = f"{local_name(evaluation.labels)}, {evaluation.label_column}"
        rows.append((evaluation.criterion, labels, evaluation))
    return rows


def _good_from(criterion: CalibratedCriterion) -> float:
    """The lowest score whose int_score reaches the threshold; if no score does, the lowest that rounds to it."""
    int_score = math.ceil(criterion.threshold)
    cut = criterion.calibration.cuts.get(int_score) if criterion.calibration else None
    return int_score - 0.5 if cut is None else cut


def _value_of(evaluation: Evaluation, name: str) -> str:
    if isinstance(evaluation, Quality):
        return evaluation.intervals[name].text
    value = getattr(evaluation, name)
    return "-" if value is None else f"{value:.3f}"


def local_name(paths: str) -> str:
    """Reduce comma-separated paths to their last parts; names on the Hub stay as they are."""
    return ", ".join(path if path.startswith("hf://") else PurePosixPath(path).name for path in paths.split(", "))
