"""Configuration of the retrieval pipeline."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.retrieval.config import AnswerConfig, IndexConfig, RetrievalEvaluationConfig, SearchConfig
from ml_filter.pipeline.config import _PipelineConfig


class RetrievalPipelineConfig(_PipelineConfig):
    """Parameters of the retrieval pipeline."""

    source: SourceConfig = Field(SourceConfig(), description="documents to index")
    index: IndexConfig = Field(IndexConfig(), description="how they are split and indexed")
    questions: SourceConfig | None = Field(
        None, description="table with the columns question and document_id (default: written by the LLM)"
    )
    generate: Annotated[int, Field(ge=1)] | None = Field(
        None, description="passages that the LLM writes questions about, unless questions are given"
    )
    ask: AnswerConfig = Field(
        AnswerConfig(), description="the LLM that writes the questions and the answers, and rates the answers"
    )
    search: SearchConfig = Field(
        SearchConfig(),
        description="fusion, candidates and reranker that are compared, and the search of the answers",
    )
    evaluate: RetrievalEvaluationConfig = Field(
        RetrievalEvaluationConfig(), description="which results count, how many questions are answered, the intervals"
    )

    @model_validator(mode="after")
    def _has_one_set_of_questions(self) -> Self:
        if (self.questions is None) == (self.generate is None):
            raise ValueError("set either questions, or generate to let the LLM write them")
        return self
