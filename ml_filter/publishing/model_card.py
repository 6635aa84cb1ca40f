"""The model card of a head: README.md with the Hub's YAML header, filled from the files of the head."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ml_filter.config import flat_settings
from ml_filter.documents.lineage import annotation_summary
from ml_filter.heads.info import CONFIG_NAME, CROSSED, HELD_OUT, CalibratedCriterion, HeadInfo, read_info
from ml_filter.publishing.card import figure_text
from ml_filter.rendering.html import render_text
from ml_filter.statistics.metrics import PAIR_FIGURES
from ml_filter.statistics.quality import Quality

if TYPE_CHECKING:
    from ml_filter.evaluation.result import HeadEvaluation
    from ml_filter.heads.train import TrainedHead
    from ml_filter.statistics.evaluation import Evaluation

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
_ENGINES = {
    "encoder": "a transformer encoder and a head on its pooled hidden states",
    "hashing": "a linear model on hashed n-grams",
    "static": "static embeddings and a head on their mean",
    "stack": "a combination of several heads",
}


def write_model_card(
    head: TrainedHead, name: str, evaluations: Sequence[HeadEvaluation] = (), license: str = "unknown"
) -> str:
    """Return the text of the card. Of local paths it states only the last part, with the digest.

    Args:
        head: the head.
        name: OWNER/NAME on the Hub.
        evaluations: evaluations of the head on human gold or other labels.
        license: license identifier, such as apache-2.0.
    """
    info = read_info(head.directory)
    runs: list[dict[str, Any]] = list(head.training.lineage)
    return render_text(
        "publishing/templates/model_card.md",
        header=_header(info, name, evaluations, license),
        name=name,
        engine=_ENGINES[info.engine],
        info=info,
        settings=flat_settings(settings_of_head(info.provenance.get("training", {}))),
        reads=_reads(Path(head.directory), info),
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
        figure=figure_text,
    )


_OF_EVERY_HEAD = (
    "engine",
    "label_column",
    "criterion",
    "trust_agreement",
    "calibration",
    "test_share",
    "near_duplicates",
    "threshold",
    "score_range",
    "seed",
)
_STEP_BY_STEP = {"learning_rate", "weight_decay", "epochs", "patience"}


def settings_of_head(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `TrainConfig` that affect a head of its kind; the others are unused defaults."""
    engine = training.get("engine")
    if engine == "static":
        kept = {name: training[name] for name in (*_OF_EVERY_HEAD, "encoder") if name in training}
    elif engine == "hashing":
        kept = {name: training[name] for name in _OF_EVERY_HEAD if name in training}
    else:
        kept = dict(training)
    head = dict(training.get("head", {}))
    solved = head.get("task") == "regression" and head.get("kind") in ("linear", "kernel")
    unread = _STEP_BY_STEP if solved else set()
    unread = unread | ({"size"} if head.get("kind") == "linear" else set())
    if engine in ("static", "hashing"):
        unread = set(head) - {"balance"}
    return {**kept, "head": {name: value for name, value in head.items() if name not in unread}} if head else kept


def _reads(directory: Path, info: HeadInfo) -> str | None:
    """How much of a text the head reads; None if its config does not say."""
    own = json.loads((directory / CONFIG_NAME).read_text())
    if info.engine in ("hashing", "static"):
        characters = own[info.engine].get("max_characters")
        return f"the first {characters:,} characters of a text" if characters else None
    if info.engine == "stack":
        parts = [_reads(directory / name, read_info(directory / name)) for name in own["stack"]["members"]]
        return ", and ".join(part for part in parts if part)
    windows, tokens = own.get("windows", 1), own.get("max_tokens")
    if not tokens:
        return None
    return f"{tokens:,} tokens of a text" + (f" at a time, {windows} times at most" if windows > 1 else " at a time")


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
    crossed = HELD_OUT if tuned else CROSSED
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
        return figure_text(evaluation.intervals[name])
    value = getattr(evaluation, name)
    return "-" if value is None else f"{value:.3f}"


def local_name(paths: str) -> str:
    """Reduce comma-separated paths to their last parts; names on the Hub stay as they are."""
    return ", ".join(path if path.startswith("hf://") else PurePosixPath(path).name for path in paths.split(", "))
