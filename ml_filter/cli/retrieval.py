"""Commands that index a corpus, answer questions from it, and evaluate its search."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from ml_filter.cli.command import Options, Output, Sources, command
from ml_filter.cli.output import keep_answers, show, show_answer, show_retrieval
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.retrieval.config import (
    AnswerConfig,
    AnswerServerConfig,
    IndexConfig,
    RetrievalEvaluationConfig,
    SearchConfig,
)
from ml_filter.errors import ConfigError

_NOT_FOR_ANSWERS = ("retry_failed", "ledger", "ledger_answers", "ledger_seconds", "at_budget", "max_failed_share")
IndexDirectory = Annotated[str, typer.Argument(metavar="INDEX", help="Directory made by index")]


@command(
    "ml-filter index runs/filtered --output runs/index",
    "ml-filter index 'corpus/*.parquet' --encoder intfloat/multilingual-e5-small --column topic --output runs/index",
    "ml-filter index runs/filtered --store http://localhost:6333 --output runs/index",
)
def index(source: Sources, output: Output, index: IndexConfig) -> None:
    """Split documents into passages, embed them, and index them for ask.

    Run the command again to resume, to add what the source has gained, or to repair the index.
    """
    from ml_filter.downstream.retrieval.index import build_index

    show(build_index(source, index, output))


@command(
    'ml-filter ask runs/index "How do cells divide?"',
    'ml-filter ask runs/index "How do cells divide?" --where language=en --where "score>=3" --limit 3',
    'ml-filter ask runs/index "How do cells divide?" --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-8B --hyde',
    "ml-filter ask runs/index --serve --port 8080",
)
def ask(
    index: IndexDirectory,
    answer: Annotated[AnswerConfig, Options(skip=_NOT_FOR_ANSWERS)],
    search: SearchConfig,
    server: AnswerServerConfig,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="The question")] = None,
    passages_only: Annotated[bool, typer.Option("--passages-only", help="Show what is found, and ask no LLM")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Answer questions over HTTP and on a page")] = False,
) -> None:
    """Answer a question from an index, with citations of its sources, or serve answers over HTTP."""
    from ml_filter.config import Settings
    from ml_filter.downstream.retrieval.answer import Answer, Answerer
    from ml_filter.downstream.retrieval.index import open_index
    from ml_filter.downstream.retrieval.search import Searcher
    from ml_filter.downstream.retrieval.server import serve_answers

    if question is not None and not question.strip():
        raise ConfigError("QUESTION is empty")
    if serve == (question is not None):
        raise ConfigError("give a QUESTION or --serve" + (", not both" if serve else ""))
    with open_index(index) as opened:
        if question is None:
            serve_answers(opened, search, answer, server, lambda line: print(line, flush=True))
            return
        if passages_only:
            for number, result in enumerate(Searcher(opened, search).search(question), 1):
                print(f"[{number}] {result.title} ({result.similarity:.3f})\n{result.passage}\n")
            return
        answerer, asked = Answerer(opened, search, answer, Settings()), question

        async def run() -> Answer:
            async with answerer:
                return await answerer.answer(asked)

        show_answer(asyncio.run(run()))


@command(
    "ml-filter evaluate-retrieval runs/index questions.jsonl --output runs/retrieval",
    "ml-filter evaluate-retrieval runs/index --generate 200 --answers 50 --output runs/retrieval",
)
def evaluate_retrieval(
    index: IndexDirectory,
    output: Output,
    evaluation: RetrievalEvaluationConfig,
    search: SearchConfig,
    answer: AnswerConfig,
    questions: Annotated[
        str | None,
        typer.Argument(metavar="QUESTIONS", help="Table with the columns question and document_id (or --generate)"),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Instead of reading QUESTIONS, let the LLM write them about N passages"),
    ] = None,
) -> None:
    """Compare dense, BM25, hybrid and reranked search on questions whose documents are known.

    With --answers, questions are also answered as by ask, with the same options, and the answers are rated. --mode,
    --limit and --min-similarity are for the answers.
    """
    from ml_filter.downstream.retrieval.evaluate import evaluate_retrieval as evaluate
    from ml_filter.downstream.retrieval.questions import write_questions

    if (questions is None) == (generate is None):
        raise ConfigError("give QUESTIONS or --generate" + (", not both" if generate else ""))
    with keep_answers():
        if generate is not None:
            questions = write_questions(index, generate, answer, f"{output}/questions").root
        assert questions is not None
        show_retrieval(*evaluate(index, SourceConfig(paths=[questions]), search, evaluation, output, answer=answer))
