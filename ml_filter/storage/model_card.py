"""The model card of a head: README.md with the Hub's YAML header, filled from what the head says of itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ml_filter.agreement.metrics import PAIR_FIGURES
from ml_filter.documents.lineage import made_by
from ml_filter.heads.info import Criterion, HeadInfo, read_info
from ml_filter.heads.quality import Quality
from ml_filter.settings import flat_settings
from ml_filter.storage.card import figure_text, render_card

if TYPE_CHECKING:
    from ml_filter.heads.evaluate import HeadEvaluation
    from ml_filter.heads.metrics import Evaluation
    from ml_filter.heads.train import TrainedHead

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
"""Figures of the header's model index, and their names on the Hub."""
_ENGINES = {
    "encoder": "a transformer encoder and a head on its pooled hidden states",
    "hashing": "a linear model on hashed n-grams",
    "static": "static embeddings and a head on their mean",
    "stack": "a combination of several heads",
}


def write_model_card(
    head: TrainedHead, name: str, evaluations: Sequence[HeadEvaluation] = (), license: str = "unknown"
) -> str:
    """The text of the card.

    It names no place on this machine: of labels and documents it gives the last part of the path, and the digest.

    Args:
        head: the head.
        name: OWNER/NAME on the Hub.
        evaluations: of the head, on human gold or other labels.
        license: identifier, such as apache-2.0.
    """
    info = read_info(head.directory)
    runs: list[dict[str, Any]] = list(head.training.lineage)
    return render_card(
        "model_card.md",
        header=_header(info, name, evaluations, license),
        name=name,
        engine=_ENGINES[info.engine],
        info=info,
        settings=flat_settings(info.provenance.get("training", {})),
        head=head,
        runs=runs,
        made_by=made_by(runs),
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
        # The Hub knows nothing of an encoder that is a directory here.
        base_model=encoder if re.fullmatch(r"[\w.-]+/[\w.-]+", encoder) else None,
        pipeline_tag="text-classification",
        library_name="ml-filter",
        tags=["data-quality", "pretraining-data", *info.names],
        model_name=name,
        eval_results=results or None,
    )
    return str(card.to_yaml()).strip()


def _evaluated(head: TrainedHead, evaluations: Sequence[HeadEvaluation]) -> list[tuple[str, str, Evaluation]]:
    """Criterion, labels and figures: of training, then of the evaluations."""
    training = head.training
    found: list[tuple[str, str, Evaluation]] = []
    for name in training.test:
        found.append(
            (name, "documents trained on, each scored by a head fitted on others", training.cross_validated[name])
        )
        found.append((name, "documents kept apart from training", training.test[name]))
    return found + [(of.criterion, f"{local_name(of.labels)}, {of.label_column}", of) for of in evaluations]


def _good_from(criterion: Criterion) -> float:
    """The lowest score whose int_score reaches the threshold; where none does, the one that rounds to it."""
    whole = math.ceil(criterion.threshold)
    cut = criterion.calibration.cuts.get(whole) if criterion.calibration else None
    return whole - 0.5 if cut is None else cut


def _value_of(evaluation: Evaluation, name: str) -> str:
    if isinstance(evaluation, Quality):
        return figure_text(evaluation.intervals[name])
    value = getattr(evaluation, name)
    return "-" if value is None else f"{value:.3f}"


def local_name(paths: str) -> str:
    """The last part of each of the paths, comma-separated; names on the Hub as they are."""
    return ", ".join(path if path.startswith("hf://") else PurePosixPath(path).name for path in paths.split(", "))
