"""How commands print their results."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ml_filter.metrics import FIGURES
from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES

if TYPE_CHECKING:
    from ml_filter.agreement.aggregate import CriterionReliability
    from ml_filter.agreement.agreement import Agreement
    from ml_filter.annotation.batch import Submission
    from ml_filter.annotation.config import AskConfig
    from ml_filter.annotation.estimate import Estimate
    from ml_filter.documents.manifest import Manifest
    from ml_filter.downstream.instruct.report import InstructReport
    from ml_filter.downstream.retrieval.answer import Answer
    from ml_filter.downstream.retrieval.evaluate import RetrievalEvaluation
    from ml_filter.evaluation.compare import Comparison
    from ml_filter.evaluation.result import HeadEvaluation
    from ml_filter.heads.search_result import Search
    from ml_filter.heads.trained import TrainedHead
    from ml_filter.pipeline.bill import PipelineBill

_MAX_TRIALS = 5
_MAX_QUOTA_VALUES = 20
_COST_DECIMALS = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "hours": 2, "usd": 4}
_COST_TITLES = ("requests", "prompt tokens", "completion tokens", "hours", "USD")
_BOUNDS = {"value": "expected", "low": "low", "high": "high"}


@contextmanager
def keep_answers() -> Iterator[None]:
    """On Ctrl-C, say that the answers in the ledger are kept."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: every answer so far is kept; run the same command again to resume", file=sys.stderr)
        raise


def show(manifest: Manifest, prices: AskConfig | None = None, *, usd: float | None = None) -> None:
    """The counts of a manifest, the figures of its annotator, and the cost where it is known."""
    figures = {name: value for name, value in manifest.made_with.get(FIGURES, {}).items() if name != "usd"}
    if prices is not None:
        usd = prices.usd(manifest.counts["prompt_tokens"], manifest.counts["completion_tokens"])
    show_table(manifest.kind, manifest.root, manifest.counts_of_run, figures | ({} if usd is None else {"USD": usd}))


def show_table(title: str, path: str, counts: Mapping[str, int], figures: Mapping[str, float] | None = None) -> None:
    """Counts, figures and the path of a result."""
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    rows += [(name.replace("_", " "), f"{value:.3f}") for name, value in (figures or {}).items()]
    _print_table(title, ["", ""], rows)
    _print(f"in {path}")


def show_figures(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column has names and whose others have figures."""
    _print_table(title, headers, rows)


def show_head(head: TrainedHead) -> None:
    """How many documents a head was trained and tested on, and the figures of its evaluation."""
    training = head.training
    figures = training.evaluation.figures()
    del figures["documents"], figures["threshold"]
    counts = {
        "trained on": training.train_documents,
        "tested on": training.test_documents,
        "without label": training.unlabelled,
    }
    # A figure whose name ends in a digit is of one score; a terminal has no room for those.
    overall = {name: value for name, value in figures.items() if not name[-1].isdigit()}
    show_table("head", head.origin, counts, overall)


def show_cascade(head: TrainedHead) -> None:
    """How many documents the first-stage model decides, and the bound on changed decisions."""
    from ml_filter.heads.kinds import cascade_of

    cascade = cascade_of(head)
    assert cascade is not None
    counts = {"sample": cascade.sample, "tested on": cascade.tested, "decided by the first stage": cascade.settled}
    figures = {"share decided": cascade.settled / cascade.tested, "changed, at most": cascade.bound}
    show_table("cascade", head.origin, {**counts, "of these changed": cascade.changed}, figures)


def show_reliability(reliability: CriterionReliability) -> None:
    """The reliability that dawid-skene estimates for each annotator of a criterion, most reliable first."""
    annotators = sorted(reliability.annotators, key=lambda annotator: -annotator.accuracy)
    rows = [(escape(a.annotator), f"{a.votes:,}", f"{a.accuracy:.3f}") for a in annotators]
    _print_table(f"{reliability.criterion}: annotators", ["annotator", "votes", "accuracy"], rows)


def show_agreement(agreement: Agreement, path: str) -> None:
    """The raters, two figures of each pair, overall and by stratum, and the figures of all raters together."""
    rows = [(escape(r.name), f"{r.documents:,}", f"{r.failed:,}", _number(r.mean)) for r in agreement.raters]
    _print_table("raters", ["rater", "scored", "failed", "mean"], rows)
    shown = ("spearman", "kappa_quadratic")
    pairs = []
    for stratum, section in agreement.sections().items():
        for pair in section.compared(agreement.gold):
            raters = pair.rater if agreement.gold else f"{pair.reference}, {pair.rater}"
            figures = [pair.figures[name].text for name in shown]
            pairs.append((escape(stratum), escape(raters), f"{pair.documents:,}", *figures))
    title = f"against {escape(agreement.gold)}" if agreement.gold else "pairs"
    _print_table(f"\n{title}", ["", "rater", "documents", *(PAIR_FIGURES[name] for name in shown)], pairs, left=2)
    group = agreement.overall.group
    names = ("fleiss_kappa", "alpha_nominal", "alpha_ordinal", "alpha_interval", "icc_2_1", "icc_2_k")
    together = [(GROUP_FIGURES[name].partition(":")[0], group.figures[name]) for name in names]
    figures_of_all = [(name, f"{figure.documents:,}", figure.text) for name, figure in together]
    _print_table("\n" + escape(", ".join(group.raters)), ["", "documents", "all raters"], figures_of_all)
    unmatched = sum(table.unmatched_rows for table in agreement.inputs)
    if unmatched:
        _print(f"{unmatched:,} rows belong to documents that no other input, or not gold, contains")
    _print(f"in {path}")


def show_estimate(estimate: Estimate, output: str | None) -> None:
    """What a run is expected to take, with intervals, and the assumptions."""
    _print_table(
        f"estimate from {estimate.pilot.documents:,} of {estimate.documents:,} documents, with "
        f"{estimate.confidence:.0%} intervals",
        ["", *_COST_TITLES],
        [(title, *_costs(estimate, bound)) for bound, title in _BOUNDS.items()],
    )
    for note in estimate.notes:
        _print(f"- {note}")
    if estimate.pilot.ledger:
        _print(f"The answers of the pilot are in {estimate.pilot.ledger}")
    if output:
        _print(f"in {output}")


def show_pipeline_bill(bill: PipelineBill) -> None:
    """A row for each annotator run of a pipeline, their sum with its interval, and what the budgets allow at most."""
    rows = [(name, f"{run.documents:,}", *_costs(run)) for name, run in bill.runs.items()]
    rows += [(f"total: {title}", "", *_costs(bill, bound)) for bound, title in _BOUNDS.items()]
    title = f"estimate of a pipeline, from pilots of its {len(bill.runs)} annotator runs"
    _print_table(title, ["run", "documents", *_COST_TITLES], rows)
    for name, run in bill.runs.items():
        for note in run.notes:
            _print(f"- {name}: {note}")
        if run.pilot.ledger:
            _print(f"- {name}: the answers of the pilot are in {run.pilot.ledger}")
    limits = [f"{bill.most_tokens:,} tokens"] if bill.most_tokens is not None else []
    limits += [f"{bill.most_usd:,.2f} USD"] if bill.most_usd is not None else []
    total = f"together at most {' and '.join(limits)}" if limits else "no limit holds for all, as not every run has one"
    _print(f"- a budget applies to one run, not to the pipeline: {total}")


def _costs(estimate: Estimate | PipelineBill, bound: str = "value") -> list[str]:
    """The figures of an estimate, or one bound of their intervals."""
    costs = ((getattr(estimate, name), decimals) for name, decimals in _COST_DECIMALS.items())
    return ["-" if cost is None else f"{getattr(cost, bound):,.{decimals}f}" for cost, decimals in costs]


def show_comparison(comparison: Comparison, path: str) -> None:
    """The two sides, their figures against gold with the difference, and how they agree."""
    sides = []
    for name, side in (("a", comparison.a), ("b", comparison.b)):
        counts = [f"{n:,}" for n in (side.scored, side.failed, side.prompt_tokens + side.completion_tokens)]
        usd = "-" if side.usd is None else f"{side.usd:.2f}"
        sides.append((name, escape(side.annotator), ", ".join(side.prompts), *counts, usd))
    _print_table("comparison", ["", "annotator", "prompt", "scored", "failed", "tokens", "USD"], sides, left=3)
    pair = comparison.agreement.overall.pairs[-1]
    shown = [(PAIR_FIGURES[name], pair.figures[name].text) for name in ("spearman", "kappa_quadratic", "mae")]
    _print_table("\nagreement of a and b", ["", f"{pair.documents:,} documents"], shown)
    if comparison.gold:
        rows = [
            (PAIR_FIGURES[d.figure], _number(d.a.value), _number(d.b.value), d.difference.text, d.better or "?")
            for d in comparison.differences
        ]
        _print_table(f"\nagainst {escape(comparison.gold)}", ["", "a", "b", "b minus a", "better"], rows)
    _print(f"in {path}")


def show_evaluation(evaluation: HeadEvaluation, manifest: Manifest) -> None:
    """Figures of a head with intervals, within sources, and beside those of the head it is compared with."""

    def title(name: str) -> str:
        text = PAIR_FIGURES[name].replace("rater minus reference", "score minus label")
        return text.replace("the threshold", f"{evaluation.threshold:g}")

    rows = [(title(name), figure.text) for name, figure in evaluation.intervals.items()]
    if (discrimination := evaluation.discrimination) and discrimination.pairs_within:
        rows.append((f"right order within a {discrimination.column}", discrimination.within.text))
        rows.append((f"across {discrimination.column}s, same label pairs", discrimination.across_alike.text))
    _print_table("evaluation", ["", f"{evaluation.documents:,} documents"], rows)
    if evaluation.too_few_labels:
        _print(f"figures at {evaluation.threshold:g}: {evaluation.too_few_labels}")
    if comparison := evaluation.comparison:
        compared = [
            (title(name), _number(comparison.ours[name].value), _number(comparison.theirs[name].value), figure.text)
            for name, figure in comparison.differences.items()
        ]
        other = escape(str(evaluation.compared_with))
        _print_table(f"\ncompared with {other}", ["", "this head", "the other", "difference"], compared)
    for name, count in manifest.counts.items():
        if name != "documents" and count:
            _print(f"{count:,} documents are {name}")
    _print(f"in {manifest.root}")


def show_search(search: Search, manifest: Manifest) -> None:
    """The best trials with their standard errors, and how they compare with the default."""
    from ml_filter.heads.search_result import ranking

    rows = []
    for trial in ranking(search.trials)[:_MAX_TRIALS]:
        settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in trial.settings.items())
        rows.append(
            (str(trial.number or "default"), f"{trial.value:.3f}", _number(trial.standard_error), escape(settings))
        )
    _print_table(
        f"search: {len(search.trials):,} trials on {search.documents:,} documents",
        ["trial", PAIR_FIGURES[search.metric], "± standard error", "settings"],
        rows,
        last_left=True,
    )
    if manifest.counts["failed"]:
        _print(f"{manifest.counts['failed']:,} trials have no figure")
    _print(search.verdict)
    if (difference := search.difference) is not None:
        _print(
            f"the paired difference is {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]; "
            "the best of many trials looks better than it is"
        )
    _print(f"in {manifest.root}")


def show_selection(manifest: Manifest) -> None:
    """The threshold of a selection, or those of the largest values of its quota."""
    selection = manifest.config["selection"]
    if "quota" not in selection:
        threshold = selection["threshold"]
        _print(f"threshold {'none' if threshold is None else f'{threshold:g}'} ({selection['ranked_by']})")
        return
    quota = selection["quota"]
    unit = "documents" if manifest.config["filter"]["keep_fraction"] is not None else "tokens"
    rows = []
    for row in quota["largest"][:_MAX_QUOTA_VALUES]:
        figures = (row[unit], row["quota"], row["budget"], row[f"kept_{unit}"])
        rows.append((escape(row["value"]) or "(none)", *(f"{n:,}" for n in figures), _number(row["threshold"])))
    headers = [", ".join(quota["by"]), "available", "quota", "budget", "kept", "threshold"]
    _print_table(f"quotas, in {unit}", headers, rows)
    if quota["values"] > _MAX_QUOTA_VALUES:
        _print(f"and {quota['values'] - _MAX_QUOTA_VALUES:,} more, in {manifest.path_of(quota['file'])}")


def show_instructions(report: InstructReport, data: str, page: str) -> None:
    """What each stage kept and dropped, and what it cost."""
    rows = []
    for stage in report.stages:
        dropped = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in stage.dropped.items())
        tokens = stage.prompt_tokens + stage.completion_tokens
        rows.append((stage.name, f"{stage.rows:,}", f"{tokens:,}" if tokens else "", dropped))
    _print_table("instruct", ["stage", "rows", "tokens", "dropped or failed"], rows, last_left=True)
    tokens = report.prompt_tokens + report.completion_tokens
    cost = "" if report.usd is None else f", {report.usd:.2f} USD"
    _print(f"{report.instructions:,} instructions, {report.preferences:,} preference pairs, {tokens:,} tokens{cost}")
    _print(f"in {data}; the report is in {page}")


def show_answer(answer: Answer) -> None:
    """An answer, its sources, and what the guardrails did."""
    _print(answer.text)
    if answer.sources:
        _print("")
    for source in answer.sources:
        cited = "" if source.number in answer.cited else " (not cited)"
        origin = source.document_id if source.url is None else f"{source.document_id}, {source.url}"
        _print(f"[{source.number}] {origin}{cited}")
    notes = [
        (answer.citations_removed, "citations of sources that were not given were removed"),
        (sum(answer.masked.values()), f"pieces of personal data were masked ({', '.join(answer.masked)})"),
        (len(answer.injections), f"sources with instructions to the model were left out: {answer.injections}"),
        (len(answer.conditions), f"conditions were found in the question: {', '.join(answer.conditions)}"),
    ]
    for count, note in notes:
        if count:
            _print(f"{count} {note}")


def show_retrieval(result: RetrievalEvaluation, manifest: Manifest) -> None:
    """The figures of each way to search, and which is better."""
    headers = ["", *(f"{name} @{result.cutoff}" for name in ("MRR", "nDCG", "hit rate")), "median ms"]
    rows = [
        [variant.name, *(figure.text for figure in variant.figures.values()), f"{variant.milliseconds:,.0f}"]
        for variant in result.variants
    ]
    _print_table(f"{result.questions:,} questions, {result.passages:,} passages", headers, rows)
    for comparison in result.comparisons:
        _print(f"{comparison.verdict}: MRR {comparison.differences['mrr'].text}")
    if answers := result.answers:
        ratings = [
            (name.replace("_", " "), rating.mean.text, f"{rating.mean.documents:,}", f"{rating.failed:,}")
            for name, rating in answers.ratings.items()
        ]
        _print_table("\nanswers, rated from 1 to 4", ["", "mean", "rated", "failed"], ratings)
        _print(answers.summary)
    _print(f"in {manifest.root}")


def show_submissions(submissions: Sequence[Submission]) -> None:
    """Each file of a batch and its status."""
    rows = []
    for batch in submissions:
        counts = [f"{n:,}" for n in (batch.requests, batch.completed, batch.failed)]
        rows.append((batch.file, escape(batch.batch_id or "-"), escape(batch.status), *counts))
    _print_table("batches", ["file", "batch", "status", "requests", "completed", "failed"], rows, left=3)
    for submission in submissions:
        if submission.problem:
            _print(f"{submission.file}: {submission.problem}")


def _print(text: str) -> None:
    """A line as it is: unbroken, since it may hold a path, and without markup."""
    Console().print(text, soft_wrap=True, highlight=False, markup=False)


def _print_table(
    title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, last_left: bool = False
) -> None:
    """A table whose first `left` columns, and perhaps the last, are text, and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=None, header_style="dim", show_header=any(headers))
    for index, header in enumerate(headers):
        text = index < left or (last_left and index == len(headers) - 1)
        table.add_column(header, justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
