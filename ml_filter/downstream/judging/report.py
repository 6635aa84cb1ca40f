"""The page of an evaluation."""

from __future__ import annotations

from ml_filter.downstream.judging.result import REPORT_NAME, Judgement
from ml_filter.rendering.html import render
from ml_filter.rendering.plots import interval_plot
from ml_filter.tracking import RunRecord

_SHOWN_CHARS = 800


def judgement_page(judgement: Judgement) -> str:
    """HTML with the verdict, win rates, biases of the judge, figures of the answers and examples."""
    comparison = judgement.comparison
    shares = [
        ("win rate", comparison.win_rate),
        ("win rate at equal length", comparison.length_controlled),
        ("wins of the first position", comparison.won_first),
        ("wins of the longer answer", comparison.won_longer),
    ]
    intervals = [(name, *figure.interval) for name, figure in shares if figure.interval]
    return render(
        "downstream/judging/templates/judgement.html",
        j=judgement,
        shown=_SHOWN_CHARS,
        measures=[name.removeprefix("change_") for name in judgement.figures if name.startswith("change_")],
        plot=interval_plot(intervals, xlabel="share", reference=0.5) if intervals else "",
    )


def judgement_record(judgement: Judgement) -> RunRecord:
    """Win rates, biases and figures, and the page, for the experiment tracker."""
    comparison = judgement.comparison
    figures = {
        "win_rate": comparison.win_rate,
        "length_controlled_win_rate": comparison.length_controlled,
        "judge_consistency": comparison.consistency,
        **judgement.figures,
    }
    record = RunRecord(pages={REPORT_NAME: judgement_page(judgement)})
    record.metrics = {name: figure.value for name, figure in figures.items() if figure.value is not None}
    record.parameters = {"verdict": judgement.verdict, "reason": judgement.reason, "judge": judgement.judge}
    return record
