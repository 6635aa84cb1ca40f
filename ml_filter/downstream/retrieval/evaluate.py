"""Evaluate the search of an index on questions whose documents are known: dense, BM25, hybrid, and reranked; and the
answers of an LLM to some of them.

A question has one right document. Figures are of the first `cutoff` distinct documents: hit rate, MRR (mean reciprocal
rank) and nDCG, which for one right document is 1 / log2(1 + rank). Differences are paired: both sides come from the
same resamples of the questions.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.result import read_result
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.retrieval.answers import AnswersEvaluation, answering_plan, evaluate_answers
from ml_filter.downstream.retrieval.config import AnswerConfig, RetrievalEvaluationConfig, SearchConfig
from ml_filter.downstream.retrieval.index import Index, open_index
from ml_filter.downstream.retrieval.questions import check_documents, read_questions
from ml_filter.downstream.retrieval.search import Searcher
from ml_filter.progress import progress
from ml_filter.rendering.html import render
from ml_filter.statistics.intervals import Array, Figure, Resampling, divide, resampled_figures
from ml_filter.tracking import RunRecord

RESULT_NAME, PAGE_NAME = "retrieval.json", "retrieval.html"
METRICS = {"mrr": "MRR", "ndcg": "nDCG", "hit_rate": "hit rate"}
_WORDS = {True: "is better than", False: "is worse than"}
_EXAMPLES = 10


class Variant(BaseModel):
    """A way to search: its figures by metric, and the median time of a search in milliseconds."""

    name: str
    figures: dict[str, Figure]
    milliseconds: float


class Comparison(BaseModel):
    """What the first way to search gains over the second, by metric."""

    first: str
    second: str
    differences: dict[str, Figure]

    @property
    def verdict(self) -> str:
        """What the interval of the MRR says."""
        difference = self.differences["mrr"]
        if difference.interval is None or difference.interval[1] <= 0 <= difference.interval[2]:
            return f"no difference shown between {self.first} and {self.second}"
        return f"{self.first} {_WORDS[difference.interval[0] > 0]} {self.second}"


class Missed(BaseModel):
    """A question whose document the last way to search did not find, and what it found first."""

    question: str
    document_id: str
    found: str | None


class RetrievalEvaluation(BaseModel):
    """The content of retrieval.json."""

    index: str
    passages: int
    questions: int
    cutoff: int
    confidence: float
    variants: list[Variant]
    comparisons: list[Comparison]
    missed: list[Missed]
    answers: AnswersEvaluation | None = None

    @property
    def verdicts(self) -> list[str]:
        """One sentence for each comparison."""
        return [comparison.verdict for comparison in self.comparisons]

    def figures(self) -> dict[str, float]:
        """The figures as flat numbers, for trackers."""
        of_search = {
            f"retrieval_{variant.name.replace(' ', '_')}_{metric}": figure.value
            for variant in self.variants
            for metric, figure in variant.figures.items()
            if figure.value is not None
        }
        return of_search | (self.answers.figures() if self.answers else {})


def evaluate_retrieval(
    index: str | Path,
    questions: SourceConfig,
    search: SearchConfig,
    config: RetrievalEvaluationConfig,
    output: str | Path,
    settings: Settings | None = None,
    answer: AnswerConfig | None = None,
) -> tuple[RetrievalEvaluation, Manifest]:
    """Search for each question in several ways, let an LLM answer some, and write retrieval.json and retrieval.html.

    Args:
        questions: a table with the columns `question` and `document_id`.
        output: directory of the directories of all stages; the result is in `retrieval-{digest}`.
        search: fusion, candidates, conditions and reranker that are compared; its mode, limit and least similarity are
            for the answers.
        answer: how `config.answers` of the questions are answered.

    Raises:
        InputError: a column is missing, there is no question, none of their documents is in the index, or the index is
            not complete.
        ConfigError, TooManyFailures, EndpointError: see `evaluate_answers`.
    """
    settings, answer = settings or Settings(), answer or AnswerConfig()
    with open_index(index, settings) as opened:
        _, parents = list_shards(questions)
        plan = None
        if config.answers is not None:
            plan = answering_plan(questions, config.answers, search, answer, settings)
        setup = {
            "questions": questions.model_dump(mode="json"),
            "search": search.model_dump(mode="json", exclude={"mode", "limit", "min_similarity"}),
            "evaluation": config.model_dump(mode="json"),
            "answers": plan.identity if plan else None,
        }
        lineage = [Parent(path=str(index), digest=opened.manifest.digest), *parents]
        with OutputDirectory(f"{output}/retrieval-{{digest}}", "retrieval evaluation", setup, lineage) as out:
            result = None
            if out.manifest:
                result = read_evaluation(out.manifest)
                if not (answer.retry_failed and result.answers and result.answers.has_failures):
                    return result, out.manifest
                out.reopen()
            if result is None:
                check_documents(questions, opened.manifest)
            answers = None
            if plan is not None:  # first, so that nothing is searched for if the LLM cannot be asked
                answers = evaluate_answers(opened, plan, search, config, str(output), settings)
            if result is None:
                result = _evaluate_search(opened, str(index), list(read_questions(questions)), search, config)
            result = result.model_copy(update={"answers": answers})
            out.put_bytes(RESULT_NAME, (result.model_dump_json(indent=1) + "\n").encode())
            out.put_bytes(PAGE_NAME, retrieval_page(result).encode())
            return result, out.finish([], {"questions": result.questions})


def _evaluate_search(
    index: Index, name: str, pairs: list[tuple[str, str]], search: SearchConfig, config: RetrievalEvaluationConfig
) -> RetrievalEvaluation:
    searchers = {variant: Searcher(index, changed) for variant, changed in _variants(search).items()}
    ranks = np.zeros((len(pairs), len(searchers)))
    seconds = np.zeros_like(ranks)
    missed = []
    with progress("Searching", ranks.size) as bar:
        for row, (question, document_id) in enumerate(pairs):
            for column, searcher in enumerate(searchers.values()):
                started = time.perf_counter()
                hits = searcher.hits(question)
                seconds[row, column] = time.perf_counter() - started
                distinct = dict.fromkeys(str(hit.payload["document_id"]) for hit in hits)
                documents = list(islice(distinct, config.cutoff))
                ranks[row, column] = documents.index(document_id) + 1 if document_id in documents else 0
                bar.advance()
            if not ranks[row, -1]:
                missed.append(Missed(question=question, document_id=document_id, found=next(iter(documents), None)))
    variants, comparisons = _figures(list(searchers), ranks, seconds, config)
    return RetrievalEvaluation(
        index=name,
        passages=index.manifest.rows,
        questions=len(pairs),
        cutoff=config.cutoff,
        confidence=config.confidence,
        variants=variants,
        comparisons=comparisons,
        missed=missed[:_EXAMPLES],
    )


def read_evaluation(manifest: Manifest) -> RetrievalEvaluation:
    """The content of retrieval.json beside a manifest.

    Raises:
        InputError: another version wrote it.
    """
    return read_result(manifest, RESULT_NAME, RetrievalEvaluation, "ml-filter evaluate-retrieval")


def retrieval_page(result: RetrievalEvaluation) -> str:
    """The page of an evaluation."""
    return render("downstream/retrieval/templates/retrieval.html", r=result, metrics=METRICS)


def retrieval_record(manifest: Manifest) -> RunRecord:
    """What the experiment tracker keeps of an evaluation."""
    result = read_evaluation(manifest)
    parameters = {"index": result.index, "questions": result.questions, "passages": result.passages}
    return RunRecord(metrics=result.figures(), parameters=parameters, pages={PAGE_NAME: retrieval_page(result)})


def _variants(search: SearchConfig) -> dict[str, SearchConfig]:
    plain = search.model_copy(update={"rerank": "none", "cross_encoder": None})
    variants = {mode: plain.model_copy(update={"mode": mode}) for mode in ("dense", "bm25", "hybrid")}
    if search.rerank != "none":
        variants[f"hybrid with {search.rerank}"] = search.model_copy(update={"mode": "hybrid"})
    return variants


def _figures(
    names: list[str], ranks: Array, seconds: Array, config: RetrievalEvaluationConfig
) -> tuple[list[Variant], list[Comparison]]:
    hybrid = names.index("hybrid")
    pairs = [
        (hybrid, 0),
        (hybrid, 1),
        *((column, other) for column in range(hybrid + 1, len(names)) for other in (0, hybrid)),
    ]

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        is_hit = rows > 0
        safe = np.maximum(rows, 1)
        values = {"mrr": is_hit / safe, "ndcg": is_hit / np.log2(1 + safe), "hit_rate": is_hit.astype(np.float64)}
        total = weights.sum(axis=1)
        means = {metric: [divide(weights @ column, total) for column in value.T] for metric, value in values.items()}
        figures = {f"{metric} {column}": mean for metric, all_ in means.items() for column, mean in enumerate(all_)}
        for metric, all_ in means.items():
            figures |= {f"{metric} {a}-{b}": all_[a] - all_[b] for a, b in pairs}
        return figures

    resampling = Resampling(confidence=config.confidence, resamples=config.resamples)
    figures = resampled_figures(ranks, statistic, resampling)
    variants = [
        Variant(
            name=name,
            figures={metric: figures[f"{metric} {column}"] for metric in METRICS},
            milliseconds=round(float(np.median(seconds[:, column])) * 1000, 2),
        )
        for column, name in enumerate(names)
    ]
    comparisons = [
        Comparison(
            first=names[a],
            second=names[b],
            differences={metric: figures[f"{metric} {a}-{b}"] for metric in METRICS},
        )
        for a, b in pairs
    ]
    return variants, comparisons
