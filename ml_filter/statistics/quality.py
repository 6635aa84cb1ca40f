"""How good a head's scores are, with bootstrap intervals: overall, by stratum, within sources, against another head.

Intervals are those of `agreement.metrics`: percentiles of figures of resampled documents, 95% unless said otherwise.
Those of the figures within sources go over resampled sources, as documents of one source are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from ml_filter.statistics.agreement import (
    MIN_DOCUMENTS,
    Array,
    ClassAgreement,
    Figure,
    PairAgreement,
    Resampling,
    at_threshold,
    compare_against,
    compare_pair,
    divide,
    rank_and_distance,
    resampled_figures,
    shares_at_threshold,
    too_few,
)
from ml_filter.statistics.calibration import Calibration, ThresholdRow, threshold_table
from ml_filter.statistics.evaluation import Evaluation, evaluate_scores, integer_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRATUM_FIGURES = ("spearman", "mae", "f1_at_threshold")
STRATA_SHOWN = 10
"""Of a column with more values, the most frequent ones are strata."""
LENGTH = "length in"
"""Begins the name of the column of `length_buckets`; its end is what lengths are counted in."""
_LENGTHS = {
    "under 256": 256,
    "256 to 511": 512,
    "512 to 1,023": 1024,
    "1,024 to 4,095": 4096,
    "4,096 or more": math.inf,
}
_BINS = 10
_CHUNK = 2_000_000


class Stratum(BaseModel):
    """The documents with one value in one column. `figures` are those of `STRATUM_FIGURES`."""

    column: str
    value: str
    documents: int
    figures: dict[str, Figure]


class Discrimination(BaseModel):
    """Whether a head ranks the documents of one source, or only sources.

    A pair of documents whose whole labels differ is ordered correctly when the better one scores higher; ties count
    one half. `within` is the share of such pairs among those of one source, `across` among those of two sources.
    Documents of one source are more alike, and so are their labels; `across_alike` therefore takes the pairs of two
    sources in the mixture of label pairs that the pairs of one source have. `difference` is `within` minus that.
    Intervals go over `sources`, all those that have documents; `groups` of them have a pair within.
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


class ReliabilityBin(BaseModel):
    """Documents of like calibrated probability: its mean, and the share of them that is good."""

    predicted: float
    observed: Figure


class Quality(Evaluation):
    """The figures of an evaluation with intervals, and those that need more than one number a document.

    `intervals` goes by the names of `PAIR_FIGURES`; rank and distance figures are of the scores, the others of the
    whole scores. `threshold_intervals` goes by whole score, then by the names of `ThresholdFigures`. `table` says what
    each threshold on the score keeps. `reliability` and `brier` (the mean squared difference of probability and
    outcome) are there where the head is calibrated, and go by the criterion's threshold. `others` counts by column the
    documents that are in no stratum for its having too many values; documents without a value are not among them.
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
    """What a head says of documents, [documents] each: scores (nan: none) and whole scores (any number there)."""

    scores: NDArray[Any]
    whole: NDArray[Any]

    @classmethod
    def of(cls, scores: NDArray[Any], low: float, high: float, calibration: Calibration | None = None) -> HeadScores:
        """Whole scores by the calibration, or by rounding where there is none."""
        known = np.where(np.isfinite(scores), scores, low)
        whole = integer_scores(known, low, high) if calibration is None else calibration.integer_scores(known)
        return cls(scores, whole)

    def taken(self, chosen: NDArray[np.bool_]) -> HeadScores:
        """Those of some documents."""
        return HeadScores(self.scores[chosen], self.whole[chosen])


def measure_quality(
    scores: NDArray[Any],
    labels: NDArray[Any],
    *,
    low: float,
    high: float,
    threshold: float,
    calibration: Calibration | None = None,
    strata: Mapping[str, Sequence[str | None]] | None = None,
    source: tuple[str, Sequence[str | None]] | None = None,
    tokens: NDArray[Any] | None = None,
    how: Resampling | None = None,
) -> Quality:
    """All figures of one criterion.

    Args:
        scores: [documents]; nan: none.
        labels: [documents], none of them nan.
        low: the lowest score.
        high: the highest score.
        threshold: a document counts as good when its whole score reaches it.
        calibration: gives whole scores and probabilities; not given: scores are rounded.
        strata: columns of values [documents]; None: unknown.
        source: what documents come from, such as "host", and its values [documents]; for `discrimination`.
        tokens: of each document [documents].
        how: of the resampling.

    Raises:
        ValueError: no document has a score.
    """
    how = how or Resampling()
    scored = np.isfinite(scores)
    given = HeadScores.of(scores, low, high, calibration)
    evaluation = evaluate_scores(scores, labels, low=low, high=high, threshold=threshold, whole=given.whole)
    given, labels = given.taken(scored), np.asarray(labels[scored], np.float64)
    wanted = integer_scores(labels, low, high)
    columns = {name: _texts(values)[scored] for name, values in (strata or {}).items()}
    found, others = _strata(columns, given, labels, threshold, how)
    intervals, classes = _with_intervals(given, labels, threshold, (low, high), how)
    reliability, brier = _reliability(given.scores, wanted, calibration, threshold, how)
    return Quality(
        **dict(evaluation),
        confidence=how.confidence,
        resamples=how.resamples,
        intervals=intervals,
        class_intervals=classes,
        threshold_intervals=_threshold_intervals(given, wanted, list(evaluation.thresholds), how),
        table=threshold_table(
            given.scores,
            wanted >= threshold,
            low=low,
            high=high,
            tokens=None if tokens is None else tokens[scored],
            how=how,
        ),
        reliability=reliability,
        brier=brier,
        strata=found,
        others=others,
        discrimination=source and discriminate(given.scores, wanted, _texts(source[1])[scored], source[0], how),
    )


def compare_heads(
    ours: HeadScores,
    theirs: HeadScores,
    labels: NDArray[Any],
    *,
    low: float,
    high: float,
    threshold: float,
    how: Resampling | None = None,
) -> HeadComparison:
    """The figures that tell which head is better, of both on the same documents, and their differences.

    The interval of a difference is paired: both heads' figures come from the same resamples.

    Args:
        ours: scores of one head.
        theirs: scores of the other head.
        labels: [documents]; documents with both scores and a label count.
        low: the lowest score.
        high: the highest score.
        threshold: a document counts as good when its whole score reaches it.
        how: of the resampling.
    """
    how = how or Resampling()
    both = np.isfinite(ours.scores) & np.isfinite(theirs.scores) & np.isfinite(labels)
    ours, theirs, labels = ours.taken(both), theirs.taken(both), np.asarray(labels[both], np.float64)
    raw, whole = (
        compare_against(np.column_stack(columns), score_range=(low, high), threshold=threshold, how=how)
        for columns in ((labels, theirs.scores, ours.scores), (labels, theirs.whole, ours.whole))
    )
    return HeadComparison(
        documents=int(both.sum()),
        ours=_with_intervals(ours, labels, threshold, (low, high), how)[0],
        theirs=_with_intervals(theirs, labels, threshold, (low, high), how)[0],
        differences={name: (raw if name in _OF_SCORES else whole)[name] for name in raw},
    )


_OF_SCORES = ("spearman", "pearson", "mae", "mse", "mean_difference")
_OF_WHOLE_SCORES = (
    "kappa_quadratic",
    "exact_agreement",
    "macro_f1",
    "agreement_at_threshold",
    "precision_at_threshold",
    "recall_at_threshold",
    "f1_at_threshold",
    "macro_f1_at_threshold",
)


def _with_intervals(
    given: HeadScores, labels: Array, threshold: float, score_range: tuple[float, float], how: Resampling
) -> tuple[dict[str, Figure], dict[int, ClassAgreement]]:
    if len(labels) < MIN_DOCUMENTS:
        return dict.fromkeys(_OF_SCORES + _OF_WHOLE_SCORES, too_few(len(labels))), {}
    by_class: PairAgreement = compare_pair(
        "label",
        "head",
        np.column_stack([labels, given.whole]),
        score_range=score_range,
        threshold=threshold,
        how=how,
    )
    figures = resampled_figures(np.column_stack([labels, given.scores]), rank_and_distance, how)
    return {**figures, **{name: by_class.figures[name] for name in _OF_WHOLE_SCORES}}, by_class.classes


def _threshold_intervals(
    given: HeadScores, wanted: NDArray[np.int64], thresholds: list[int], how: Resampling
) -> dict[int, dict[str, Figure]]:
    rows = np.column_stack([given.scores, given.whole, wanted]).astype(np.float64)
    made = {}
    for k in thresholds:

        def statistic(rows: Array, weights: Array, k: int = k) -> dict[str, Array]:
            decided = at_threshold((rows[:, [2, 1]] >= k).astype(np.float64), weights)
            figures = {name: decided[f"{name}_at_threshold"] for name in ("precision", "recall", "f1")}
            return figures | _ranking(rows[:, 0], rows[:, 2] >= k, weights)

        made[k] = resampled_figures(rows, statistic, how)
    return made


def _ranking(scores: Array, good: NDArray[np.bool_], weights: Array) -> dict[str, Array]:
    """The area under the ROC curve and the average precision [B] of rising scores [U] with weights [B, U]."""
    starts = np.flatnonzero(np.diff(scores, prepend=-np.inf))
    goods, rest = (np.add.reduceat(weights * of, starts, axis=1) for of in (good, ~good))
    all_good, all_rest = goods.sum(axis=1), rest.sum(axis=1)
    lower = np.cumsum(rest, axis=1) - rest / 2  # a tie is half in order
    kept_good, kept = (np.cumsum(of[:, ::-1], axis=1)[:, ::-1] for of in (goods, goods + rest))
    one_side = (all_good == 0) | (all_rest == 0)
    precision = np.where(one_side, np.nan, divide(np.nansum(goods * divide(kept_good, kept), axis=1), all_good))
    return {
        "roc_auc": divide((goods * lower).sum(axis=1), all_good * all_rest),
        "average_precision": precision,
    }


def _reliability(
    scores: Array, wanted: NDArray[np.int64], calibration: Calibration | None, threshold: float, how: Resampling
) -> tuple[list[ReliabilityBin], Figure | None]:
    k = math.ceil(threshold)
    if calibration is None or k not in calibration.curves:
        return [], None
    probability, good = calibration.probability(scores, k), (wanted >= k).astype(np.float64)
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bin_of = np.searchsorted(edges, probability, side="right")
    bins = [
        ReliabilityBin(predicted=float(probability[bin_of == b].mean()), observed=_mean(good[bin_of == b], how))
        for b in np.unique(bin_of)
    ]
    return bins, _mean((probability - good) ** 2, how)


def _mean(values: Array, how: Resampling) -> Figure:
    return resampled_figures(
        values[:, None], lambda rows, weights: {"mean": divide(weights @ rows[:, 0], weights.sum(axis=1))}, how
    )["mean"]


# --- Strata and sources ----------------------------------------------------------------------------------------------


def length_buckets(lengths: NDArray[Any]) -> list[str]:
    """The stratum of each length in tokens or words."""
    names = list(_LENGTHS)
    return [names[k] for k in np.searchsorted(list(_LENGTHS.values()), lengths, side="right")]


def _texts(values: Sequence[str | None]) -> NDArray[np.str_]:
    return np.array([value or "" for value in values], dtype=np.str_)


def _strata(
    columns: Mapping[str, NDArray[np.str_]], given: HeadScores, labels: Array, threshold: float, how: Resampling
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
            figures = _stratum_figures(given.taken(chosen), labels[chosen], threshold, how)
            strata.append(Stratum(column=column, value=value, documents=counts[value], figures=figures))
    return strata, others


def _stratum_figures(given: HeadScores, labels: Array, threshold: float, how: Resampling) -> dict[str, Figure]:
    if len(labels) < MIN_DOCUMENTS:
        return dict.fromkeys(STRATUM_FIGURES, too_few(len(labels)))
    wanted = np.floor(labels + 0.5)
    decided = np.column_stack([wanted >= threshold, given.whole >= threshold]).astype(np.float64)
    figures = resampled_figures(np.column_stack([labels, given.scores]), rank_and_distance, how)
    figures |= resampled_figures(decided, at_threshold, how, shares_at_threshold(decided))
    return {name: figures[name] for name in STRATUM_FIGURES}


def discriminate(
    scores: Array, wanted: NDArray[np.int64], sources: NDArray[np.str_], column: str, how: Resampling
) -> Discrimination | None:
    """Correctly ordered pairs within and across sources; None where no document's source is known.

    Args:
        scores: [documents], none of them nan.
        wanted: whole labels, [documents].
        sources: of the documents, [documents]; empty where unknown: these are left out.
        column: what the sources are, such as "host".
        how: of the resampling.
    """
    known = sources != ""
    scores, wanted = scores[known], wanted[known]
    names, source_of = np.unique(sources[known], return_inverse=True)
    if not len(names):
        return None
    classes = np.unique(wanted)
    right, pairs = np.zeros((2, len(names), len(classes) * (len(classes) - 1) // 2))  # by source and kind of pair
    for source, of in enumerate(np.split(np.argsort(source_of), np.cumsum(np.bincount(source_of))[:-1])):
        if len(np.unique(wanted[of])) > 1:
            one = np.ones((1, len(of)))
            right[source], pairs[source] = (found[0] for found in _pairs(scores[of], wanted[of], one, classes))

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        parts = np.array_split(weights, -(-weights.shape[0] * len(scores) // _CHUNK))
        counted = [_pairs(scores, wanted, part[:, source_of], classes) for part in parts]
        everywhere = [np.concatenate(of) for of in zip(*counted, strict=True)]
        # A source drawn twice is still one source: its copies are no pairs across.
        across_right, across = (of - weights**2 @ own for of, own in zip(everywhere, (right, pairs), strict=True))
        within_right, within = weights @ right, weights @ pairs
        shares = divide(across_right, across)
        mixture = np.where(np.isnan(shares), 0, within)
        made = {
            "within": divide(within_right.sum(axis=1), within.sum(axis=1)),
            "across": divide(across_right.sum(axis=1), across.sum(axis=1)),
            "across_alike": divide(np.nansum(mixture * shares, axis=1), mixture.sum(axis=1)),
        }
        return made | {"difference": made["within"] - made["across_alike"]}

    all_sources = np.arange(len(names), dtype=np.float64)[:, None]
    figures = resampled_figures(all_sources, statistic, how)
    for figure in figures.values():
        if figure.value is None:
            figure.reason = "there are no such pairs of documents whose labels differ"
        elif figure.reason:
            figure.reason = figure.reason.replace("documents", f"{column}s")
    everywhere = _pairs(scores, wanted, np.ones((1, len(scores))), classes)[1].sum()
    return Discrimination(
        column=column,
        sources=len(names),
        groups=int((pairs.sum(axis=1) > 0).sum()),
        documents=len(scores),
        pairs_within=int(pairs.sum()),
        pairs_across=int(everywhere - pairs.sum()),
        **figures,
    )


def _pairs(scores: Array, wanted: NDArray[np.int64], weights: Array, classes: NDArray[np.int64]) -> tuple[Array, Array]:
    """Correctly ordered pairs and all pairs, [B, kinds], by kind (the two classes), for weights [B, documents]."""
    order = np.argsort(scores, kind="stable")
    scores, wanted, weights = scores[order], wanted[order], weights[:, order]
    first, last = (np.searchsorted(scores, scores, side=side) for side in ("left", "right"))
    right, pairs = [], []
    for place, worse in enumerate(classes[:-1]):
        lower = np.cumsum(np.where(wanted == worse, weights, 0), axis=1)
        lower = np.concatenate([np.zeros((len(weights), 1)), lower], axis=1)
        for better in classes[place + 1 :]:
            chosen = wanted == better
            outranked = (lower[:, first[chosen]] + lower[:, last[chosen]]) / 2
            right.append((weights[:, chosen] * outranked).sum(axis=1))
            pairs.append(weights[:, chosen].sum(axis=1) * lower[:, -1])
    shape = (len(weights), 0)
    return (np.stack(right, axis=1), np.stack(pairs, axis=1)) if right else (np.zeros(shape), np.zeros(shape))
