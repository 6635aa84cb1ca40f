"""Configuration of retrieval: the index, searching it, answering, and evaluation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from ml_filter.annotation.config import AskConfig
from ml_filter.config import Cli, StageConfig
from ml_filter.heads.config import EngineConfig
from ml_filter.mongodb import SafePath
from ml_filter.prepare.config import EMBEDDED_ENCODER

Mode = Literal["dense", "bm25", "hybrid"]
Fusion = Literal["dbsf", "rrf"]
Rerank = Literal["none", "maxsim", "cross_encoder"]

RESERVED_COLUMNS = ("id", "text", "parent", "parent_id", "document_id", "shard")
"""Columns of the index that those of the documents may not replace."""


class Where(StageConfig):
    """A condition on a column of the documents, also written as text: `language=de`, `source=wiki,books`, `score>=3`.

    `values` of `==` and `!=` are alternatives; the other operators have one number.
    """

    name: str
    op: Literal["==", "!=", "<=", "<", ">=", ">"] = "=="
    values: Annotated[list[str], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = re.fullmatch(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>|=)\s*(.*?\S)\s*", value)
        if parts is None:
            raise ValueError(f"{value!r} is not a condition; write NAME=VALUE, NAME!=VALUE or NAME>=NUMBER")
        name, op, text = parts.groups()
        values = [item.strip() for item in text.split(",") if item.strip()]
        return {"name": name, "op": "==" if op == "=" else op, "values": values}

    @model_validator(mode="after")
    def _compares_numbers(self) -> Self:
        if self.op not in ("==", "!=") and (len(self.values) != 1 or self.number(self.values[0]) is None):
            raise ValueError(f"{self.op} needs one number, not {', '.join(self.values)!r}")
        return self

    @staticmethod
    def number(text: str) -> float | None:
        """The number that a value is; None: it is a word."""
        return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else None

    def __str__(self) -> str:
        return f"{self.name}{self.op}{','.join(self.values)}"


class IndexConfig(EngineConfig):
    """How documents are split into passages and indexed."""

    encoder: str = Field(EMBEDDED_ENCODER, description="encoder: a name on the Hub, a directory, or an installed one")
    text_prefix: str | None = Field(
        None, description="text before each passage, such as 'passage: ' for E5 (default: from the encoder's files)"
    )
    query_prefix: str | None = Field(
        None, description="text before each question, such as 'query: ' for E5 (default: from the encoder's files)"
    )
    chunk_tokens: Annotated[int, Field(ge=16)] = Field(
        128, description="maximum number of tokens of a passage that is searched, counted by the encoder's tokenizer"
    )
    overlap_tokens: Annotated[int, Field(ge=0)] = Field(16, description="tokens that two passages have in common")
    parent_tokens: Annotated[int, Field(ge=16)] = Field(
        512, description="maximum number of tokens of the larger passage around it, which is given to the LLM"
    )
    columns: Annotated[list[str], Cli("--column", comma_separated=True)] = Field(
        [], description="further columns to filter by and to show, beside url, language, source and score"
    )
    word_language: str = Field(
        "english", description="language of BM25's stop words and stems, such as german; none: words as they are"
    )
    store: SafePath | None = Field(
        None, description="URL of a Qdrant server (key: ML_FILTER_QDRANT_API_KEY); default: embedded, in the output"
    )

    @field_validator("store")
    @classmethod
    def _has_no_password(cls, store: str | None) -> str | None:
        if store is not None and "@" in urlsplit(store).netloc:
            raise ValueError("the URL must not contain a user or password; set ML_FILTER_QDRANT_API_KEY")
        return store

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if not self.overlap_tokens < self.chunk_tokens <= self.parent_tokens:
            raise ValueError("overlap_tokens must be below chunk_tokens, and chunk_tokens at most parent_tokens")
        if taken := [name for name in self.columns if name in RESERVED_COLUMNS]:
            raise ValueError(f"column {taken[0]!r} is a column of the index itself; rename it in the documents")
        return self

    @property
    def payload_columns(self) -> list[str]:
        """The columns of a document that its passages carry."""
        return list(dict.fromkeys(["url", "language", "source", "score", *self.columns]))


class SearchConfig(StageConfig):
    """How an index is searched."""

    mode: Mode = Field("hybrid", description="embeddings, words, or both")
    fusion: Fusion = Field(
        "dbsf", description="how both rankings are combined: by normalised scores (dbsf) or by ranks (rrf)"
    )
    candidates: Annotated[int, Field(ge=1)] = Field(50, description="passages found by each ranking")
    limit: Annotated[int, Field(ge=1)] = Field(5, description="maximum number of results")
    where: Annotated[list[Where], Cli("--where", "CONDITION")] = Field(
        [], description="conditions on columns, such as language=de, source=wiki,books or score>=3"
    )
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.35,
        description="minimum cosine between the question and the best passage; below it there is no context. The "
        "default is for the embedded encoder; the cosines of others, such as E5, are higher",
    )
    rerank: Rerank = Field("maxsim", description="order the first candidates by token-level MaxSim or a cross-encoder")
    rerank_candidates: Annotated[int, Field(ge=1)] = Field(20, description="passages that are reranked")
    cross_encoder: str | None = Field(None, description="Hub name or directory of the cross-encoder")

    @model_validator(mode="after")
    def _has_its_cross_encoder(self) -> Self:
        if self.rerank == "cross_encoder" and self.cross_encoder is None:
            raise ValueError("rerank cross_encoder needs a model: set cross_encoder (--cross-encoder NAME)")
        if self.rerank != "cross_encoder" and self.cross_encoder is not None:
            raise ValueError("cross_encoder is not used: set rerank (--rerank) to cross_encoder")
        return self


class AnswerConfig(AskConfig):
    """How questions are answered."""

    prompt: str = Field("answer", description="name or file of the prompt of answers")
    expand: Annotated[int, Field(ge=0, le=10)] = Field(0, description="paraphrases by the LLM that are searched, too")
    hyde: bool = Field(False, description="search with a passage that the LLM imagines as the answer, too (HyDE)")
    self_query: bool = Field(False, description="let the LLM turn parts of the question into conditions on columns")
    guard: bool = Field(
        True, description="guard against injections in questions and passages and personal data in answers"
    )


class AnswerServerConfig(StageConfig):
    """How answers are served over HTTP."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 listens on all interfaces")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 picks a free one")
    max_question_chars: Annotated[int, Field(ge=1)] = Field(2000, description="longest question in characters")


class RetrievalEvaluationConfig(StageConfig):
    """How the search of an index, and answers from it, are evaluated."""

    answers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="questions that the LLM answers as ask does; it rates the answers, too (default: none)"
    )
    cutoff: Annotated[int, Field(ge=1)] = Field(10, description="documents per question that count")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="confidence level of the intervals")
    resamples: Annotated[int, Field(ge=100)] = Field(2000, description="bootstrap resamples of the questions")
