"""Evaluate answers: an LLM answers questions from what is found, and rates the answers and the sources.

Answers are generated and rated as all else is: with a ledger and a budget, so that nothing is paid for twice. The
ratings are ordinary annotations (faithfulness, answer relevancy, context precision and context recall, from 1 to 4).
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig, AskConfig
from ml_filter.annotation.generate import generate
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.derived import read_rows_of
from ml_filter.documents.manifest import Manifest, Parent, digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.retrieval.config import RetrievalEvaluationConfig, SearchConfig
from ml_filter.downstream.retrieval.evaluate import read_questions
from ml_filter.downstream.retrieval.guards import check_citations, sources_text
from ml_filter.downstream.retrieval.index import open_index
from ml_filter.downstream.retrieval.search import Searcher
from ml_filter.statistics.intervals import Figure, Resampling, mean_figure

PROMPTS = ("answer_faithfulness", "answer_relevancy", "context_precision", "context_recall")
_SHARD = "questions"


def evaluate_answers(
    index: str | Path,
    questions: SourceConfig,
    size: int,
    search: SearchConfig,
    config: RetrievalEvaluationConfig,
    ask: AskConfig,
    output: str | Path,
    settings: Settings | None = None,
) -> tuple[dict[str, Figure], dict[str, int]]:
    """Answer the first `size` questions and rate the answers.

    Returns:
        The mean rating of each criterion, and counts: questions that were answered, without context or without a
        usable answer, and ratings that failed, none of which are in the means.

    Writes below `output`: the questions with their sources, the answers, and the annotations.

    Raises:
        InputError, ConfigError, TooManyFailures, EndpointError: see `generate` and `annotate_documents`.
    """
    contexts = _write_contexts(index, questions, size, search, f"{output}/contexts-{{digest}}", settings)
    source = SourceConfig(paths=[contexts.root])
    answers = generate(source, "retrieval_answer", ask, f"{output}/answers-{{digest}}", settings)
    rated = _write_answered(answers, f"{output}/answered-{{digest}}")
    annotate = AnnotateConfig.model_validate({**ask.model_dump(), "prompts": list(PROMPTS)})
    rated_source = SourceConfig(paths=[rated.root])
    annotations = annotate_documents(rated_source, annotate, f"{output}/ratings-{{digest}}", settings)
    resampling = Resampling(confidence=config.confidence, resamples=config.resamples)
    ratings: dict[str, list[float]] = {name: [] for name in PROMPTS}
    for row in read_rows_of(annotations, ("criterion", "score")):
        if row["score"] is not None:
            ratings[row["criterion"]].append(row["score"])
    counts = {
        "answered": rated.rows,
        "without_context": contexts.counts["without_context"],
        "without_answer": contexts.rows - rated.rows,
        "ratings_failed": annotations.counts["failed"],
    }
    return {name: mean_figure(np.array(scores), resampling) for name, scores in ratings.items() if scores}, counts


def _write_contexts(
    index: str | Path,
    questions: SourceConfig,
    size: int,
    search: SearchConfig,
    output: str,
    settings: Settings | None,
) -> Manifest:
    """The questions with the sources that an LLM is given; questions without any are left out and counted."""
    with open_index(index, settings) as opened:
        setup = {"questions": questions.model_dump(mode="json"), "size": size, "search": search.model_dump(mode="json")}
        parents = [Parent(path=str(index), digest=opened.manifest.digest), *list_shards(questions)[1]]
        with OutputDirectory(output, "contexts", setup, parents) as out:
            if out.manifest:
                return out.manifest
            searcher, rows, without = Searcher(opened, search), [], 0
            for question, document_id in islice(read_questions(questions), size):
                results = searcher.search(question)
                without += not results
                if results:
                    text = sources_text(question, [(r.url or r.document_id, r.context) for r in results])
                    row = {"question": question, "document_id": document_id, "text": text, "sources": len(results)}
                    rows.append({"id": digest_of([question, document_id])[:16], **row})
            return _write(out, rows, {"without_context": without})


def _write_answered(answers: Manifest, output: str) -> Manifest:
    """The generated answers with their questions and sources, as documents to rate."""
    with OutputDirectory(output, "answered", {}, [Parent(path=answers.root, digest=answers.digest)]) as out:
        if out.manifest:
            return out.manifest
        rows, removed = [], 0
        for row in read_rows_of(answers):
            if row["answer"]:
                answer, _, wrong = check_citations(row["answer"], row["sources"])
                removed += wrong
                # Before the sources, which are cut off if all is too long.
                sources = row["text"].removeprefix(f"Question: {row['question']}")
                text = f"Question: {row['question']}\n\nAnswer: {answer}{sources}"
                rows.append({"id": row["id"], "text": text, "question": row["question"]})
        return _write(out, rows, {"citations_removed": removed})


def _write(out: OutputDirectory, rows: list[dict[str, Any]], counts: dict[str, int]) -> Manifest:
    with out.new_shard(_SHARD) as writer, out.new_rejects(_SHARD) as rejects:
        if rows:
            writer.write(pa.Table.from_pylist(rows))
    return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, {"documents": len(rows), **counts}))])
