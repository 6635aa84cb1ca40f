"""The page and the plots that show how well raters agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_filter.rendering.html import render
from ml_filter.rendering.plots import confusion_tables, interval_plot, rating_differences, rating_distribution

if TYPE_CHECKING:
    from ml_filter.agreement.agreement import Agreement, RaterSummary
    from ml_filter.agreement.ratings import Ratings

_PANELS = 6
"""A plot shows at most so many pairs; the tables show all."""
_STRATA_FIGURES = ("spearman", "kappa_quadratic")


def agreement_plots(agreement: Agreement, ratings: Ratings) -> dict[str, str]:
    """SVG texts by name: `distribution`, and where there is something to show, `differences`, `confusion`, and one
    `strata_<figure>` each for Spearman and the quadratic kappa."""
    from ml_filter.statistics.metrics import PAIR_FIGURES

    plots = {"distribution": distribution_plot(agreement.raters)}
    pairs = [pair for pair in agreement.overall.compared(agreement.gold) if pair.documents][:_PANELS]
    if pairs:
        plots["differences"] = difference_plot(ratings, [(pair.reference, pair.rater) for pair in pairs])
    tables = {(p.reference, p.rater): (list(p.classes), p.confusion) for p in pairs if p.confusion}
    if tables:
        plots["confusion"] = confusion_tables(tables)
    if agreement.strata:
        for name in _STRATA_FIGURES:
            rows = [
                (f"{stratum}: {pair.rater} (n={figure.documents})", figure.value, figure.low, figure.high)
                for stratum, section in agreement.sections().items()
                for pair in section.compared(agreement.gold)
                if (figure := pair.figures[name]).value is not None
                and figure.low is not None
                and figure.high is not None
            ]
            if rows:
                plots[f"strata_{name}"] = interval_plot(rows, xlabel=PAIR_FIGURES[name])
    return plots


def distribution_plot(raters: Sequence[RaterSummary]) -> str:
    """Share of the documents by rounded score, for each rater side by side."""
    shares = {rater.name: {name: count / rater.documents for name, count in rater.classes.items()} for rater in raters}
    return rating_distribution(shares)


def difference_plot(ratings: Ratings, pairs: Sequence[tuple[str, str]]) -> str:
    """Histograms of the differences in the first pairs (reference, rater) over the documents that both scored."""
    import numpy as np

    differences = {}
    for pair in pairs[:_PANELS]:
        reference, rater = (ratings.values[:, ratings.raters.index(name)] for name in pair)
        found = rater - reference
        differences[f"{pair[1]} − {pair[0]}"] = found[np.isfinite(found)].tolist()  # noqa: RUF001
    return rating_differences(differences)


def agreement_report(agreement: Agreement, plots: dict[str, str]) -> str:
    """HTML with the figures, their intervals and the plots."""
    from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES

    return render(
        "agreement/templates/agreement.html",
        agreement=agreement,
        plots=plots,
        strata_figures=_STRATA_FIGURES,
        pair_names=PAIR_FIGURES,
        group_names=GROUP_FIGURES,
    )
