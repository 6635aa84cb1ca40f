"""Plots as SVG text, made without a display and the same for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _RED = "#2563a8", "#b8c4d0", "#c0392b"
_COLOURS = (_BLUE, "#e08e2b", "#3d9970", _RED, "#7d5ba6", "#8c6d4f", "#d36ba6", "#6b7785", "#a8b32f", "#2fb3b3")


def score_histogram(edges: Sequence[float], counts: Sequence[int], min_score: float | None = None) -> str:
    """Documents per score bin; bins below `min_score` are grey. `edges` has one entry more than `counts`."""
    figure, axes = _figure()
    kept = [min_score is None or edge >= min_score - 1e-9 for edge in edges[:-1]]
    widths = [b - a for a, b in pairwise(edges)]
    axes.bar(edges[:-1], counts, widths, align="edge", color=[_BLUE if k else _GREY for k in kept], edgecolor="white")
    if min_score is not None:
        axes.axvline(min_score, color=_RED, linewidth=1.2, label=f"kept: score ≥ {min_score:g}")
        axes.legend(frameon=False)
    axes.set(xlabel="score", ylabel="documents")
    return _svg(figure)


def scores_by_label(scores: Mapping[float, Sequence[float]]) -> str:
    """Box plot of the head's scores for each label."""
    figure, axes = _figure()
    labels = sorted(scores)
    axes.boxplot(
        [scores[label] for label in labels],
        tick_labels=[f"{label:g}\n(n={len(scores[label])})" for label in labels],
        medianprops={"color": _RED},
    )
    axes.set(xlabel="label", ylabel="head's score")
    return _svg(figure)


def rating_distribution(shares: Mapping[str, Mapping[int, float]]) -> str:
    """Share of each rater's documents by class, side by side."""
    figure, axes = _figure()
    classes = sorted({score for by_class in shares.values() for score in by_class})
    width = 0.8 / len(shares)
    for number, (rater, by_class) in enumerate(shares.items()):
        left = [score + (number - (len(shares) - 1) / 2) * width for score in classes]
        axes.bar(left, [by_class.get(score, 0) for score in classes], width, label=rater, color=_COLOURS[number % 10])
    _legend_on_the_right(axes)
    axes.set(xlabel="score, rounded", ylabel="share of documents")
    axes.set_xticks(classes)
    return _svg(figure)


def rating_differences(differences: Mapping[str, Sequence[float]]) -> str:
    """Histograms of the differences between two raters, one panel a pair, with their means."""
    figure = _panels(len(differences))
    for axes, (pair, values) in zip(figure.axes, differences.items(), strict=True):
        width = 1 if all(value == round(value) for value in values) else 0.5
        bins = round(max(map(abs, values)) / width)
        axes.hist(values, [width * (k - 0.5) for k in range(-bins, bins + 2)], color=_BLUE, edgecolor="white")
        mean = sum(values) / len(values)
        axes.axvline(mean, color=_RED, linewidth=1.2)
        axes.set_title(f"{pair}\nmean {mean:+.2f}", fontsize="small")
        axes.set(xlabel="difference in score", ylabel="documents")
    return _svg(figure)


def confusion_tables(tables: Mapping[tuple[str, str], tuple[Sequence[int], Sequence[Sequence[int]]]]) -> str:
    """Heat maps of documents by class of the reference and of the rater, one panel a (reference, rater)."""
    figure = _panels(len(tables))
    for axes, ((reference, rater), (classes, table)) in zip(figure.axes, tables.items(), strict=True):
        axes.imshow(table, cmap="Blues", aspect="equal")
        highest = max(map(max, table))
        for row, counts in enumerate(table):
            for column, count in enumerate(counts):
                colour = "white" if count > highest / 2 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize="small")
        axes.set_xticks(range(len(classes)), [str(name) for name in classes])
        axes.set_yticks(range(len(classes)), [str(name) for name in classes])
        axes.set(xlabel=rater, ylabel=reference)
    return _svg(figure)


def interval_plot(
    rows: Sequence[tuple[str, float, float, float]], *, xlabel: str, reference: float | None = None
) -> str:
    """Forest plot: a line for each (label, figure, low, high), the first on top; `reference` is a vertical line."""
    figure, axes = _figure(1.2 + 0.28 * len(rows))
    for y, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [y, y], color=_BLUE, linewidth=2, solid_capstyle="butt")
        axes.plot(value, y, "o", color=_BLUE)
    if reference is not None:
        axes.axvline(reference, color=_RED, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color=_GREY, linewidth=0.5)
    axes.set(xlabel=xlabel)
    return _svg(figure)


def decision_curves(
    precision: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    rates: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> str:
    """Precision by recall (name -> recalls, precisions) beside ROC curves (name -> false and true positive rates)."""
    figure = _panels(2)
    left, right = figure.axes
    for axes, curves in ((left, precision), (right, rates)):
        for number, (name, (x, y)) in enumerate(curves.items()):
            axes.plot(x, y, color=_COLOURS[number % 10], linewidth=1.4, label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    right.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    left.set(xlabel="recall", ylabel="precision")
    right.set(xlabel="false positive rate", ylabel="true positive rate")
    right.legend(frameon=False, fontsize="small", loc="lower right")
    return _svg(figure)


def threshold_shares(
    scores: Sequence[float], shares: Mapping[str, Sequence[tuple[float, float, float] | None]], *, xlabel: str
) -> str:
    """A line with a band for each share (figure, low, high) by threshold on the score; None is a gap."""
    figure, axes = _figure()
    for number, (name, of_share) in enumerate(shares.items()):
        colour = _COLOURS[number % 10]
        points = [(score, *figure) for score, figure in zip(scores, of_share, strict=True) if figure is not None]
        if points:
            x, values, lows, highs = zip(*points, strict=True)
            axes.plot(x, values, color=colour, linewidth=1.4, label=name)
            axes.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)
    _legend_on_the_right(axes)
    axes.set(xlabel=xlabel, ylabel="share", ylim=(0, 1.02))
    return _svg(figure)


def training_curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> str:
    """Figures by training step, (steps, figures) for each line, one panel a title (title -> line -> points)."""
    figure = _panels(len(panels))
    for axes, (title, lines) in zip(figure.axes, panels.items(), strict=True):
        for number, (name, (steps, values)) in enumerate(lines.items()):
            axes.plot(steps, values, color=_COLOURS[number], linewidth=1.4, marker="." * (len(steps) < 20), label=name)
        axes.set(xlabel="step", title=title)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize="small")
    return _svg(figure)


def reliability_plot(bins: Sequence[tuple[float, float, float, float]], *, xlabel: str, ylabel: str) -> str:
    """Observed share by predicted probability, (predicted, observed, low, high) each; equal on the diagonal."""
    figure = _panels(1)
    (axes,) = figure.axes
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for predicted, observed, low, high in bins:
        axes.plot([predicted, predicted], [low, high], color=_BLUE, linewidth=1.4)
        axes.plot(predicted, observed, "o", color=_BLUE)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return _svg(figure)


def share_bars(shares: Mapping[str, Mapping[str, float]], *, xlabel: str) -> str:
    """Horizontal bars of shares by name, the first on top; one bar for each group (group -> name -> share)."""
    names = list(dict.fromkeys(name for by_name in shares.values() for name in by_name))
    figure, axes = _figure(1.0 + 0.12 * len(names) * (len(shares) + 1))
    height = 0.8 / len(shares)
    for number, (group, by_name) in enumerate(shares.items()):
        y = [row + (number - (len(shares) - 1) / 2) * height for row in range(len(names))]
        axes.barh(y, [by_name.get(name, 0) for name in names], height, label=group, color=_COLOURS[number % 10])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)  # also without any name
    axes.set(xlabel=xlabel)
    if len(shares) > 1:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.15))
    return _svg(figure)


def trial_series(groups: Mapping[str, Sequence[tuple[int, float, float, float]]], *, ylabel: str) -> str:
    """Figures of trials in their order, with their intervals, (trial, figure, low, high) each, in a colour for each
    group, and a line along the highest so far."""
    figure, axes = _figure()
    for number, (name, trials) in enumerate(groups.items()):
        colour = _COLOURS[number % 10]
        for trial, _, low, high in trials:
            axes.plot([trial, trial], [low, high], color=colour, linewidth=1, alpha=0.4)
        numbers, values = [trial[0] for trial in trials], [trial[1] for trial in trials]
        axes.plot(numbers, values, "o", color=colour, markersize=4, label=name)
    reached = sorted((trial, value) for trials in groups.values() for trial, value, *_ in trials)
    highest = list(accumulate((value for _, value in reached), max))
    axes.step([trial for trial, _ in reached], highest, where="post", color=_GREY, linewidth=1.2, zorder=0)
    _legend_on_the_right(axes)
    axes.set(xlabel="trial", ylabel=ylabel)
    return _svg(figure)


def learning_curves(curves: Mapping[str, Sequence[tuple[float, float]]], *, xlabel: str, ylabel: str) -> str:
    """A line through the points (x, y) of each name."""
    figure, axes = _figure()
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(
            *zip(*points, strict=True), "o-", color=_COLOURS[number % 10], linewidth=1.4, markersize=4, label=name
        )
    _legend_on_the_right(axes)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return _svg(figure)


def setting_panels(
    settings: Mapping[str, Sequence[tuple[str | float, float]]], *, ylabel: str, logarithmic: Collection[str] = ()
) -> str:
    """Figures by the value of a setting, (value, figure) each, one panel a setting; only fractions have a scale."""
    figure = _panels(len(settings))
    for axes, (name, pairs) in zip(figure.axes, settings.items(), strict=True):
        values, figures = zip(*pairs, strict=True)
        if all(isinstance(value, float) for value in values):
            x = values
            if name in logarithmic:
                axes.set_xscale("log")
        else:
            names = sorted(set(values), key=lambda value: (isinstance(value, str), value))
            x = tuple(names.index(value) for value in values)
            axes.set_xticks(range(len(names)), [str(value) for value in names])
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.plot(x, figures, "o", color=_BLUE, markersize=4, alpha=0.6)
        axes.set(xlabel=name.replace("_", " "), ylabel=ylabel)
    return _svg(figure)


def _panels(count: int) -> Figure:
    """A figure with room for `count` plots, three in a row."""
    from matplotlib.figure import Figure

    columns, rows = min(count, 3), -(-count // 3)
    figure = Figure(figsize=(max(3.6, 3.2 * columns), 3.2 * rows), layout="constrained")
    for index in range(count):
        figure.add_subplot(rows, columns, index + 1)
    return figure


def _legend_on_the_right(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _figure(height: float = 3.2) -> tuple[Figure, Axes]:
    figure = _panels(1)
    figure.set_size_inches(7, height)
    return figure, figure.axes[0]


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "ml_filter"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
