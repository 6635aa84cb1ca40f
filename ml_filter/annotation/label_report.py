"""How labels are distributed over a data set: counts by stratum, and the page and plots that show them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, computed_field

from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.rendering.html import render
from ml_filter.rendering.plots import share_bars

DISTRIBUTION_NAME = "distribution.json"
REPORT_NAME = "distribution.html"
_MAX_BARS, _MAX_COLUMNS = 6, 30
"""The largest strata that a plot and a table show; the JSON file has all of them."""


class Tally(BaseModel):
    """Numbers of documents in a stratum: all, failed, without a label, and by label.

    `shares` are relative to the documents that did not fail; if several labels are allowed, they add up to more than 1.
    """

    documents: int = 0
    failed: int = 0
    none: int = 0
    labels: dict[str, int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shares(self) -> dict[str, float]:
        """The share of each label; empty if every document failed."""
        labelled = self.documents - self.failed
        return {name: count / labelled for name, count in self.labels.items()} if labelled else {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share_failed(self) -> float | None:
        """The share of failed documents; None without documents."""
        return self.failed / self.documents if self.documents else None

    def add(self, labels: Sequence[str] | None) -> None:
        """Count a document; None means that it failed."""
        self.documents += 1
        self.failed += labels is None
        self.none += labels == []
        for name in labels or []:
            self.labels[name] += 1


class Facet(BaseModel):
    """The distribution of the labels of a facet, overall and by column and value."""

    name: str
    choose: str
    overall: Tally
    strata: dict[str, dict[str, Tally]]

    def add(self, labels: Sequence[str] | None, values: dict[str, str]) -> None:
        """Count a document with its value in each column."""
        self.overall.add(labels)
        for column, value in values.items():
            empty = Tally(labels=dict.fromkeys(self.overall.labels, 0))
            self.strata[column].setdefault(value, empty).add(labels)


class Distribution(BaseModel):
    """The content of distribution.json."""

    annotator: str
    facets: list[Facet]


def write_distribution(distribution: Distribution, out: OutputDirectory) -> None:
    """Write distribution.json, distribution.html and the plots as SVG files."""
    out.put_bytes(DISTRIBUTION_NAME, (distribution.model_dump_json(indent=1) + "\n").encode())
    plots = _plots(distribution)
    for name, svg in plots.items():
        out.put_bytes(f"{name}.svg", svg.encode())
    tables = {
        (facet.name, column): _largest(strata, _MAX_COLUMNS)
        for facet in distribution.facets
        for column, strata in facet.strata.items()
    }
    page = render(
        "annotation/templates/distribution.html",
        distribution=distribution,
        plots=plots,
        tables=tables,
        plot_name=_plot_name,
    )
    out.put_bytes(REPORT_NAME, page.encode())


def _plots(distribution: Distribution) -> dict[str, str]:
    """SVG texts by name: one for each facet, and one for each facet and column with several values."""
    plots = {}
    for facet in distribution.facets:
        xlabel = f"share of documents with the label ({facet.name})"
        plots[facet.name] = share_bars({"all documents": facet.overall.shares}, xlabel=xlabel)
        for column, strata in facet.strata.items():
            shares = {value: tally.shares for value, tally in _largest(strata, _MAX_BARS) if tally.shares}
            if len(strata) > 1 and shares:
                plots[_plot_name(facet, column)] = share_bars(shares, xlabel=xlabel)
    return plots


def _plot_name(facet: Facet, column: str) -> str:
    return re.sub(r"\W+", "_", f"{facet.name}_by_{column}")


def _largest(strata: dict[str, Tally], limit: int) -> list[tuple[str, Tally]]:
    return sorted(strata.items(), key=lambda item: (-item[1].documents, item[0]))[:limit]
