"""Configuration of sources and of converting annotations of other tools."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from ml_filter.config import Cli, StageConfig
from ml_filter.criterion import Criterion, ScoreBounds
from ml_filter.documents.extraction import Extractor
from ml_filter.mongodb import SafePath


class MongoConfig(StageConfig):
    """How a MongoDB collection is read."""

    query: str | None = Field(
        None, description='which documents, as MongoDB\'s extended JSON, such as {"language": "de"} (default: all)'
    )
    fields: Annotated[list[str], Cli(comma_separated=True)] = Field(
        [], description="fields to read beside id and text (default: all)"
    )
    since: AwareDatetime | None = Field(
        None, description="only documents changed since this time, such as 2026-11-28T10:00:00Z (default: all)"
    )
    marker: str = Field("updated_at", description="field with the time of a document's last change")
    shard_rows: Annotated[int, Field(ge=1)] = Field(
        50_000, description="documents in a shard, which is scored by one worker and repeated if it is interrupted"
    )


class SourceConfig(StageConfig):
    """Where documents are, and which columns hold their id and text."""

    paths: Annotated[list[SafePath], Field(min_length=1)] = Field(
        ["installed:"],
        description="files, globs, directories or URLs (Parquet, Arrow, JSON, CSV, WARC, WET or PDF, plain or "
        "compressed), hf://datasets/OWNER/NAME, mongodb://HOST/DATABASE.COLLECTION, or installed: for the documents "
        "that every machine has",
    )
    text_column: str = Field("text", description="column with the text")
    id_column: str | None = Field(
        None, description="column with the id (default: id if it exists, else a hash of the text)"
    )
    split: str = Field("train", description="split of a Hub data set")
    subset: str | None = Field(None, description="subset (configuration) of a Hub data set (default: its default one)")
    mongodb: Annotated[
        MongoConfig, Cli(options={name: f"--mongodb-{name.replace('_', '-')}" for name in MongoConfig.model_fields})
    ] = Field(MongoConfig(), description="how MongoDB collections are read")
    max_text_bytes: Annotated[int, Field(gt=0)] = Field(
        10 * 2**20, description="longest text in bytes; a longer one is rejected as text_too_long"
    )
    extractor: Extractor = Field(
        "trafilatura",
        description="how to get the text of a web page: its main text by trafilatura, by resiliparse (ten times as "
        "fast) or by justext, or text for all of its text",
    )
    max_extraction_seconds: Annotated[float, Field(ge=0.01, le=3600)] = Field(
        10,
        description="most CPU time for the text of a web page or a PDF; more is an extraction_timeout",
    )


class ConvertConfig(StageConfig):
    """What a file of another tool does not say about its annotations; what it says takes precedence."""

    annotator: str | None = Field(
        None, description="who scored (default: the annotator in the file; for flat rows, the score column)"
    )
    prompt: str | None = Field(None, description="name of the prompt (default: the prompt in the file)")
    criterion: str | None = Field(None, description="what was scored (default: the name of the prompt)")
    language: str | None = Field(None, description="language of the prompt (default: the language in the file)")
    score_columns: Annotated[list[str], Field(min_length=1), Cli("--score-column", comma_separated=True)] = Field(
        ["score"], description="score columns of flat rows, each an annotator"
    )
    score_range: Annotated[ScoreBounds | None, Cli(metavar="LOW HIGH")] = Field(
        None, description="lowest and highest score (default: 0 and 5)"
    )
    threshold: float | None = Field(
        None, description="a document with at least this score is good (default: the middle of score_range, or 3)"
    )

    def criterion_named(self, name: str) -> Criterion:
        """The criterion of this name, with the range and threshold of the file."""
        return Criterion.of_labels(name, self.score_range, self.threshold)
