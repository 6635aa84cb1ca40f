"""How good a head's scores are, with intervals: overall, by stratum, within sources, and against another head."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.criterion import Criterion
from ml_filter.statistics.agreement import ClassAgreement, pair_figures
from ml_filter.statistics.calibration import Calibration, ThresholdRow, threshold_table
from ml_filter.statistics.evaluation import Evaluation, evaluate_scores, threshold_statistic
from ml_filter.statistics.intervals import (
    MAX_WEIGHTS,
    MIN_DOCUMENTS,
    Array,
    Figure,
    Resampling,
    divide,
    few_labels,
    mean_figure,
    resampled_figures,
)
from ml_filter.statistics.metrics import COMPARED_FIGURES, PAIR_FIGURES
from ml_filter.statistics.rounding import integer_scores, round_scores
from ml_filter.statistics.weighted import ranking


class Discrimination(BaseModel):
    """Pairs of documents in the right order, within sources and across.

    A pair of documents whose whole labels differ is in the right order when the better one scores higher; ties count
    one half. `across_alike` weights the pairs of two sources so that their pairs of labels are as frequent as within
    one source, whose labels vary less. `difference` is `within` minus that. Intervals are over `sources`, the number of
    all sources; `groups` of them have a pair within.
    """

    column: str
    sources: int
    groups: int
    documents: int
    pairs_within: int
    pairs_across: int
    within: Figure
    across: Figure
    across_alike: Figure
    difference: Figure


def discriminate(
    scores: Array, wanted: NDArray[np.int64], sources: NDArray[np.str_], column: str, resampling: Resampling
) -> Discrimination | None:
    """Count correctly ordered pairs within and across sources; None where no document's source is known.

    `scores`, whole labels `wanted` and `sources` ("": not known, left out) are [documents]; `column` says what the
    sources are, such as "host". Whole sources are resampled, as documents of one source are not independent.
    """
    has_source = sources != ""
    scores, wanted = scores[has_source], wanted[has_source]
    names, source_of = np.unique(sources[has_source], return_inverse=True)
    if not len(names):
        return None
    classes = np.unique(wanted)
    right, pairs = np.zeros((2, len(names), len(classes) * (len(classes) - 1) // 2))  # by source and kind of pair
    for source, rows in enumerate(np.split(np.argsort(source_of), np.cumsum(np.bincount(source_of))[:-1])):
        if len(np.unique(wanted[rows])) > 1:
            once = np.ones((1, len(rows)))
            right[source], pairs[source] = (count[0] for count in _pairs(scores[rows], wanted[rows], once, classes))

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        parts = np.array_split(weights, -(-weights.shape[0] * len(scores) // MAX_WEIGHTS))
        counts = [_pairs(scores, wanted, part[:, source_of], classes) for part in parts]
        right_anywhere, anywhere = (np.concatenate(count) for count in zip(*counts, strict=True))
        # A source drawn twice is still one source: its copies are not pairs across.
        across_right, across = right_anywhere - weights**2 @ right, anywhere - weights**2 @ pairs
        within_right, within = weights @ right, weights @ pairs
        shares = divide(across_right, across)
        mixture = np.where(np.isnan(shares), 0, within)
        figures = {
            "within": divide(within_right.sum(axis=1), within.sum(axis=1)),
            "across": divide(across_right.sum(axis=1), across.sum(axis=1)),
            "across_alike": divide(np.nansum(mixture * shares, axis=1), mixture.sum(axis=1)),
        }
        return figures | {"difference": figures["within"] - figures["across_alike"]}

    figures = resampled_figures(np.arange(len(names), dtype=np.float64)[:, None], statistic, resampling)
    for figure in figures.values():
        if figure.value is None:
            figure.reason = "no such pairs of documents have different labels"
        elif figure.reason:
            figure.reason = figure.reason.replace("documents", f"{column}s")
    all_pairs = _pairs(scores, wanted, np.ones((1, len(scores))), classes)[1].sum()
    return Discrimination(
        column=column,
        sources=len(names),
        groups=int((pairs.sum(axis=1) > 0).sum()),
        documents=len(scores),
        pairs_within=int(pairs.sum()),
        pairs_across=int(all_pairs - pairs.sum()),
        **figures,
    )


def _pairs(scores: Array, wanted: NDArray[Any], weights: Array, classes: NDArray[Any]) -> tuple[Array, Array]:
    """Correctly ordered pairs and all pairs, [B, kinds], by kind (the two classes), for weights [B, documents]."""
    order = np.argsort(scores, kind="stable")
    scores, wanted, weights = scores[order], wanted[order], weights[:, order]
    right, pairs = np.zeros((2, len(weights), len(classes) * (len(classes) - 1) // 2))
    for kind, classes_of_kind in enumerate(combinations(classes, 2)):
        chosen = np.isin(wanted, classes_of_kind)
        better = (wanted[chosen] == classes_of_kind[1]).astype(np.float64)
        pairs[:, kind] = (weights[:, chosen] @ better) * (weights[:, chosen] @ (1 - better))
        # The area under the ROC curve is the share of pairs in the right order.
        right[:, kind] = np.nan_to_num(ranking(scores[chosen], better, weights[:, chosen])["roc_auc"]) * pairs[:, kind]
    return right, pairs


STRATUM_FIGURES = ("spearman", "mae", "f1_at_threshold")
STRATA_SHOWN = 10
"""Of a column with more values, the most frequent ones are strata."""
LENGTH = "length in"
"""Begins the name of the column of `length_buckets`; the unit of the lengths ends it."""
_LENGTHS = {
    "under 256": 256,
    "256 to 511": 512,
    "512 to 1,023": 1024,
    "1,024 to 4,095": 4096,
    "4,096 or more": math.inf,
}
_BINS = 10
_OF_SCORES = ("spearman", "pearson", "mae", "mse", "mean_difference")
_INTERVALS = (*_OF_SCORES, *(n for n in PAIR_FIGURES if n not in (*_OF_SCORES, "kendall", "kappa", "kappa_linear")))
_OF_GOOD = ("precision", "recall", "f1")


class Stratum(BaseModel):
    """The documents with one value in one column. `figures` are those of `STRATUM_FIGURES`."""

    column: str
    value: str
    documents: int
    figures: dict[str, Figure]


class ReliabilityBin(BaseModel):
    """Documents of similar calibrated probability: its mean, and the share of them that is good."""

    predicted: float
    observed: Figure


class Quality(Evaluation):
    """The figures of an evaluation with intervals, and figures that need more than one number a document.

    `intervals` has the names of `PAIR_FIGURES`: rank and distance figures are of the scores, the others of the whole
    scores. `threshold_intervals` goes by whole score, then by the names of `ThresholdFigures`. `reliability` and
    `brier` (the mean squared difference of probability and outcome) use the criterion's threshold, and need a
    calibrated head. `others` counts by column the documents whose value is too rare for a stratum.
    """

    confidence: float
    resamples: int
    intervals: dict[str, Figure]
    class_intervals: dict[int, ClassAgreement]
    threshold_intervals: dict[int, dict[str, Figure]]
    table: list[ThresholdRow]
    reliability: list[ReliabilityBin]
    brier: Figure | None
    strata: list[Stratum]
    others: dict[str, int]
    discrimination: Discrimination | None


class HeadComparison(BaseModel):
    """Two heads on the documents that both scored: figures of each, and ours minus theirs, paired."""

    documents: int
    ours: dict[str, Figure]
    theirs: dict[str, Figure]
    differences: dict[str, Figure]


@dataclass(frozen=True)
class HeadScores:
    """A head's scores (NaN: none) and whole scores (arbitrary without a score), [documents] each."""

    scores: NDArray[Any]
    int_scores: NDArray[Any]

    @classmethod
    def from_scores(
        cls, scores: NDArray[Any], criterion: Criterion, calibration: Calibration | None = None
    ) -> HeadScores:
        """With whole scores by the calibration, or by rounding without one."""
        filled = np.where(np.isfinite(scores), scores, criterion.low)
        if calibration is not None:
            return cls(scores, calibration.integer_scores(filled))
        return cls(scores, integer_scores(filled, criterion.low, criterion.high))

    def take(self, chosen: NDArray[np.bool_]) -> HeadScores:
        """The scores of some documents."""
        return HeadScores(self.scores[chosen], self.int_scores[chosen])


def measure_quality(
    scores: NDArray[Any],
    labels: NDArray[Any],
    criterion: Criterion,
    *,
    calibration: Calibration | None = None,
    columns: Mapping[str, Sequence[str | None]] | None = None,
    source: tuple[str, Sequence[str | None]] | None = None,
    tokens: NDArray[Any] | None = None,
    resampling: Resampling | None = None,
) -> Quality:
    """All figures of one criterion.

    Args:
        scores: [documents]; NaN: no score.
        labels: [documents], without NaN.
        criterion: a document counts as good when its whole score reaches the threshold.
        calibration: gives whole scores and probabilities; None: scores are rounded.
        columns: values [documents] by column; each value is a stratum, None is in no stratum.
        source: the column that says where documents come from, such as "host", and its values [documents].
        tokens: of each document [documents].
        resampling: None: 95% intervals from 1,000 resamples.

    Raises:
        ValueError: no document has a score.
    """
    resampling = resampling or Resampling()
    scored = np.isfinite(scores)
    head = HeadScores.from_scores(scores, criterion, calibration)
    evaluation = evaluate_scores(scores, labels, criterion, int_scores=head.int_scores)
    head, labels = head.take(scored), np.asarray(labels[scored], np.float64)
    wanted = integer_scores(labels, criterion.low, criterion.high)
    values = {name: _as_texts(column)[scored] for name, column in (columns or {}).items()}
    strata, others = _strata(values, head, labels, criterion, resampling)
    figures, class_intervals = _figures(labels, [head], criterion, resampling)
    intervals = {name: figures[name] for name in _INTERVALS}
    reliability, brier = _reliability(head.scores, wanted, calibration, criterion, resampling)
    rows = np.column_stack([head.scores, head.int_scores, wanted]).astype(np.float64)

    def with_reason(figures: dict[str, Figure], k: float) -> dict[str, Figure]:
        """The figures, of which those that need a label at or above k are undefined without one."""
        if (wanted >= k).any():
            return figures
        missing = Figure(value=None, documents=len(labels), reason=few_labels(0, len(labels), k))
        return {name: missing if name.startswith(_OF_GOOD) else figure for name, figure in figures.items()}

    return Quality(
        **dict(evaluation),
        confidence=resampling.confidence,
        resamples=resampling.resamples,
        intervals=intervals if len(labels) < MIN_DOCUMENTS else with_reason(intervals, criterion.threshold),
        class_intervals=class_intervals,
        threshold_intervals={
            k: with_reason(resampled_figures(rows, threshold_statistic(k), resampling), k)
            for k in evaluation.thresholds
        },
        table=threshold_table(
            head.scores,
            wanted >= criterion.threshold,
            criterion,
            tokens=None if tokens is None else tokens[scored],
            resampling=resampling,
        ),
        reliability=reliability,
        brier=brier,
        strata=strata,
        others=others,
        discrimination=source
        and discriminate(head.scores, wanted, _as_texts(source[1])[scored], source[0], resampling),
    )


def compare_heads(
    ours: HeadScores,
    theirs: HeadScores,
    labels: NDArray[Any],
    criterion: Criterion,
    *,
    resampling: Resampling | None = None,
) -> HeadComparison:
    """Figures of two heads on the documents with both scores and a label, and their paired differences.

    `resampling` None: 95% intervals from 1,000 resamples.
    """
    resampling = resampling or Resampling()
    both = np.isfinite(ours.scores) & np.isfinite(theirs.scores) & np.isfinite(labels)
    ours, theirs, labels = ours.take(both), theirs.take(both), np.asarray(labels[both], np.float64)
    ours_figures, theirs_figures, differences = (
        _figures(labels, heads, criterion, resampling)[0] for heads in ([ours], [theirs], [theirs, ours])
    )
    return HeadComparison(
        documents=int(both.sum()),
        ours={name: ours_figures[name] for name in _INTERVALS},
        theirs={name: theirs_figures[name] for name in _INTERVALS},
        differences={name: differences[name] for name in COMPARED_FIGURES},
    )


def length_buckets(lengths: NDArray[Any]) -> list[str]:
    """The bucket of each length in tokens or words, to use as a column of strata."""
    names = list(_LENGTHS)
    return [names[k] for k in np.searchsorted(list(_LENGTHS.values()), lengths, side="right")]


def _figures(
    labels: Array, heads: Sequence[HeadScores], criterion: Criterion, resampling: Resampling
) -> tuple[dict[str, Figure], dict[int, ClassAgreement]]:
    """`pair_figures` of the labels and one head, or the differences of two."""
    rounded = round_scores(labels, criterion.low, criterion.high)
    scores = np.column_stack([labels, *(head.scores for head in heads)])
    int_scores = np.column_stack([rounded, *(head.int_scores for head in heads)])
    return pair_figures(scores, int_scores, criterion.threshold, resampling)


def _reliability(
    scores: Array,
    wanted: NDArray[np.int64],
    calibration: Calibration | None,
    criterion: Criterion,
    resampling: Resampling,
) -> tuple[list[ReliabilityBin], Figure | None]:
    k = math.ceil(criterion.threshold)
    if calibration is None or k not in calibration.curves:
        return [], None
    probability, good = calibration.probability(scores, k), (wanted >= k).astype(np.float64)
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bin_of = np.searchsorted(edges, probability, side="right")
    bins = [
        ReliabilityBin(
            predicted=float(probability[bin_of == b].mean()), observed=mean_figure(good[bin_of == b], resampling)
        )
        for b in np.unique(bin_of)
    ]
    return bins, mean_figure((probability - good) ** 2, resampling)


def _as_texts(values: Sequence[str | None]) -> NDArray[np.str_]:
    return np.array([value or "" for value in values], dtype=np.str_)


def _strata(
    columns: Mapping[str, NDArray[np.str_]],
    head: HeadScores,
    labels: Array,
    criterion: Criterion,
    resampling: Resampling,
) -> tuple[list[Stratum], dict[str, int]]:
    strata, others = [], {}
    for column, values in columns.items():
        counts = Counter(values.tolist())
        del counts[""]
        shown = [value for value, _ in counts.most_common(STRATA_SHOWN)]
        order = list(_LENGTHS) if column.startswith(LENGTH) else shown
        others[column] = counts.total() - sum(counts[value] for value in shown)
        for value in sorted(shown, key=order.index):
            chosen = values == value
            figures, _ = _figures(labels[chosen], [head.take(chosen)], criterion, resampling)
            shown_figures = {name: figures[name] for name in STRATUM_FIGURES}
            strata.append(Stratum(column=column, value=value, documents=counts[value], figures=shown_figures))
    return strata, others
