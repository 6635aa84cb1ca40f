"""The command that makes instruction data."""

from __future__ import annotations

from ml_filter.cli.command import Output, Sources, command
from ml_filter.cli.output import keep_answers, show_instructions
from ml_filter.downstream.instruct.config import InstructConfig


@command(
    "ml-filter instruct runs/filtered --endpoint http://localhost:8000/v1 --model NAME --output runs/instruct",
    "ml-filter instruct 'crawl/*.warc.gz' --config instruct.yaml --license odc-by --output runs/instruct",
    "ml-filter instruct runs/filtered --set judges='[{prompts: [instruction_quality], endpoints: ["
    '"http://localhost:8001/v1"], model: NAME}]\' --output runs/instruct',
)
def instruct(source: Sources, output: Output, instruct: InstructConfig) -> None:
    """Let an LLM write instructions with answers from documents; check, evolve, rate and publish them.

    Each stage is a directory below DIR. Run the command again to resume; no answer is paid for twice.
    """
    from ml_filter.downstream.instruct.report import read_report
    from ml_filter.downstream.instruct.run import make_instructions

    with keep_answers():
        run = make_instructions(source, instruct, output)
    show_instructions(read_report(run.report), run.published.root, run.report.root)
