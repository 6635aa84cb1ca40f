"""Measure how well raters agree, overall and by stratum: figures as JSON, a page, and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.agreement.config import AgreementConfig
from ml_filter.agreement.ratings import RatedInput, Ratings, read_ratings
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.progress import progress
from ml_filter.statistics.group import GroupAgreement, compare_group
from ml_filter.statistics.intervals import MIN_DOCUMENTS, Array, Figure, Resampling, mean_figure, too_few
from ml_filter.statistics.pair import PairAgreement, compare_pair
from ml_filter.statistics.rounding import round_scores

AGREEMENT_NAME = "agreement.json"
REPORT_NAME = "agreement.html"
METHOD = (
    "Intervals are percentile bootstrap intervals over documents, drawn anew within each stratum, and hold their "
    "figure; that of a share (agreement, precision, recall, F1, failed) of 0 or 1 reaches to the exact bound of "
    "Clopper and Pearson 1934. There is none where more resamples have no figure than the interval leaves out. "
    "Figures of classes take scores rounded, halves upwards, and clamped to the score range where it is known. "
    "Weighted kappas weigh by the distance of the scores. Group figures leave gold out where there are two other "
    "raters; Fleiss' kappa and ICC (forms of Shrout and Fleiss 1979) take documents that every rater scored, "
    "Krippendorff's alpha those that two scored."
)


class RaterSummary(BaseModel):
    """What one rater gave: documents scored and failed, mean and spread, documents per class."""

    name: str
    documents: int
    failed: int
    mean: float | None
    standard_deviation: float | None
    classes: dict[int, int]


class Section(BaseModel):
    """Agreement over some documents. With gold, `pairs` has gold as the first reference."""

    documents: int
    share_failed: dict[str, Figure]
    pairs: list[PairAgreement]
    group: GroupAgreement

    def compared(self, gold: str | None) -> list[PairAgreement]:
        """The pairs of interest: with gold, those that it is the reference of; else all."""
        return [pair for pair in self.pairs if gold in (None, pair.reference)]


class Agreement(BaseModel):
    """The content of agreement.json. `strata` holds sections by column, then by its value."""

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
        strata = {f"{column}={value}": one for column, of in self.strata.items() for value, one in of.items()}
        return {"overall": self.overall, **strata}


def measure_agreement(scores: Sequence[str], config: AgreementConfig, output: str | Path) -> tuple[Agreement, Manifest]:
    """Compare the raters of annotation directories, score directories and rated tables.

    Writes `agreement.json`, `agreement.html` and plots as .svg. A figure that is undefined is None, with the reason.

    Raises:
        InputError: an input cannot be read, or nothing can be compared.
    """
    from ml_filter.agreement.page import agreement_plots, agreement_report

    ratings, parents = read_ratings(scores, config)
    with OutputDirectory(output, "agreement", config, parents) as out:
        if out.manifest:
            return Agreement.model_validate_json(out.fs.cat_file(f"{out.root}/{AGREEMENT_NAME}")), out.manifest
        agreement = compare_ratings(ratings, config)
        plots = agreement_plots(agreement, ratings)
        out.put_bytes(AGREEMENT_NAME, (agreement.model_dump_json(indent=1) + "\n").encode())
        for name, svg in plots.items():
            out.put_bytes(f"{name}.svg", svg.encode())
        out.put_bytes(REPORT_NAME, agreement_report(agreement, plots).encode())
        return agreement, out.finish([], _counts(agreement))


def compare_ratings(ratings: Ratings, config: AgreementConfig) -> Agreement:
    """All figures of the ratings, overall and in every stratum."""
    strata = {
        name: {value: np.array([one == value for one in of]) for value in sorted(set(of))}
        for name, of in ratings.strata.items()
    }
    everything = np.ones(len(ratings.documents), dtype=np.bool_)
    with progress("Comparing ratings", 1 + sum(map(len, strata.values()))) as bar:

        def section(chosen: NDArray[np.bool_]) -> Section:
            made = _section(ratings, chosen, config)
            bar.advance(1)
            return made

        return Agreement(
            gold=ratings.raters[0] if ratings.has_gold else None,
            raters=rater_summaries(ratings),
            overall=section(everything),
            strata={name: {value: section(chosen) for value, chosen in of.items()} for name, of in strata.items()},
            threshold=config.threshold,
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
            threshold=config.threshold,
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
    wanted = np.isfinite(scores) | failed
    if wanted.sum() < MIN_DOCUMENTS:
        return too_few(int(wanted.sum()))
    return mean_figure(failed[wanted], resampling, is_share=True)


def rater_summaries(ratings: Ratings) -> list[RaterSummary]:
    """What each rater gave."""
    return [_summary(ratings, column) for column in range(len(ratings.raters))]


def _summary(ratings: Ratings, column: int) -> RaterSummary:
    scores: Array = ratings.values[:, column]
    given = scores[np.isfinite(scores)]
    classes = Counter(round_scores(given, *(ratings.score_range or ())).astype(int).tolist())
    return RaterSummary(
        name=ratings.raters[column],
        documents=len(given),
        failed=int(ratings.failed[:, column].sum()),
        mean=float(given.mean()) if len(given) else None,
        standard_deviation=float(given.std(ddof=1)) if len(given) > 1 else None,
        classes=dict(sorted(classes.items())),
    )


def _counts(agreement: Agreement) -> Mapping[str, int]:
    return {
        "documents": agreement.overall.documents,
        "raters": len(agreement.raters),
        "failed": sum(rater.failed for rater in agreement.raters),
        "unmatched_rows": sum(one.unmatched_rows for one in agreement.inputs),
    }
