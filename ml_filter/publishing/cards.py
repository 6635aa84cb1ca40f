"""The cards of a labelled data set and of a head: README.md with the Hub's YAML header."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from ml_filter import __version__
from ml_filter.agreement.agreement import Agreement
from ml_filter.annotation.prompts import kept_prompt
from ml_filter.documents.lineage import ancestors, annotation_runs, annotation_summary
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.evaluation.result import HeadEvaluation
from ml_filter.heads.info import CROSS_FITTED, HELD_OUT_FOLD, CalibratedCriterion, HeadInfo
from ml_filter.heads.kinds import head_class
from ml_filter.heads.store import fetch_head
from ml_filter.heads.trained import TrainedHead
from ml_filter.location import Location
from ml_filter.publishing.config import PublishConfig
from ml_filter.rendering.html import render_text
from ml_filter.statistics.evaluation import Evaluation
from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES
from ml_filter.statistics.quality import Quality

_PAIRS = ("spearman", "kappa_quadratic", "exact_agreement", "agreement_at_threshold")
_GROUP = ("alpha_ordinal", "alpha_interval", "icc_2_1")
_SAMPLING = ("temperature", "top_p", "seed", "extra_body", "structured", "chat_template", "context_tokens")
_WINDOWS = ("long_documents", "max_windows", "combine_windows")


def write_card(
    config: PublishConfig,
    criteria: Sequence[str],
    scores: Manifest,
    parents: Sequence[Parent],
    by_split: Mapping[str, Mapping[str, Mapping[int, int]]],
    counts: Mapping[str, int],
    agreements: Sequence[Agreement],
    columns: Sequence[str],
) -> str:
    """Return the text of the card.

    `by_split` has the number of documents with each rounded score, by criterion and by split that is not empty.
    """
    title = config.title or f"Documents labelled for {', '.join(criteria).replace('_', ' ')}"
    data_files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in next(iter(by_split.values()))]
    header = {
        "license": config.license,
        "pretty_name": title,
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    runs = _runs(scores, criteria)
    kinds = {manifest.digest: manifest.kind for manifest in [scores, *ancestors(scores)]}
    lineage = {**kinds, **{parent.digest: kinds.get(parent.digest, "input") for parent in parents}}
    return render_text(
        "publishing/templates/data_card.md",
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        title=title,
        config=config,
        criteria=criteria,
        runs=runs,
        prompts={prompt["digest"]: prompt for run in runs for prompt in run["prompts"]},
        method=scores.config["method"],
        use=scores.config["use"],
        classes={name: sorted(set().union(*splits.values())) for name, splits in by_split.items()},
        by_split=by_split,
        counts=counts,
        agreements=agreements,
        pair_names={name: PAIR_FIGURES[name] for name in _PAIRS},
        group_names={name: GROUP_FIGURES[name].partition(":")[0] for name in _GROUP},
        columns=columns,
        lineage=lineage,
        code_version=__version__,
    )


def _runs(scores: Manifest, criteria: Sequence[str]) -> list[dict[str, Any]]:
    """The annotation runs, each with its sampling settings and prompts; a prompt's text is None if it was not kept."""
    manifests = [manifest for manifest in ancestors(scores) if manifest.kind == "annotations"]
    runs = []
    for manifest, run in zip(manifests, annotation_runs(scores), strict=True):
        names = _SAMPLING + _WINDOWS * (manifest.config.get("long_documents") == "windows")
        values = {name.replace("_", " "): manifest.config.get(name) for name in names}
        settings = ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, {}))
        prompts = [
            {**prompt, "text": _prompt_text(manifest, prompt)}
            for prompt in run["prompts"]
            if prompt["criterion"] in criteria
        ]
        runs.append({**run, "settings": settings, "prompts": prompts})
    return runs


def _prompt_text(annotations: Manifest, prompt: Mapping[str, Any]) -> str | None:
    content = Location(annotations.path_of(kept_prompt(prompt["name"], prompt["digest"]))).find_bytes()
    # Annotations that were converted from another tool have no prompt files.
    return None if content is None else content.decode().strip()


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
    info = head.info
    runs: list[dict[str, Any]] = list(head.training.lineage)
    return render_text(
        "publishing/templates/model_card.md",
        header=_header(info, name, evaluations, license),
        name=name,
        description=head_class(info.engine).description,
        info=info,
        settings=head_class(info.engine).used_settings(info.provenance.get("training", {})),
        reads=head_class(info.engine).text_limit(fetch_head(head).directory, head.config),
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
    tuned = head.info.provenance.get("training", {}).get("finetune")
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
