"""Whether a head replaces the current one: a paired test on held-out documents, and a gate on human labels.

A head is promoted if the lower bound of its figure minus the current head's reaches `margin` (and the difference
exceeds it), and that of its figure with human labels reaches `min_agreement`. The paired test uses documents with LLM
labels if there are some (`test`), otherwise the human gold. A first head only needs to pass the gate. With `ablation`,
models must also have learned more from what the head's filter keeps (`ml-filter ablate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from loguru import logger
from pydantic import BaseModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.result import read_result
from ml_filter.documents.sources import list_shards
from ml_filter.errors import GateFailed, InputError
from ml_filter.evaluation.config import PromoteConfig
from ml_filter.evaluation.evaluate import evaluate_head
from ml_filter.evaluation.result import HeadEvaluation
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.labels import LabelledDocuments, text_keys
from ml_filter.heads.store import read_trained_on
from ml_filter.heads.trained import TrainedHead
from ml_filter.statistics.intervals import Figure
from ml_filter.statistics.metrics import PAIR_FIGURES

Labels = Literal["test", "gold"]
"""Held-out documents with LLM labels, or documents with human ones."""
_NAMES = ("the candidate", "the current head")
_HELD_OUT = "compare heads on documents that neither has seen, such as the test split that `ml-filter publish` makes"


class HumanGate(BaseModel):
    """The candidate's figure with human labels, and what its lower bound must reach."""

    figure: Figure
    minimum: float
    passed: bool


class Decision(BaseModel):
    """What was decided, the reasons, and the figures behind it.

    `comparisons` holds the candidate's figures minus the current head's, paired; the one on `compared_on` decided.
    Without a current head it is empty. `evaluations` are the directories with all figures.
    """

    promoted: bool
    reasons: list[str]
    metric: str
    candidate: str
    current: str | None
    compared_on: Labels | None
    comparisons: dict[Labels, dict[str, Figure]]
    gate: HumanGate
    evaluations: dict[Labels, str] = {}

    def require(self) -> None:
        """Stop if the head is not promoted.

        Raises:
            GateFailed: with the reasons.
        """
        if not self.promoted:
            raise GateFailed(f"{self.candidate} is not promoted: {'; '.join(self.reasons)}")


def evaluate_candidate(
    candidate: TrainedHead,
    current: TrainedHead | None,
    gold: SourceConfig,
    gold_label_column: str,
    config: PromoteConfig,
    output: str | Path,
    names: tuple[str, str] = _NAMES,
    earlier: Sequence[Manifest] = (),
) -> Decision:
    """Score the same documents with both heads and decide.

    `names` are those of candidate and current head in the reasons; scores of the `earlier` evaluations are reused.
    `{digest}` in `output`, the directory of each evaluation, is replaced by that of heads and documents.

    Raises:
        InputError: labels cannot be read, a head was trained on them, or the heads' score ranges differ.
    """
    sets: dict[Labels, tuple[SourceConfig, str]] = {"gold": (gold, gold_label_column)}
    if config.test is not None:
        sets["test"] = (config.test, config.test_label_column)
    for head, name in zip((candidate, current), names, strict=True):
        if head is not None:
            _require_held_out(head, name, sets.values())
    results = {
        labels: evaluate_head(candidate, source, column, output, current, config.criterion, earlier)
        for labels, (source, column) in sets.items()
    }
    figures = {labels: evaluation for labels, (evaluation, _) in results.items()}
    shown = None if config.ablation is None else ablation_shows_help(config.ablation, candidate, names[0])
    decision = decide(figures, config, names, shown)
    return decision.model_copy(update={"evaluations": {name: manifest.root for name, (_, manifest) in results.items()}})


class _Ablation(BaseModel):
    """What the gate needs of ablation.json, which the package `downstream` writes."""

    verdict: str
    reason: str
    heads: list[Parent]


def ablation_shows_help(directory: str, candidate: TrainedHead, name: str) -> tuple[bool, str]:
    """Whether an ablation finds that the filter of the candidate helps, and the reason.

    Raises:
        InputError: the directory is not a finished ablation.
    """
    ablation = read_result(directory, "ablation.json", _Ablation, "ml-filter ablate")
    if [head.digest for head in ablation.heads] != [candidate.digest]:
        heads = ", ".join(head.path for head in ablation.heads) or "no known head"
        return False, f"the ablation in {directory} is of {heads}, not of {name} ({candidate.digest[:8]})"
    helps = ablation.verdict == "helps"
    return helps, f"the ablation in {directory} finds {ablation.verdict!r}: {ablation.reason}"


def _require_held_out(head: TrainedHead, name: str, sets: Iterable[tuple[SourceConfig, str]]) -> None:
    trained_on = {parent.digest for parent in head.training.parents}
    keys = read_trained_on(head)
    if keys is None:
        logger.warning(f"{name} has no record of the texts it was trained on: not checked for overlap")
    for source, label_column in sets:
        for parent in list_shards(source)[1]:
            if parent.digest in trained_on:
                raise InputError(f"{name} was trained on {parent.path}: {_HELD_OUT}")
        if keys is None:
            continue
        seen: list[str] = []
        documents = 0
        for chunk in LabelledDocuments(source, TrainConfig(label_column=label_column)):
            documents += len(chunk.ids)
            seen += [chunk.ids[row] for row in np.flatnonzero(np.isin(text_keys(chunk.texts), keys)).tolist()]
        if seen:
            raise InputError(
                f"{name} was trained on {len(seen):,} of the {documents:,} documents of {', '.join(source.paths)}, "
                f"such as {seen[0]}: remove them, or use `ml-filter decontaminate LABELS --against` these documents "
                f"before training; {_HELD_OUT}"
            )


def decide(
    evaluations: Mapping[Labels, HeadEvaluation],
    config: PromoteConfig,
    names: tuple[str, str],
    ablation: tuple[bool, str] | None = None,
) -> Decision:
    """Promote the candidate or not.

    `evaluations` are those of the candidate, compared with the current head if there is one. `names` are those of
    candidate and current head, for the reasons. `ablation` is what `ablation_shows_help` found, if it is required.
    """
    candidate, current = names
    refused: list[str] = []
    granted: list[str] = []
    for labels, evaluation in evaluations.items():
        failed = evaluation.unscored / (evaluation.documents + evaluation.unscored)
        if failed > config.max_failed_share:
            refused.append(
                f"{candidate} gives {failed:.1%} of {labels} ({evaluation.labels}) no score; at most "
                f"{config.max_failed_share:.1%} is allowed"
            )
    comparisons = {
        labels: evaluation.comparison.differences
        for labels, evaluation in evaluations.items()
        if evaluation.comparison is not None
    }
    compared_on: Labels | None = None
    if comparisons:
        compared_on = "test" if "test" in comparisons else "gold"
        beats, reason = _beats(comparisons[compared_on][config.metric], compared_on, config, current)
        (granted if beats else refused).append(reason)
    else:
        granted.append(f"{candidate} is the first head: nothing to compare it with")
    gold = evaluations["gold"]
    figure = gold.intervals[config.metric]
    passed, reason = figure.reaches(
        f"{PAIR_FIGURES[config.metric]} with humans", config.min_agreement, config.min_documents, gold.confidence
    )
    (granted if passed else refused).append(reason)
    if ablation is not None:
        (granted if ablation[0] else refused).append(ablation[1])
    return Decision(
        promoted=not refused,
        reasons=refused + granted,
        metric=config.metric,
        candidate=candidate,
        current=current if comparisons else None,
        compared_on=compared_on,
        comparisons=comparisons,
        gate=HumanGate(figure=figure, minimum=config.min_agreement, passed=passed),
    )


def _beats(difference: Figure, labels: Labels, config: PromoteConfig, current: str) -> tuple[bool, str]:
    metric = f"{PAIR_FIGURES[config.metric]} on {labels} ({difference.documents:,} documents)"
    if difference.documents < config.min_documents:
        return False, f"{metric}: at least {config.min_documents} documents are required to compare with {current}"
    if difference.interval is None:
        return False, f"{metric} cannot be compared with {current}'s: {difference.reason}"
    value, low, high = difference.interval
    reason = f"{metric} differs from {current}'s by {value:+.3f}, 95% interval {low:+.3f} to {high:+.3f}: "
    if low < config.margin:
        return False, reason + f"the lower bound is below the margin of {config.margin:g}"
    if value <= config.margin:
        return False, reason + "not an improvement"
    return True, reason + f"the lower bound reaches the margin of {config.margin:g}"
