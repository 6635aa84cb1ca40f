"""Cross-validation of heads on the training documents, with the same folds and resamples for every head.

Folds have similar labels, and documents of one group (a host, repeated texts, near-duplicates) are in one fold. The
resamples draw groups, so that more pages of the same hosts do not make a figure look more certain, and differences
between heads are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ml_filter.criterion import Criterion
from ml_filter.heads.config import SearchConfig
from ml_filter.heads.kinds import Trainer
from ml_filter.heads.kinds.base import FOLDS
from ml_filter.heads.labels import LabelTable, check_folds
from ml_filter.prepare.split import assign_splits
from ml_filter.statistics.calibration import can_calibrate, fit_calibration
from ml_filter.statistics.intervals import MAX_WEIGHTS, MIN_FOR_INTERVAL, Array, Resampling, Statistic
from ml_filter.statistics.rounding import integer_scores, whole_scores
from ml_filter.statistics.weighted import at_threshold, rank_and_distance, table_statistic

_SCORE_FIGURES = ("spearman", "pearson")
"""Figures of the scores themselves. The others are figures of whole scores."""


class CrossValidation:
    """Scores the training documents of a table with heads that were fitted without them; raises as `check_folds`."""

    def __init__(self, config: SearchConfig, criteria: Sequence[Criterion], table: LabelTable) -> None:
        self._config, self._criteria = config, criteria
        self.rows = np.flatnonzero(~table.is_test)
        self._labels, self._weights = table.labels[self.rows], table.weights[self.rows]
        groups = table.groups[self.rows]
        numbers, self._group_of = np.unique(groups, return_inverse=True)
        self.groups = len(numbers)
        classes = np.floor(np.nanmean(self._labels, axis=1) + 0.5).astype(np.int64)
        self._folds = assign_splits(self._group_of, classes, groups, [1 / FOLDS] * FOLDS)
        self.folds = len(np.unique(self._folds))
        check_folds(self._labels, self._folds, self._criteria)

    def predict(self, member: Trainer) -> Array:
        """What the metric compares with the labels [documents, criteria]: scores, or whole scores.

        Whole scores come from a calibration that was fitted on the scores of the other folds, or from rounding.
        """
        scores = member.cross_fit(self.rows, self._labels, self._weights, self._folds)
        scores = scores.clip(*np.array([criterion.bounds for criterion in self._criteria]).T)
        if self._config.metric not in _SCORE_FIGURES and np.isfinite(scores).all():
            for column in range(len(self._criteria)):
                scores[:, column] = self._round(scores[:, column], column)
        return scores

    def _round(self, scores: Array, column: int) -> Array:
        criterion, method = self._criteria[column], self._config.train.calibration
        labels = self._labels[:, column]
        rounded = integer_scores(scores, criterion.low, criterion.high)
        for fold in np.unique(self._folds):
            inside = self._folds == fold
            others = ~inside & ~np.isnan(labels)
            if method is not None and can_calibrate(labels[others], criterion):
                calibration = fit_calibration(
                    scores[others],
                    labels[others],
                    criterion,
                    fitted_on="the other folds",
                    method=method,
                    resampling=Resampling(resamples=1),  # its table is not used
                )
                assert calibration is not None
                rounded[inside] = calibration.integer_scores(scores[inside])
        return rounded.astype(np.float64)

    def figures(self, predictions: Array) -> Array:
        """The metric, mean over the criteria, and its resamples: [1 + resamples]; NaN: undefined."""
        by_criterion = [self._figures_of(predictions[:, column], column) for column in range(len(self._criteria))]
        mean: Array = np.mean(by_criterion, axis=0)
        return mean

    def _figures_of(self, predictions: Array, column: int) -> Array:
        from scipy.sparse import csr_matrix

        labelled = np.flatnonzero(~np.isnan(self._labels[:, column]))
        statistic, rows = self._statistic(self._labels[labelled, column], predictions[labelled], self._criteria[column])
        distinct, row_of = np.unique(rows, axis=0, return_inverse=True)
        occurs = csr_matrix((np.ones(len(labelled)), (labelled, row_of)), shape=(len(predictions), len(distinct)))
        return np.concatenate(
            [statistic(distinct, counts @ occurs)[self._config.metric] for counts in self._document_counts()]
        )

    def _statistic(self, labels: Array, predictions: Array, criterion: Criterion) -> tuple[Statistic, Array]:
        """The statistic that computes the metric, and its rows (label, prediction)."""
        if self._config.metric in _SCORE_FIGURES:
            return rank_and_distance, np.column_stack([labels, predictions])
        rows = np.column_stack([integer_scores(labels, criterion.low, criterion.high), predictions])
        if self._config.metric.endswith("_at_threshold"):
            return at_threshold, (rows >= criterion.threshold).astype(np.float64)
        return table_statistic(np.array(whole_scores(criterion.low, criterion.high), np.float64)), rows

    def _document_counts(self) -> Iterator[Array]:
        """How often each document occurs [resamples, documents], in parts: once in the first, then as groups are
        drawn."""
        yield np.ones((1, len(self.rows)))
        random = np.random.default_rng(0)
        resamples = self._config.resamples if self.groups >= MIN_FOR_INTERVAL else 0
        step = max(1, MAX_WEIGHTS // len(self.rows))
        for first in range(0, resamples, step):
            size = min(step, resamples - first)
            draws = random.multinomial(self.groups, np.full(self.groups, 1 / self.groups), size=size)
            yield draws[:, self._group_of].astype(np.float64)
