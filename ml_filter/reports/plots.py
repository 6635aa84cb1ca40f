"""Plots as SVG text, made without a display and the same for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _GREY, _RED = "#2563a8", "#b8c4d0", "#c0392b"


def score_histogram(
    edges: Sequence[float], counts: Sequence[int], min_score: float | None = None, *, title: str = ""
) -> str:
    """Documents per score bin; bins below `min_score` are grey. `edges` has one entry more than `counts`."""
    figure = _figure()
    axes = figure.add_subplot()
    kept = [min_score is None or edge >= min_score - 1e-9 for edge in edges[:-1]]
    widths = [b - a for a, b in pairwise(edges)]
    axes.bar(edges[:-1], counts, widths, align="edge", color=[_BLUE if k else _GREY for k in kept], edgecolor="white")
    if min_score is not None:
        axes.axvline(min_score, color=_RED, linewidth=1.2, label=f"kept: score ≥ {min_score:g}")
        axes.legend(frameon=False)
    axes.set(xlabel="score", ylabel="documents", title=title)
    return _svg(figure)


def scores_by_label(scores: Mapping[float, Sequence[float]], *, title: str = "") -> str:
    """Box plot of the head's scores for each label."""
    figure = _figure()
    axes = figure.add_subplot()
    labels = sorted(scores)
    axes.boxplot(
        [scores[label] for label in labels],
        tick_labels=[f"{label:g}\n(n={len(scores[label])})" for label in labels],
        medianprops={"color": _RED},
    )
    axes.set(xlabel="label", ylabel="head's score", title=title)
    return _svg(figure)


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(7, 3.2), layout="constrained")


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "ml_filter"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
