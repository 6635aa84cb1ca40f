"""Annotations in the formats of other tools, read and written.

- `eurolingua`: the JSON lines of the EuroLingua (Modalities) ml_filter tool, one document a line, its votes in lists:
  `document_id, scores[], explanations[], errors[][], time_stamps[], document_processing_status[],
  meta_information{prompt_name, prompt_lang, model_name, raw_data_file_path, out_tokens_per_second}`.
- `fineweb-edu`: flat rows, `text, id, url, ..., score, int_score`; also rows with the scores of LLMs or people in
  columns of their own.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError, field_validator

from ml_filter.config import problems_in
from ml_filter.documents.config import ConvertConfig, SourceConfig
from ml_filter.documents.lineage import annotated_documents, criteria_config, only_criterion
from ml_filter.documents.manifest import Manifest, digest_of, read_manifest
from ml_filter.documents.output import OutputDirectory, file_digest
from ml_filter.documents.readers import InputShard, read_records, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import json_text
from ml_filter.errors import ConfigError, InputError

_SHARD = "annotations"
_WRITE_ROWS = 1000
_FAILED = {
    "error_server": "server_error",
    "error_no_generated_text": "no_text",
    "error_faulty_score": "unparsable_score",
    "request_collected": "not_answered",
}
"""Error codes for the states of the EuroLingua tool."""
_STATE = {
    "no_text": "error_no_generated_text",
    "empty_answer": "error_no_generated_text",
    "unparsable_score": "error_faulty_score",
    "out_of_range": "error_faulty_score",
    "no_logprobs": "error_faulty_score",
    "no_score": "error_faulty_score",
    "not_answered": "request_collected",
}
"""The states of the EuroLingua tool for error codes; all others are `error_server`."""


_SAYS_WHAT_FAILED = {"errors", "document_processing_status"}
_LAST_SECOND = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class _MetaInformation(BaseModel):
    prompt_name: str | None = None
    prompt: str | None = None  # what the first versions called prompt_name
    prompt_lang: str | None = None
    model_name: str | None = None
    model: str | None = None  # what the first versions called model_name
    # What this project adds when it writes; the older tool does not look at it.
    prompt_digest: str | None = None
    criterion: str | None = None
    error_codes: list[str | None] = []


class _Record(BaseModel):
    document_id: str
    scores: list[float | None] = Field(min_length=1)
    explanations: list[str | None] = []
    errors: list[list[str] | None] = []
    time_stamps: list[Annotated[float, Field(ge=0, lt=_LAST_SECOND)] | None] = []
    document_processing_status: list[str | None] = []
    meta_information: _MetaInformation = _MetaInformation()

    @field_validator("document_id", mode="before")
    @classmethod
    def _numbers_are_ids_too(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


@dataclass(frozen=True)
class _Answers:
    """The votes of one annotator on one document, and where they stand."""

    source: str
    place: str
    document_id: str
    annotator: str
    prompt: str
    digest: str
    criterion: str
    language: str | None
    votes: Sequence[dict[str, Any]]


def convert_to_annotations(source: SourceConfig, config: ConvertConfig, output: str | Path) -> Manifest:
    """Turn a file of an older format into a directory of annotations.

    The format is told by the first row: one with `document_id` and `scores` is a EuroLingua record, any other a flat
    row. A vote with a null score, an error, a state other than `success` or a score outside the range is `failed`,
    with an error code; a line that is no record is rejected with its number. The older formats do not say whether the
    text was truncated: `truncated` is false and `windows` 1.

    Args:
        source: JSON lines, for flat rows also Parquet; `text_column` and `id_column` are those of flat rows.
        config: what the file does not say itself.
        output: directory or URL.

    Raises:
        InputError: the source has no record, or no column of scores.
        ConfigError: neither file nor config say the prompt or the annotator.
    """
    shards, parents = list_shards(source)
    reader = _Reader(source, config, shards)
    seen = reader.survey()
    settings = {
        "source": source.model_dump(mode="json") if reader.format == "fineweb-edu" else None,
        "format": reader.format,
        "annotator": ", ".join(seen.annotators),
        "votes": seen.votes,
        "prompts": [
            {
                "name": name,
                "digest": digest,
                "criterion": criterion,
                "language": language,
            }
            for digest, name, criterion, language in sorted(seen.prompts)
        ],
        **criteria_config(config.criterion_named(criterion) for _, _, criterion, _ in sorted(seen.prompts)),
    }
    with OutputDirectory(output, "annotations", settings, parents) as out:
        if out.manifest:
            return out.manifest
        counts: Counter[str] = Counter(documents=0, scored=0, failed=0)
        documents: set[str] = set()
        keys: set[tuple[str, str, str]] = set()
        with out.new_shard(_SHARD, ANNOTATION_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
            rows: list[dict[str, Any]] = []
            for answers in reader.read(rejects):
                key = (answers.document_id, answers.annotator, answers.digest)
                if key in keys:
                    rejects.add(answers.source, answers.place, "duplicate_id", f"{answers.document_id} came before")
                    continue
                keys.add(key)
                documents.add(answers.document_id)
                made = list(_rows(answers, config))
                counts.update(row["status"] for row in made)
                rows += made
                if len(rows) >= _WRITE_ROWS:
                    writer.write(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
                    rows = []
            writer.write(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        counts["documents"] = len(documents)
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def _rows(answers: _Answers, config: ConvertConfig) -> Iterator[dict[str, Any]]:
    low, high = config.criterion_named(answers.criterion).bounds
    for number, vote in enumerate(answers.votes):
        score, error = vote["score"], vote.get("error")
        if score is not None and not math.isfinite(score):
            score = None
        if score is None:
            error = error or "no_score"
        elif error is None and not low <= score <= high:
            error = "out_of_range"
        reason = vote.get("reason")
        if error and score is not None:  # what was said beside an error is not lost, and is no score
            reason = "; ".join(filter(None, [reason, f"the file gives the score {score:g}"]))
        yield {
            **dict.fromkeys(ANNOTATION_SCHEMA.names),
            "document_id": answers.document_id,
            "annotator": answers.annotator,
            "prompt": answers.prompt,
            "prompt_digest": answers.digest,
            "criterion": answers.criterion,
            "vote": number,
            "status": "failed" if error else "scored",
            "score": None if error else score,
            "reason": reason,
            "error": error,
            "raw": vote.get("raw"),
            "windows": 1,
            "truncated": False,
            "created_at": vote.get("created_at"),
        }


@dataclass
class _Survey:
    """What stands in a manifest before the first row is written."""

    annotators: dict[str, None] = field(default_factory=dict)
    prompts: set[tuple[str, str, str, str | None]] = field(default_factory=set)
    votes: int = 0


class _Reader:
    def __init__(self, source: SourceConfig, config: ConvertConfig, shards: Sequence[InputShard]) -> None:
        self.source, self.config, self.shards = source, config, shards
        self.format = self._told_by_the_first_row()

    def _told_by_the_first_row(self) -> Literal["eurolingua", "fineweb-edu"]:
        for shard in self.shards:
            if shard.format == "jsonl":
                for _, row in read_records(shard, self.source, RejectsLog()):
                    return "eurolingua" if {"document_id", "scores"} <= row.keys() else "fineweb-edu"
        return "fineweb-edu"

    def survey(self) -> _Survey:
        seen = _Survey()
        rejects = RejectsLog()
        for answers in self.read(rejects):
            seen.annotators[answers.annotator] = None
            seen.prompts.add((answers.digest, answers.prompt, answers.criterion, answers.language))
            seen.votes = max(seen.votes, len(answers.votes))
        if not seen.votes:
            hint = (
                "; a flat row is a document and needs a text (--text-column): `ml-filter agreement` and `plot` read "
                "scores without one as they are"
            )
            raise InputError(
                f"no record could be read from {', '.join(self.source.paths)}: {dict(rejects.counts)}"
                f"{hint if 'missing_text' in rejects.counts else ''}"
            )
        return seen

    def read(self, rejects: RejectsLog) -> Iterator[_Answers]:
        """The answers of each annotator on each document, in the order of the file."""
        return self._eurolingua(rejects) if self.format == "eurolingua" else self._flat(rejects)

    def _eurolingua(self, rejects: RejectsLog) -> Iterator[_Answers]:
        for shard in self.shards:
            for place, row in read_records(shard, self.source, rejects):
                try:
                    record = _Record.model_validate(row)
                except ValidationError as error:
                    rejects.add(shard.uri, place, "malformed_record", problems_in(error, "record"))
                    continue
                votes = len(record.scores)
                lists = ("explanations", "errors", "time_stamps", "document_processing_status")
                wrong = [name for name in lists if len(getattr(record, name)) not in (0, votes)]
                if wrong:
                    detail = f"{', '.join(wrong)}: another length than scores, which has {votes}"
                    rejects.add(shard.uri, place, "malformed_record", detail)
                    continue
                yield self._of_record(record, shard.uri, place)

    def _of_record(self, record: _Record, source: str, place: str) -> _Answers:
        meta = record.meta_information
        prompt = self._known("prompt", meta.prompt_name or meta.prompt, source, place)
        language = meta.prompt_lang or self.config.language
        votes = []
        for number, score in enumerate(record.scores):
            problems = _at(record.errors, number) or []
            error = _error_of(record, number)
            stamp = _at(record.time_stamps, number)
            votes.append(
                {
                    "score": score,
                    "error": error,
                    "reason": None if problems == [error] else "; ".join(problems) or None,
                    "raw": _at(record.explanations, number) or None,
                    "created_at": datetime.fromtimestamp(stamp, UTC).isoformat() if stamp else None,
                }
            )
        return _Answers(
            source,
            place,
            record.document_id,
            self._known("annotator", meta.model_name or meta.model, source, place),
            prompt,
            meta.prompt_digest or digest_of(["eurolingua", prompt, language]),
            meta.criterion or self.config.criterion or prompt,
            language,
            votes,
        )

    def _flat(self, rejects: RejectsLog) -> Iterator[_Answers]:
        columns = self.config.score_columns
        place = ", ".join(self.source.paths)
        prompt = self._known("prompt", None, place, "flat rows")
        annotators = {name: name for name in columns}
        if self.config.annotator:
            if len(columns) > 1:
                raise ConfigError("--annotator names one annotator, and there are several --score-column; leave it out")
            annotators[columns[0]] = self.config.annotator
        digest = digest_of(["fineweb-edu", prompt, self.config.language])
        found: set[str] = set()
        names: dict[str, None] = {}
        for shard in self.shards:
            for table in read_shard(shard, self.source, rejects):
                found.update(set(columns) & set(table.column_names))
                names |= dict.fromkeys(table.column_names)
                scores = [_numbers(table, name, shard.uri) for name in columns]
                for document_id, *values in zip(table.column("id").to_pylist(), *scores, strict=True):
                    for name, value in zip(columns, values, strict=True):
                        yield _Answers(
                            shard.uri,
                            f"document {document_id}",
                            document_id,
                            annotators[name],
                            prompt,
                            digest,
                            self.config.criterion or prompt,
                            self.config.language,
                            [{"score": value}],
                        )
        absent = [name for name in columns if name not in found]
        if names and absent:
            raise InputError(
                f"{place} has no column {', '.join(absent)}; it has {', '.join(names)}; set --score-column"
            )

    def _known(self, name: Literal["prompt", "annotator"], value: str | None, source: str, place: str) -> str:
        known: str | None = value or getattr(self.config, name)
        if not known:
            raise ConfigError(f"{source}, {place}: the file does not name the {name}; give it with --{name}")
        return known


def failed_votes(row: Mapping[str, Any]) -> list[bool] | None:
    """Whether each vote of a EuroLingua record failed; None where the row is none, such as one of ids and scores alone.

    Raises:
        ValueError: it is one, and malformed.
    """
    if not ({"document_id", "scores"} <= row.keys() and row.keys() & _SAYS_WHAT_FAILED):
        return None
    try:
        record = _Record.model_validate(row)
    except ValidationError as error:
        raise ValueError(f"malformed record: {problems_in(error, 'record')}") from error
    return [_error_of(record, number) is not None for number in range(len(record.scores))]


def _error_of(record: _Record, number: int) -> str | None:
    """The error code of a vote; None where its score counts."""
    problems = _at(record.errors, number) or []
    state = _at(record.document_processing_status, number)
    error: str | None = _at(record.meta_information.error_codes, number)
    if error is None and (problems or state not in (None, "success") or record.scores[number] is None):
        error = _FAILED.get(state or "", "server_error" if problems else "unparsable_score")
    return error


def _at(values: Sequence[Any], number: int) -> Any:
    return values[number] if number < len(values) else None


def _numbers(table: pa.Table, column: str, uri: str) -> list[float | None]:
    if column not in table.column_names:
        return [None] * table.num_rows
    try:
        numbers: list[float | None] = table.column(column).cast(pa.float64()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{uri}: column {column!r} is no column of numbers: {error}") from error
    return numbers


def write_eurolingua(annotations: str | Path, output: str | Path, criterion: str | None = None) -> dict[str, int]:
    """Write annotations as records of the EuroLingua tool: one line for each document and annotator.

    Failed votes have a null score, their state, and their error code among the errors. Expected scores, tokens and
    latencies have no place in the format. What would be lost for reading it back (prompt digest, criterion, error
    codes) stands in `meta_information`, where the older tool does not look.

    Args:
        annotations: directory of annotations.
        output: a local file; it appears when it is complete.
        criterion: which of several criteria; the older tool knows one a file.

    Returns:
        Counts: documents (lines), scored and failed (votes).

    Raises:
        InputError: the directory holds no annotations or several criteria, or `output` has other content.
    """
    manifest = read_manifest(annotations, "annotations")
    languages = {prompt["digest"]: prompt["language"] for prompt in manifest.config["prompts"]}
    chosen = only_criterion(manifest, criterion).name
    source = manifest.config.get("source") or {"paths": []}
    counts: Counter[str] = Counter(documents=0, scored=0, failed=0)

    def lines() -> Iterator[dict[str, Any]]:
        written: set[tuple[str, ...]] = set()
        one = itemgetter("document_id", "annotator", "prompt_digest")
        for key, group in groupby(_annotations(manifest, chosen), one):
            if key in written:
                raise InputError(f"{manifest.root}: the votes on document {key[0]!r} do not stand together")
            written.add(key)
            votes = sorted(group, key=itemgetter("vote"))
            counts["documents"] += 1
            counts.update(vote["status"] for vote in votes)
            yield _record_of(votes, languages[key[2]], ", ".join(source["paths"]))

    _write_lines(lines(), Path(output))
    return dict(counts)


def _annotations(manifest: Manifest, criterion: str) -> Iterator[dict[str, Any]]:
    for path in manifest.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_WRITE_ROWS):
            yield from (row for row in batch.to_pylist() if row["criterion"] == criterion)


def _record_of(votes: Sequence[dict[str, Any]], language: str | None, source: str) -> dict[str, Any]:
    first = votes[0]
    tokens = sum(vote["completion_tokens"] or 0 for vote in votes)
    seconds = sum(vote["latency_s"] or 0.0 for vote in votes)
    return {
        "document_id": first["document_id"],
        "scores": [vote["score"] for vote in votes],
        "explanations": [vote["raw"] or (not vote["error"] and vote["reason"]) or "" for vote in votes],
        "errors": [[vote["reason"] or vote["error"]] if vote["error"] else [] for vote in votes],
        "time_stamps": [_seconds(vote["created_at"]) for vote in votes],
        "document_processing_status": [
            _STATE.get(vote["error"], "error_server") if vote["error"] else "success" for vote in votes
        ],
        "meta_information": {
            "prompt_name": first["prompt"],
            "prompt_lang": language or "",
            "model_name": first["annotator"],
            "raw_data_file_path": source,
            "out_tokens_per_second": tokens / seconds if seconds else 0.0,
            "prompt_digest": first["prompt_digest"],
            "criterion": first["criterion"],
            "error_codes": [vote["error"] for vote in votes],
        },
    }


def _seconds(created_at: str | None) -> int:
    return int(datetime.fromisoformat(created_at).timestamp()) if created_at else 0


def write_fineweb_edu(
    scores: str | Path, output: str | Path, criterion: str | None = None, documents: SourceConfig | None = None
) -> dict[str, int]:
    """Write aggregated scores as flat rows: each scored document's columns, `score` and `int_score`.

    `int_score` is the score clamped to its range and rounded, halves upwards. A document whose votes all failed has
    null in both. Documents that nobody annotated are left out.

    Args:
        scores: directory of aggregated scores.
        output: a local file; it appears when it is complete.
        criterion: which of several criteria.
        documents: where the texts are; not given: those that were annotated, by lineage.

    Returns:
        Counts: documents (lines), scored, failed, and those without text.

    Raises:
        InputError: the directory holds no aggregated scores, or `output` has other content.
    """
    manifest = read_manifest(scores, "scores")
    chosen = only_criterion(manifest, criterion)
    source = documents or annotated_documents(manifest)
    left: dict[str, float | None] = {}
    for path in manifest.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(columns=["document_id", "criterion", "score"]):
            left.update((r["document_id"], r["score"]) for r in batch.to_pylist() if r["criterion"] == chosen.name)
    counts: Counter[str] = Counter(documents=0, scored=0, failed=0)

    def lines() -> Iterator[dict[str, Any]]:
        for shard in list_shards(source)[0]:
            for table in read_shard(shard, source, RejectsLog()):
                for row in table.to_pylist():
                    if row["id"] not in left:
                        continue
                    score = left.pop(row["id"])
                    counts["documents"] += 1
                    counts["failed" if score is None else "scored"] += 1
                    rounded = None if score is None else math.floor(min(max(score, chosen.low), chosen.high) + 0.5)
                    yield {**row, "score": score, "int_score": rounded}

    _write_lines(lines(), Path(output))
    counts["without_text"] = len(left)
    return dict(counts)


def _write_lines(rows: Iterable[dict[str, Any]], output: Path) -> None:
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json_text(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if output.exists() and (output.is_dir() or file_digest(output) != file_digest(temporary)):
            raise InputError(f"{output} is there with other content; choose another --output, or delete it")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
