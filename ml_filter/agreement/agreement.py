"""How well raters agree, overall and by stratum: the figures, from ratings that are in memory."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.agreement.config import AgreementConfig
from ml_filter.agreement.ratings import RatedInput, Ratings
from ml_filter.progress import progress
from ml_filter.statistics.group import GroupAgreement, compare_group
from ml_filter.statistics.intervals import MIN_DOCUMENTS, Array, Figure, Resampling, mean_figure, too_few
from ml_filter.statistics.pair import PairAgreement, compare_pair
from ml_filter.statistics.rounding import round_scores

AGREEMENT_NAME = "agreement.json"
REPORT_NAME = "agreement.html"
METHOD = (
    "Intervals are percentile bootstrap intervals over documents, resampled within each stratum, and include their "
    "figure. Where a share (agreement, precision, recall, F1, failed) is 0 or 1, its interval reaches to the exact "
    "bound of Clopper and Pearson 1934. A figure that is undefined in more resamples than the interval leaves out has "
    "no interval. Figures of classes use scores rounded (halves upwards) and clamped to the score range where it is "
    "known. Weighted kappas weight by the distance of the scores. Group figures exclude gold if there are two other "
    "raters; Fleiss' kappa and ICC (forms of Shrout and Fleiss 1979) use the documents that every rater scored, "
    "Krippendorff's alpha those that at least two scored."
)


class RaterSummary(BaseModel):
    """The scores of one rater: documents scored and failed, mean and spread, documents per class."""

    name: str
    documents: int
    failed: int
    mean: float | None
    standard_deviation: float | None
    classes: dict[int, int]


class Section(BaseModel):
    """Agreement over some documents. With gold, gold is the reference of the first pairs."""

    documents: int
    share_failed: dict[str, Figure]
    pairs: list[PairAgreement]
    group: GroupAgreement

    def compared(self, gold: str | None) -> list[PairAgreement]:
        """With gold, the pairs whose reference it is; without, all pairs."""
        return [pair for pair in self.pairs if gold in (None, pair.reference)]


class Agreement(BaseModel):
    """The content of agreement.json. `strata` holds a section for each value of each column."""

    gold: str | None
    raters: list[RaterSummary]
    overall: Section
    strata: dict[str, dict[str, Section]]
    threshold: float
    score_range: tuple[float, float] | None
    inputs: list[RatedInput]
    config: dict[str, Any]
    method: str = METHOD

    def sections(self) -> dict[str, Section]:
        """The sections by name: `overall`, then each stratum as `column=value`."""
        strata = {
            f"{column}={value}": section
            for column, sections in self.strata.items()
            for value, section in sections.items()
        }
        return {"overall": self.overall, **strata}


def compare_ratings(ratings: Ratings, config: AgreementConfig) -> Agreement:
    """All figures of the ratings, overall and in every stratum."""
    masks = {
        column: {value: np.array([other == value for other in values]) for value in sorted(set(values))}
        for column, values in ratings.columns.items()
    }
    with progress("Comparing ratings", 1 + sum(map(len, masks.values()))) as bar:

        def section(chosen: NDArray[np.bool_]) -> Section:
            result = _section(ratings, chosen, config)
            bar.advance(1)
            return result

        return Agreement(
            gold=ratings.raters[0] if ratings.has_gold else None,
            raters=[_summary(ratings, column) for column in range(len(ratings.raters))],
            overall=section(np.ones(len(ratings.documents), dtype=np.bool_)),
            strata={column: {value: section(mask) for value, mask in of.items()} for column, of in masks.items()},
            threshold=ratings.threshold,
            score_range=ratings.score_range,
            inputs=ratings.inputs,
            config=config.model_dump(mode="json"),
        )


def _section(ratings: Ratings, chosen: NDArray[np.bool_], config: AgreementConfig) -> Section:
    resampling = Resampling(
        confidence=config.confidence, resamples=config.resamples, seed=config.seed, defined=config.confidence
    )
    values, failed, names = ratings.values[chosen], ratings.failed[chosen], ratings.raters
    pairs = [
        compare_pair(
            names[a],
            names[b],
            values[:, [a, b]],
            score_range=ratings.score_range,
            threshold=ratings.threshold,
            resampling=resampling,
        )
        for a, b in combinations(range(len(names)), 2)
    ]
    group = slice(1 if ratings.has_gold and len(names) > 2 else 0, None)
    return Section(
        documents=int(chosen.sum()),
        share_failed={name: _share_failed(values[:, i], failed[:, i], resampling) for i, name in enumerate(names)},
        pairs=pairs,
        group=compare_group(names[group], values[:, group], score_range=ratings.score_range, resampling=resampling),
    )


def _share_failed(scores: Array, failed: NDArray[np.bool_], resampling: Resampling) -> Figure:
    """The share of the documents a rater should have scored, [documents], that got no score."""
    attempted = np.isfinite(scores) | failed
    if attempted.sum() < MIN_DOCUMENTS:
        return too_few(int(attempted.sum()))
    return mean_figure(failed[attempted], resampling, is_share=True)


def _summary(ratings: Ratings, column: int) -> RaterSummary:
    scores: Array = ratings.values[:, column]
    scores = scores[np.isfinite(scores)]
    classes = Counter(round_scores(scores, *(ratings.score_range or ())).astype(int).tolist())
    return RaterSummary(
        name=ratings.raters[column],
        documents=len(scores),
        failed=int(ratings.failed[:, column].sum()),
        mean=float(scores.mean()) if len(scores) else None,
        standard_deviation=float(scores.std(ddof=1)) if len(scores) > 1 else None,
        classes=dict(sorted(classes.items())),
    )
