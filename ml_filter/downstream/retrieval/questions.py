"""Questions whose documents are known, for the evaluation of retrieval: from a table, or written by an LLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.generate import generate
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.readers import read_rows
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents


def write_questions(
    index: str | Path, size: int, config: AskConfig, output: str | Path, settings: Settings | None = None
) -> Manifest:
    """Let an LLM write a question about each of `size` passages, drawn at random, for `evaluate_retrieval`.

    Raises:
        InputError, ConfigError, TooManyFailures, EndpointError: see `sample_documents` and `generate`.
    """
    source = SourceConfig(paths=[str(index)])
    sample = sample_documents(source, SampleConfig(size=size), f"{output}/passages-{{digest}}")
    prompt = "retrieval_question"
    return generate(SourceConfig(paths=[sample.root]), prompt, config, f"{output}/questions-{{digest}}", settings)


def read_questions(questions: SourceConfig) -> Iterator[tuple[str, str]]:
    """The questions and the ids of their documents; rows without a question, which were not generated, are left out.

    Raises:
        InputError: a column is missing, or there is no question.
    """
    is_empty = True
    for shard in list_shards(questions)[0]:
        for location, row in read_rows(shard, ("question", "document_id")):
            missing = [name for name in ("question", "document_id") if name not in row]
            if missing:
                raise InputError(f"{location} has no column {missing[0]!r}; questions need question and document_id")
            if row["question"]:
                is_empty = False
                yield str(row["question"]), str(row["document_id"])
    if is_empty:
        raise InputError(f"{', '.join(questions.paths)} has no question")
