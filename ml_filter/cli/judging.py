"""The command that evaluates a tuned model."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.command import Output, command
from ml_filter.cli.output import show_figures
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.judging.config import JudgeConfig


@command(
    "ml-filter judge runs/tuned --endpoint http://localhost:8000/v1 --model MODEL --output runs/judgement",
    "ml-filter judge runs/tuned --tuned-endpoint http://a:8000/v1 --tuned-model tuned --base-endpoint http://b:8000/v1 "
    "--base-model base --endpoint http://c:8000/v1 --model MODEL --output runs/judgement",
    "ml-filter judge runs/tuned --lm-eval-tasks ifeval --multiple-choice quiz.jsonl --output runs/judgement",
)
def judge(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Directory made by tune", show_default=False)],
    output: Output,
    judge: JudgeConfig,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Conversations with tasks it was not trained on (default: the data of the tuning)"
        ),
    ] = None,
) -> None:
    """Compare a tuned model with its base on held-out tasks.

    Both answer; an LLM compares the answers in both orders and rates them. There is no verdict if it is inconsistent.
    """
    from ml_filter.downstream.judging.run import judge_tuned

    judgement, manifest = judge_tuned(tuned, judge, output, SourceConfig(paths=[data]) if data else None)
    comparison = judgement.comparison
    rows = [
        ("win rate", comparison.win_rate.text),
        ("win rate at equal length", comparison.length_controlled.text),
        ("consistency of the judge", comparison.consistency.text),
        ("wins of the first position", comparison.won_first.text),
        ("wins of the longer answer", comparison.won_longer.text),
        *((_title(name), figure.text) for name, figure in judgement.figures.items()),
    ]
    show_figures("tuned model against its base", ["", "figure"], rows)
    for line in (f"{judgement.verdict}: {judgement.reason}", *(f"warning: {text}" for text in judgement.warnings)):
        typer.echo(line)
    typer.echo(f"report: {manifest.path_of('report.html')}")


def _title(name: str) -> str:
    """The name of a figure in words; that of a task of lm-eval stays as it is."""
    return name.replace("_", " ", 1 if "/" in name else -1)
