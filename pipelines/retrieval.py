"""Retrieval pipeline: from documents to an index, and to figures of its search."""

from zenml import pipeline

from ml_filter.pipeline.retrieval import RetrievalPipelineConfig
from steps.downstream.evaluate_retrieval import evaluate_retrieval
from steps.downstream.index_documents import index_documents
from steps.downstream.track_retrieval import track_retrieval
from steps.downstream.write_retrieval_questions import write_retrieval_questions


@pipeline(name="retrieval", enable_cache=False)
def retrieval_pipeline(config: RetrievalPipelineConfig) -> None:
    """Index documents, and compare ways to search them, and rate answers, on given or written questions."""
    index = index_documents(config.source, config.index, config.output)
    written = None
    if config.questions is None and config.generate is not None:
        written = write_retrieval_questions(index, config.generate, config.ask, config.output)
    evaluation, _ = evaluate_retrieval(
        index, config.search, config.ask, config.evaluate, config.output, config.questions, written=written
    )
    track_retrieval(config.tracking, evaluation)
