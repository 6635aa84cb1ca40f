"""The page and the plots that show how well raters agree."""

from __future__ import annotations

import numpy as np

from ml_filter.agreement.agreement import Agreement
from ml_filter.agreement.ratings import Ratings
from ml_filter.rendering.html import render
from ml_filter.rendering.plots import confusion_tables, interval_plot, rating_differences, rating_distribution
from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES
from ml_filter.statistics.pair import PairAgreement

_PANELS = 6
"""Pairs that a plot shows at most; the tables show all."""
_STRATA_FIGURES = ("spearman", "kappa_quadratic")


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
