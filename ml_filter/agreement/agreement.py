"""How well raters agree, overall and by stratum: the figures, the plots, the page, and the gate on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.agreement.config import AgreementConfig, GateConfig
from ml_filter.agreement.ratings import RatedInput, Ratings, read_ratings
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.result import read_result
from ml_filter.errors import GateFailed
from ml_filter.progress import progress
from ml_filter.rendering.html import render
from ml_filter.rendering.plots import confusion_tables, interval_plot, rating_differences, rating_distribution
from ml_filter.statistics.agreement import GroupAgreement, PairAgreement, compare_group, compare_pair
from ml_filter.statistics.intervals import MIN_DOCUMENTS, Figure, Resampling, mean_figure, too_few
from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES
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
_PANELS = 6
"""Pairs that a plot shows at most; the tables show all."""
_STRATA_FIGURES = ("spearman", "kappa_quadratic")


class RaterSummary(BaseModel):
    """The scores of one rater: documents scored and failed, mean and spread, documents per class."""

    name: str
    documents: int
    failed: int
    mean: float | None
    standard_deviation: float | None
    classes: dict[int, int]


class Section(BaseModel):
    """Agreement over some documents. With gold, gold is the reference of the first pairs.

    `share_failed` is of the documents that a rater should have scored.
    """

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


def measure_agreement(scores: Sequence[str], config: AgreementConfig, output: str | Path) -> tuple[Agreement, Manifest]:
    """Compare the raters of annotation directories, score directories and rated tables.

    Writes `agreement.json`, `agreement.html` and plots as .svg. An undefined figure is None, with the reason.

    Raises:
        InputError: an input cannot be read, or there is nothing to compare.
    """
    ratings, parents = read_ratings(scores, config)
    with OutputDirectory(output, "agreement", config, parents) as out:
        if out.manifest:
            return read_result(out.manifest, AGREEMENT_NAME, Agreement, "ml-filter agreement"), out.manifest
        agreement = compare_ratings(ratings, config)
        write_agreement(out, agreement, ratings)
        counts = {
            "documents": agreement.overall.documents,
            "raters": len(agreement.raters),
            "failed": sum(rater.failed for rater in agreement.raters),
            "unmatched_rows": sum(rated.unmatched_rows for rated in agreement.inputs),
        }
        return agreement, out.finish([], counts)


def write_agreement(out: OutputDirectory, agreement: Agreement, ratings: Ratings) -> dict[str, str]:
    """Write `agreement.json`, `agreement.html` and the plots; returns the plots by name."""
    plots = agreement_plots(agreement, ratings)
    for name, svg in plots.items():
        out.put_bytes(f"{name}.svg", svg.encode())
    out.put_bytes(AGREEMENT_NAME, (agreement.model_dump_json(indent=1) + "\n").encode())
    out.put_bytes(REPORT_NAME, agreement_report(agreement, plots).encode())
    return plots


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
    attempted = np.isfinite(values) | failed
    share_failed = {
        name: mean_figure(failed[attempted[:, i], i], resampling, is_share=True)
        if count >= MIN_DOCUMENTS
        else too_few(count)
        for i, (name, count) in enumerate(zip(names, attempted.sum(axis=0).tolist(), strict=True))
    }
    return Section(
        documents=int(chosen.sum()),
        share_failed=share_failed,
        pairs=pairs,
        group=compare_group(names[group], values[:, group], score_range=ratings.score_range, resampling=resampling),
    )


def _summary(ratings: Ratings, column: int) -> RaterSummary:
    scores = ratings.values[np.isfinite(ratings.values[:, column]), column]
    classes = Counter(round_scores(scores, *(ratings.score_range or ())).astype(int).tolist())
    return RaterSummary(
        name=ratings.raters[column],
        documents=len(scores),
        failed=int(ratings.failed[:, column].sum()),
        mean=float(scores.mean()) if len(scores) else None,
        standard_deviation=float(scores.std(ddof=1)) if len(scores) > 1 else None,
        classes=dict(sorted(classes.items())),
    )


def agreement_plots(agreement: Agreement, ratings: Ratings) -> dict[str, str]:
    """SVG texts by name: `distribution`, and if the data allow it `differences`, `confusion` and one `strata_<figure>`
    each for Spearman and the quadratic kappa."""
    shares = {
        rater.name: {score: count / rater.documents for score, count in rater.classes.items()}
        for rater in agreement.raters
    }
    plots = {"distribution": rating_distribution(shares)}
    pairs = [pair for pair in agreement.overall.compared(agreement.gold) if pair.documents][:_PANELS]
    if pairs:
        plots["differences"] = rating_differences(
            {f"{pair.rater} − {pair.reference}": _differences(ratings, pair) for pair in pairs}  # noqa: RUF001
        )
    tables = {(p.reference, p.rater): (list(p.classes), p.confusion) for p in pairs if p.confusion}
    if tables:
        plots["confusion"] = confusion_tables(tables)
    if agreement.strata:
        for name in _STRATA_FIGURES:
            rows = [
                (f"{stratum}: {pair.rater} (n={figure.documents})", *figure.interval)
                for stratum, section in agreement.sections().items()
                for pair in section.compared(agreement.gold)
                if (figure := pair.figures[name]).interval
            ]
            if rows:
                plots[f"strata_{name}"] = interval_plot(rows, xlabel=PAIR_FIGURES[name])
    return plots


def _differences(ratings: Ratings, pair: PairAgreement) -> list[float]:
    reference, rater = (ratings.values[:, ratings.raters.index(name)] for name in (pair.reference, pair.rater))
    differences = rater - reference
    result: list[float] = differences[np.isfinite(differences)].tolist()
    return result


def agreement_report(agreement: Agreement, plots: dict[str, str]) -> str:
    """HTML with the figures, their intervals and the plots."""
    return render(
        "agreement/templates/agreement.html",
        agreement=agreement,
        plots=plots,
        strata_figures=_STRATA_FIGURES,
        pair_names=PAIR_FIGURES,
        group_names=GROUP_FIGURES,
    )


Outcome = Literal["passed", "failed", "not_judged"]


class GateCheck(BaseModel):
    """One rater against gold, overall or in one stratum. `not_judged`: too few documents, which is tolerated."""

    rater: str
    stratum: str
    figure: Figure
    outcome: Outcome
    reason: str


class GateResult(BaseModel):
    """The checks of the gate. `report` is the page with all figures."""

    scores: str
    metric: str
    min_agreement: float
    checks: list[GateCheck]
    report: str

    @property
    def passed(self) -> bool:
        """Whether the run may continue."""
        return all(check.outcome != "failed" for check in self.checks)

    def require(self) -> None:
        """Stop the run if a check failed.

        Raises:
            GateFailed: with the reason for each check that failed.
        """
        failed = [check.reason for check in self.checks if check.outcome == "failed"]
        if failed:
            raise GateFailed(f"{self.scores} does not pass the gate: {'; '.join(failed)}. All figures: {self.report}")

    def figures(self) -> dict[str, float]:
        """The lower bound of each check that has one, for trackers."""
        return {
            f"{check.rater}/{check.stratum}": check.figure.low for check in self.checks if check.figure.low is not None
        }


def run_gate(scores: Manifest | str | Path, config: GateConfig, output: str | Path) -> GateResult:
    """Compare scores with gold, overall and in every stratum of `by`, and check that they agree enough.

    Every rater must pass: the lower bound of the metric's interval must reach `min_agreement` on at least
    `min_documents` documents, and at most `max_failed_share` may have failed. An undefined figure fails. The agreement
    report is written to `output` either way; `require` on the result stops the run.

    `scores` are aggregated scores, annotations, or a rated table (with `rating_columns`).

    Raises:
        InputError: scores or gold cannot be read, or have no document in common.
    """
    path = scores.root if isinstance(scores, Manifest) else str(scores)
    measured = AgreementConfig.model_validate(config.model_dump(include=set(AgreementConfig.model_fields)))
    agreement, manifest = measure_agreement([path], measured, output)
    checks = [
        _check(name, pair, section.share_failed[pair.rater].value or 0.0, config)
        for name, section in agreement.sections().items()
        for pair in section.compared(agreement.gold)
    ]
    return GateResult(
        scores=path,
        metric=config.metric,
        min_agreement=config.min_agreement,
        checks=checks,
        report=manifest.path_of(REPORT_NAME),
    )


def _check(stratum: str, pair: PairAgreement, share_failed: float, config: GateConfig) -> GateCheck:
    figure = pair.figures[config.metric]
    subject = f"{pair.rater}, {stratum}"
    passed, reason = figure.reaches(
        f"{subject}: {PAIR_FIGURES[config.metric]}", config.min_agreement, config.min_documents, config.confidence
    )
    outcome: Outcome = "passed" if passed else "failed"
    if figure.documents < config.min_documents:
        if stratum != "overall" and config.small_strata == "report":
            outcome = "not_judged"
    elif share_failed > config.max_failed_share:
        outcome = "failed"
        reason = f"{subject}: {share_failed:.1%} failed; at most {config.max_failed_share:.1%} is allowed"
    return GateCheck(rater=pair.rater, stratum=stratum, figure=figure, outcome=outcome, reason=reason)
