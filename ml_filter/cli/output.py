"""How commands print what they did."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ml_filter.agreement.aggregate import CriterionReliability
    from ml_filter.agreement.agreement import Agreement
    from ml_filter.annotation.batch import Submission
    from ml_filter.annotation.estimate import Estimate, Range
    from ml_filter.documents.manifest import Manifest
    from ml_filter.evaluation.compare import Comparison
    from ml_filter.evaluation.evaluate import HeadEvaluation
    from ml_filter.heads.search import Search
    from ml_filter.pipeline.bill import PipelineBill
    from ml_filter.statistics.evaluation import Evaluation
    from ml_filter.statistics.intervals import Figure

_BEST = 5


def figures_of(evaluation: Evaluation) -> dict[str, float]:
    """The figures of an evaluation that a terminal has room for."""
    figures = evaluation.figures()
    del figures["documents"], figures["threshold"]
    return {name: value for name, value in figures.items() if not name[-1].isdigit()}


@contextmanager
def kept_when_stopped() -> Iterator[None]:
    """Say what Ctrl-C leaves of a run that keeps its answers in a ledger."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: every answer so far is kept; the same command goes on from here", file=sys.stderr)
        raise


def show(manifest: Manifest, usd: float | None = None) -> None:
    """What a stage did, from its manifest, and what it cost where that is known."""
    show_table(manifest.kind, manifest.root, manifest.counts, None if usd is None else {"USD": usd})


def show_table(title: str, path: str, counts: Mapping[str, int], figures: Mapping[str, float] | None = None) -> None:
    """Counts, figures and where the result lies."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    for name, value in (figures or {}).items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    console = Console()
    console.print(table)
    _as_it_is(console, f"in {path}")


def show_reliability(reliability: CriterionReliability) -> None:
    """How reliable dawid-skene found each annotator of one criterion, the most reliable first."""
    table = Table(title=f"{reliability.criterion}: annotators", title_justify="left", box=None)
    table.add_column("annotator", style="dim")
    table.add_column("votes", justify="right")
    table.add_column("accuracy", justify="right")
    for annotator in sorted(reliability.annotators, key=lambda found: -found.accuracy):
        table.add_row(annotator.annotator, f"{annotator.votes:,}", f"{annotator.accuracy:.3f}")
    Console().print(table)


def show_agreement(agreement: Agreement, path: str) -> None:
    """The raters, two figures of each pair, overall and by stratum, and those of all raters together."""
    from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES

    raters = _headed("raters", ["rater"], ["scored", "failed", "mean"])
    for rater in agreement.raters:
        mean = "-" if rater.mean is None else f"{rater.mean:.3f}"
        raters.add_row(escape(rater.name), f"{rater.documents:,}", f"{rater.failed:,}", mean)
    shown = ("spearman", "kappa_quadratic")
    title = f"against {escape(agreement.gold)}" if agreement.gold else "pairs"
    pairs = _headed(f"\n{title}", ["", "rater"], ["documents", *(PAIR_FIGURES[name] for name in shown)])
    for stratum, section in agreement.sections().items():
        for pair in section.compared(agreement.gold):
            rated = pair.rater if agreement.gold else f"{pair.reference}, {pair.rater}"
            figures = [_cell(pair.figures[name]) for name in shown]
            pairs.add_row(escape(stratum), escape(rated), f"{pair.documents:,}", *figures)
    group = agreement.overall.group
    together = _headed("\n" + escape(", ".join(group.raters)), [""], ["documents", "all raters"])
    for name in ("fleiss_kappa", "alpha_nominal", "alpha_ordinal", "alpha_interval", "icc_2_1", "icc_2_k"):
        figure = group.figures[name]
        together.add_row(GROUP_FIGURES[name].partition(":")[0], f"{figure.documents:,}", _cell(figure))
    console = Console()
    console.print(raters, pairs, together)
    unmatched = sum(one.unmatched_rows for one in agreement.inputs)
    if unmatched:
        console.print(f"{unmatched:,} rows are of documents that no other input, or not gold, has")
    _as_it_is(console, f"in {path}")


def show_estimate(estimate: Estimate, output: str | None) -> None:
    """What a run would take, with intervals, and what that rests on."""
    pilot = estimate.pilot
    title = f"bill, estimated from {pilot.documents:,} of {estimate.documents:,} documents"
    table = _headed(title, [""], ["expected", f"{estimate.confidence:.0%} interval"])
    table.add_row("documents", f"{estimate.documents:,}", "")
    figures: dict[str, tuple[Range | None, str]] = {
        "requests": (estimate.requests, ",.0f"),
        "prompt tokens": (estimate.prompt_tokens, ",.0f"),
        "completion tokens": (estimate.completion_tokens, ",.0f"),
        "hours": (estimate.hours, ",.2f"),
        "USD": (estimate.usd, ",.2f" if estimate.usd is None or estimate.usd.value >= 1 else ".4f"),
    }
    for name, (range_, form) in figures.items():
        if range_ is None:
            table.add_row(name, "-", "")
        else:
            low, high = range_.low, range_.high
            between = "" if low is None or high is None else f"{low:{form}} to {high:{form}}"
            table.add_row(name, f"{range_.value:{form}}", between)
    console = Console()
    console.print(table)
    for note in estimate.notes:
        console.print(f"- {note}", highlight=False, markup=False)
    if pilot.ledger:
        _as_it_is(console, f"The pilot's answers are in {pilot.ledger}")
    if output:
        _as_it_is(console, f"in {output}")


def show_pipeline_bill(bill: PipelineBill) -> None:
    """A line for each annotator run of a pipeline, their sum with its interval, and the most the budgets allow."""
    figures = {"requests": ",.0f", "prompt_tokens": ",.0f", "completion_tokens": ",.0f", "hours": ",.2f", "usd": ",.4f"}
    heads = ["USD" if name == "usd" else name.replace("_", " ") for name in figures]
    title = f"bill of a pipeline, estimated from pilots of its {len(bill.runs)} annotator runs"
    table = _headed(title, ["run"], ["documents", *heads])

    def cell(range_: Range | None, form: str, bound: str = "value") -> str:
        found = None if range_ is None else getattr(range_, bound)
        return "-" if found is None else f"{found:{form}}"

    for name, one in bill.runs.items():
        table.add_row(name, f"{one.documents:,}", *(cell(getattr(one, key), form) for key, form in figures.items()))
    for name, bound in (("total", "value"), ("- low", "low"), ("- high", "high")):
        table.add_row(name, "", *(cell(getattr(bill, key), form, bound) for key, form in figures.items()))
    console = Console()
    console.print(table)
    for run, one in bill.runs.items():
        for note in one.notes:
            console.print(f"- {run}: {note}", highlight=False, markup=False)
        if one.pilot.ledger:
            _as_it_is(console, f"- {run}: the pilot's answers are in {one.pilot.ledger}")
    caps = [f"{bill.most_tokens:,} tokens"] if bill.most_tokens is not None else []
    caps += [f"{bill.most_usd:,.2f} USD"] if bill.most_usd is not None else []
    console.print(
        "- a budget is of one run, not of the pipeline: "
        + (f"in all at most {' and '.join(caps)}" if caps else "no cap holds for all, as not every run has one"),
        highlight=False,
        markup=False,
    )


def show_comparison(comparison: Comparison, path: str) -> None:
    """The two sides, their figures against gold with the difference, and how they agree."""
    from ml_filter.statistics.metrics import PAIR_FIGURES

    sides = _headed("comparison", ["", "annotator", "prompt"], ["scored", "failed", "tokens", "USD"])
    for name, side in (("a", comparison.a), ("b", comparison.b)):
        usd = "-" if side.usd is None else f"{side.usd:.2f}"
        counts = [f"{n:,}" for n in (side.scored, side.failed, side.prompt_tokens + side.completion_tokens)]
        sides.add_row(name, escape(side.annotator), ", ".join(side.prompts), *counts, usd)
    between = comparison.agreement.overall.pairs[-1]
    agree = _headed("\nagreement of a and b", [""], [f"{between.documents:,} documents"])
    for name in ("spearman", "kappa_quadratic", "mae"):
        agree.add_row(PAIR_FIGURES[name], _cell(between.figures[name]))
    console = Console()
    console.print(sides, agree)
    if comparison.gold:
        gold = _headed(f"\nagainst {escape(comparison.gold)}", [""], ["a", "b", "b minus a", "better"])
        for one in comparison.differences:
            values = ["-" if figure.value is None else f"{figure.value:.3f}" for figure in (one.a, one.b)]
            gold.add_row(PAIR_FIGURES[one.figure], *values, _cell(one.difference), one.better or "?")
        console.print(gold)
    _as_it_is(console, f"in {path}")


def show_evaluation(evaluation: HeadEvaluation, manifest: Manifest) -> None:
    """Figures of a head with intervals, within sources, and beside those of the other head."""
    from ml_filter.statistics.metrics import PAIR_FIGURES

    console = Console()
    table = _headed("evaluation", [""], [f"{evaluation.documents:,} documents"])
    for name, figure in evaluation.intervals.items():
        title = PAIR_FIGURES[name].replace("rater minus reference", "score minus label")
        table.add_row(title.replace("the threshold", f"{evaluation.threshold:g}"), _cell(figure))
    if (found := evaluation.discrimination) and found.pairs_within:
        table.add_row(f"right order within a {found.column}", _cell(found.within))
        table.add_row(f"across {found.column}s, label pairs alike", _cell(found.across_alike))
    console.print(table)
    if evaluation.comparison:
        other = escape(str(evaluation.compared_with))
        beside = _headed(f"\ncompared with {other}", [""], ["this head", "the other", "difference"])
        for name, difference in evaluation.comparison.differences.items():
            both = (evaluation.comparison.ours[name], evaluation.comparison.theirs[name])
            values = ["-" if figure.value is None else f"{figure.value:.3f}" for figure in both]
            title = PAIR_FIGURES[name].replace("the threshold", f"{evaluation.threshold:g}")
            beside.add_row(title, *values, _cell(difference))
        console.print(beside)
    for name, count in manifest.counts.items():
        if name != "documents" and count:
            console.print(f"{count:,} documents are {name}", highlight=False)
    _as_it_is(console, f"in {manifest.root}")


def show_search(search: Search, manifest: Manifest) -> None:
    """The five best of the trials with their standard errors, and what that says of the default."""
    from ml_filter.heads.search import ranking
    from ml_filter.statistics.metrics import PAIR_FIGURES

    title = f"search: {len(search.trials):,} trials on {search.documents:,} documents"
    table = _headed(title, ["trial"], [PAIR_FIGURES[search.metric], "± standard error"])
    table.add_column("settings", overflow="fold")
    for trial in ranking(search.trials)[:_BEST]:
        error = "-" if trial.standard_error is None else f"{trial.standard_error:.3f}"
        settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in trial.settings.items())
        table.add_row(str(trial.number or "default"), f"{trial.value:.3f}", error, settings)
    console = Console()
    console.print(table)
    if manifest.counts["failed"]:
        console.print(f"{manifest.counts['failed']:,} trials have no figure", highlight=False)
    _as_it_is(console, search.verdict)
    if (apart := search.difference) is not None:
        between = f"{apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
        console.print(
            f"the two differ by {between}, paired; the best of many trials looks better than it is",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    _as_it_is(console, f"in {manifest.root}")


def show_submissions(submissions: Sequence[Submission]) -> None:
    """Each file of a batch and how far it is."""
    table = _headed("batches", ["file", "batch", "status"], ["requests", "completed", "failed"])
    for one in submissions:
        counts = (one.requests, one.completed, one.failed)
        table.add_row(one.file, escape(one.batch_id or "-"), escape(one.status), *(f"{count:,}" for count in counts))
    console = Console()
    console.print(table)
    for one in submissions:
        if one.problem:
            console.print(f"{one.file}: {one.problem}", highlight=False, markup=False)


def _as_it_is(console: Console, words: str) -> None:
    """Words that may hold a path: unbroken, and brackets in it are no mark-up."""
    console.print(words, soft_wrap=True, highlight=False, markup=False)


def _headed(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _cell(figure: Figure) -> str:
    if figure.value is None:
        return f"- ({figure.reason})"
    return f"{figure.value:.3f}" + ("" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]")
