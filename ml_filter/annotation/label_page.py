"""The page and the plots that show how labels are distributed over data sets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ml_filter.rendering.html import render
from ml_filter.rendering.plots import share_bars

if TYPE_CHECKING:
    from ml_filter.annotation.label import Distribution, Facet, Tally

_BARS, _COLUMNS = 6, 30
"""The largest strata that a plot and a table show; the JSON file has all."""


def distribution_plots(distribution: Distribution) -> dict[str, str]:
    """SVG texts by name: one for each facet, and one for each facet and column whose values tell documents apart."""
    plots = {}
    for facet in distribution.facets:
        xlabel = f"share of documents with the label ({facet.name})"
        plots[facet.name] = share_bars({"all documents": facet.overall.shares}, xlabel=xlabel)
        for column, strata in facet.strata.items():
            shares = {value: tally.shares for value, tally in _largest(strata, _BARS) if tally.shares}
            if len(strata) > 1 and shares:
                plots[plot_name(facet, column)] = share_bars(shares, xlabel=xlabel)
    return plots


def plot_name(facet: Facet, column: str) -> str:
    """The name of the plot of a facet by a column, fit for a file."""
    return re.sub(r"\W+", "_", f"{facet.name}_by_{column}")


def distribution_report(distribution: Distribution, plots: dict[str, str]) -> str:
    """HTML with counts and shares of each label, overall and by stratum, and the plots."""
    tables = {
        (facet.name, column): _largest(strata, _COLUMNS)
        for facet in distribution.facets
        for column, strata in facet.strata.items()
    }
    return render(
        "annotation/templates/distribution.html",
        distribution=distribution,
        plots=plots,
        tables=tables,
        plot_name=plot_name,
    )


def _largest(strata: dict[str, Tally], most: int) -> list[tuple[str, Tally]]:
    return sorted(strata.items(), key=lambda item: (-item[1].documents, item[0]))[:most]
