"""Whether a head takes the place of the current one: a paired test on documents kept apart, and a gate on humans.

A head is promoted only if both hold:

- the lower bound of the paired bootstrap interval of its figure minus the current head's reaches `margin`, and the
  difference itself is above it. With the default margin of 0 a head has to be better beyond what the draw of the test
  documents explains; where the interval reaches below 0, the current head stays;
- the lower bound of its figure with human labels reaches `min_agreement`.

The paired test goes over documents with LLM labels where some are given (`test`), else over the human gold. A first
head has nothing to beat and needs the gate only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from loguru import logger
from pydantic import BaseModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.sources import list_shards
from ml_filter.errors import GateFailed, InputError
from ml_filter.evaluation.config import PromoteConfig
from ml_filter.statistics.intervals import Figure
from ml_filter.statistics.metrics import PAIR_FIGURES

if TYPE_CHECKING:
    from ml_filter.documents.manifest import Manifest
    from ml_filter.evaluation.evaluate import HeadEvaluation
    from ml_filter.heads.train import TrainedHead

Labels = Literal["test", "gold"]
"""LLM labels kept apart, or human ones."""
_APART = "compare heads on documents that neither has seen, such as the test split that `ml-filter publish` makes"


class HumanGate(BaseModel):
    """The candidate's figure with humans and what its lower bound has to reach."""

    figure: Figure
    minimum: float
    passed: bool


class Decision(BaseModel):
    """What was decided, why, and the figures behind it.

    `comparisons` hold the candidate's figures minus the current head's, paired, on each set of labels; the one on
    `compared_on` decided. Without a current head there are none. `evaluations` are the directories behind the figures.
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
        """Stop where the head is not promoted.

        Raises:
            GateFailed: with the reasons.
        """
        if not self.promoted:
            raise GateFailed(f"{self.candidate} is not promoted: {'; '.join(self.reasons)}")


def judge_head(
    candidate: TrainedHead,
    current: TrainedHead | None,
    gold: SourceConfig,
    gold_label_column: str,
    config: PromoteConfig,
    output: str | Path,
    names: tuple[str, str] = ("the candidate", "the current head"),
    earlier: Sequence[Manifest] = (),
) -> Decision:
    """Score the same documents with both heads and decide.

    Args:
        candidate: the head that is to be promoted.
        current: the head it has to beat; None: there is none yet.
        gold: documents with human labels.
        gold_label_column: their column.
        config: metric, margin, minimum, and the LLM-labelled documents to compare on.
        output: directory of each evaluation, with its report; `{digest}` in it stands for heads and documents.
        names: of candidate and current head, for the reasons.
        earlier: evaluations of either head; documents that they scored are not scored again.

    Raises:
        InputError: labels cannot be read, a head was trained on them, or the heads' score ranges differ.
    """
    from ml_filter.evaluation.evaluate import evaluate_head

    sets: dict[Labels, tuple[SourceConfig, str]] = {"gold": (gold, gold_label_column)}
    if config.test is not None:
        sets["test"] = (config.test, config.test_label_column)
    for source, column in sets.values():
        _check_apart(candidate, names[0], source, column)
        if current is not None:
            _check_apart(current, names[1], source, column)
    compare = None if current is None else current.directory
    evaluated: dict[Labels, HeadEvaluation] = {}
    places: dict[Labels, str] = {}
    for labels, (source, column) in sets.items():
        made = evaluate_head(candidate.directory, source, column, output, compare, config.criterion, earlier)
        evaluated[labels], places[labels] = made[0], made[1].root
    decision = decide(evaluated["gold"], evaluated.get("test"), config, names)
    return decision.model_copy(update={"evaluations": places})


def _check_apart(head: TrainedHead, name: str, source: SourceConfig, label_column: str) -> None:
    from ml_filter.heads.labels import LabelledDocuments, text_keys
    from ml_filter.heads.train import read_trained_on

    trained_on = {parent.digest for parent in head.training.parents}
    for parent in list_shards(source)[1]:
        if parent.digest in trained_on:
            raise InputError(f"{name} was trained on {parent.path}: {_APART}")
    texts = read_trained_on(head.directory)
    if texts is None:
        logger.warning(f"{name} does not say which texts it was trained on (it is of an older version): not compared")
        return
    seen: list[str] = []
    documents = 0
    for chunk in LabelledDocuments(source, label_column):
        documents += len(chunk.ids)
        seen += [chunk.ids[place] for place in np.flatnonzero(np.isin(text_keys(chunk.texts), texts)).tolist()]
    if seen:
        raise InputError(
            f"{name} was trained on {len(seen):,} of the {documents:,} documents of {', '.join(source.paths)} (the "
            f"first is {seen[0]}): take them out, or train on what `ml-filter decontaminate LABELS --against` them "
            f"leaves; {_APART}"
        )


def decide(
    gold: HeadEvaluation,
    test: HeadEvaluation | None,
    config: PromoteConfig,
    names: tuple[str, str] = ("the candidate", "the current head"),
) -> Decision:
    """Promote the candidate or not.

    Args:
        gold: of the candidate on human labels, compared with the current head where there is one.
        test: the same on LLM labels kept apart, to compare on; None: compare on gold.
        config: metric, margin, minimum.
        names: of candidate and current head, for the reasons.
    """
    sets: dict[Labels, HeadEvaluation] = {"gold": gold}
    if test is not None:
        sets["test"] = test
    refused: list[str] = []
    granted: list[str] = []
    for labels, evaluation in sets.items():
        failed = evaluation.unscored / (evaluation.documents + evaluation.unscored)
        if failed > config.max_failed_share:
            refused.append(
                f"{names[0]} gives {failed:.1%} of {labels} ({evaluation.labels}) no score, at most "
                f"{config.max_failed_share:.1%} may have none"
            )
    comparisons = {labels: of.comparison.differences for labels, of in sets.items() if of.comparison is not None}
    compared_on: Labels | None = None
    if comparisons:
        compared_on = "test" if "test" in comparisons else "gold"
        beats, reason = _beats(comparisons[compared_on][config.metric], compared_on, config, names[1])
        (granted if beats else refused).append(reason)
    else:
        granted.append(f"{names[0]} is the first: there is no head to beat")
    gate, reason = _human_gate(gold.intervals[config.metric], config)
    (granted if gate.passed else refused).append(reason)
    return Decision(
        promoted=not refused,
        reasons=refused + granted,
        metric=config.metric,
        candidate=names[0],
        current=names[1] if comparisons else None,
        compared_on=compared_on,
        comparisons=comparisons,
        gate=gate,
    )


def _beats(difference: Figure, on: Labels, config: PromoteConfig, current: str) -> tuple[bool, str]:
    what = f"{PAIR_FIGURES[config.metric]} on {on} ({difference.documents:,} documents)"
    if difference.documents < config.min_documents:
        return False, f"{what}: {config.min_documents} documents are needed to compare with {current}"
    if difference.value is None or difference.low is None or difference.high is None:
        return False, f"{what} cannot be compared with {current}'s: {difference.reason}"
    says = (
        f"{what} differs from {current}'s by {difference.value:+.3f}, 95% interval {difference.low:+.3f} to "
        f"{difference.high:+.3f}: "
    )
    if difference.low < config.margin:
        return False, says + f"the lower bound is under the margin of {config.margin:g}"
    if difference.value <= config.margin:
        return False, says + "that is no improvement"
    return True, says + f"the lower bound reaches the margin of {config.margin:g}"


def _human_gate(figure: Figure, config: PromoteConfig) -> tuple[HumanGate, str]:
    what = f"{PAIR_FIGURES[config.metric]} with humans"
    passed = False
    if figure.documents < config.min_documents:
        reason = f"{what} stands on {figure.documents} documents, {config.min_documents} are needed"
    elif figure.value is None or figure.low is None or figure.high is None:
        reason = f"{what} cannot be told on {figure.documents} documents: {figure.reason}"
    else:
        passed = figure.low >= config.min_agreement
        reason = (
            f"{what} is {figure.value:.3f} on {figure.documents:,} documents, 95% interval {figure.low:.3f} to "
            f"{figure.high:.3f}: the lower bound {'reaches' if passed else 'is under'} {config.min_agreement:g}"
        )
    return HumanGate(figure=figure, minimum=config.min_agreement, passed=passed), reason
