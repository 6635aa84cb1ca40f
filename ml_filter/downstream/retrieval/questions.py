"""Questions whose documents are known, for the evaluation of retrieval: from a table, or written by an LLM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from loguru import logger

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.generate import generate
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.readers import read_rows, read_tables
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


def check_documents(questions: SourceConfig, index: Manifest) -> None:
    """Warn of questions whose document is not in an index.

    Raises:
        InputError: none of the documents is in it.
    """
    asked = Counter(document_id for _, document_id in read_questions(questions))
    unknown = dict(asked)
    for shard in index.shards:
        for table in read_tables(index.path_of(shard.path), ["document_id"], shard.rows):
            for document_id in table["document_id"].unique().to_pylist():
                unknown.pop(document_id, None)
    if unknown:
        problem = (
            f"{', '.join(questions.paths)}: document_id {next(iter(unknown))!r} is not in the index "
            f"({sum(unknown.values()):,} of {asked.total():,} questions); check the ids, or index these documents"
        )
        if len(unknown) == len(asked):
            raise InputError(problem)
        logger.warning(problem)


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
