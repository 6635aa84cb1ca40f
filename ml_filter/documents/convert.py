"""Convert annotations from and to the formats of other tools.

- `eurolingua`: records of the EuroLingua ml_filter tool (eurolingua.py).
- `fineweb-edu`: flat rows, `text, id, url, ..., score, int_score`; also rows with the scores of several annotators in
  columns of their names.
- rows of annotations of ml_filter itself, as in a MongoDB collection that they were exported to.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ml_filter.documents.config import ConvertConfig, SourceConfig
from ml_filter.documents.eurolingua import parse_record, record_of, votes_of
from ml_filter.documents.lineage import annotated_documents, criteria_config, only_criterion
from ml_filter.documents.manifest import Manifest, digest_of, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, read_records, read_tables
from ml_filter.documents.rejects import RejectsLog, describe_counts
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import json_text, number_column, split_item
from ml_filter.documents.unique import UniqueIds, find_documents
from ml_filter.documents.writer import file_digest
from ml_filter.errors import ConfigError, InputError
from ml_filter.location import Location

_SHARD = "annotations"
_WRITE_ROWS = 1000
_Answers = tuple[str, str, list[dict[str, Any]]]
"""The votes of one annotator on one document as annotation rows, after the file and the location they are from."""


def convert_to_annotations(source: SourceConfig, config: ConvertConfig, output: str | Path) -> Manifest:
    """Convert a file of another tool to a directory of annotations.

    The first row decides the format: with `document_id` and `scores` it is a EuroLingua record, with `document_id` and
    `prompt_digest` an annotation of ml_filter, otherwise a flat row. A vote with a null score, an error, a status other
    than `success` or a score outside the range is `failed`, with an error code; a malformed line is rejected with its
    number. The formats of other tools do not say whether the text was truncated: `truncated` is false and `windows` 1.

    Args:
        source: JSON lines or a MongoDB collection; for flat rows also Parquet. `text_column` and `id_column` are those
            of flat rows.
        config: what the file itself does not say.
        output: directory or URL.

    Raises:
        InputError: the source has no record, or no column of scores.
        ConfigError: neither the file nor the config names the prompt or the annotator.
    """
    shards, parents = list_shards(source)
    source_format = _format_of(shards, source)
    read = _READERS[source_format]

    def answers(rejects: RejectsLog) -> Iterator[_Answers]:
        return read(shards, source, config, rejects)

    settings = {
        "source": source.model_dump(mode="json") if source_format == "fineweb-edu" else None,
        "format": source_format,
        **_survey(answers, source, config),
    }
    with OutputDirectory(output, "annotations", settings, parents) as out:
        if out.manifest:
            return out.manifest
        counts: Counter[str] = Counter(documents=0, scored=0, failed=0)
        keys: set[tuple[str, ...]] = set()
        pending: list[dict[str, Any]] = []
        with out.new_shard(_SHARD, ANNOTATION_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
            for uri, location, rows in answers(rejects):
                key = tuple(str(rows[0][name]) for name in ("document_id", "annotator", "prompt_digest", "vote"))
                if key in keys:
                    rejects.add(uri, location, "duplicate_id", f"{key[0]} came before")
                    continue
                keys.add(key)
                counts.update(row["status"] for row in rows)
                pending += rows
                if len(pending) >= _WRITE_ROWS:
                    writer.write(pa.Table.from_pylist(pending, schema=ANNOTATION_SCHEMA))
                    pending = []
            writer.write(pa.Table.from_pylist(pending, schema=ANNOTATION_SCHEMA))
        counts["documents"] = len({key[0] for key in keys})
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def _format_of(shards: Sequence[InputShard], source: SourceConfig) -> str:
    for shard in shards:
        if shard.format in ("jsonl", "mongodb"):
            for _, row in read_records(shard, source, RejectsLog()):
                if {"document_id", "scores"} <= row.keys():
                    return "eurolingua"
                return "annotations" if {"document_id", "prompt_digest", "vote"} <= row.keys() else "fineweb-edu"
    return "fineweb-edu"


def _survey(
    answers: Callable[[RejectsLog], Iterator[_Answers]], source: SourceConfig, config: ConvertConfig
) -> dict[str, Any]:
    """The annotators, votes and prompts of all rows; they identify the output, so they come before its first row."""
    rejects = RejectsLog()
    annotators: dict[str, None] = {}
    prompts: set[tuple[str, str, str, str | None]] = set()
    votes = 0
    for _, _, rows in answers(rejects):
        first = rows[0]
        annotators[first["annotator"]] = None
        prompts.add((first["prompt_digest"], first["prompt"], first["criterion"], first["language"]))
        votes = max(votes, rows[-1]["vote"] + 1)
    if not votes:
        message = f"no record could be read from {', '.join(source.paths)}: {describe_counts(rejects.counts)}"
        if "missing_text" in rejects.counts:
            message += (
                "; flat rows need a text (--text-column); `ml-filter agreement` and `plot` read scores without one"
            )
        raise InputError(message)
    return {
        "annotator": ", ".join(annotators),
        "votes": votes,
        "prompts": [
            {"name": name, "digest": digest, "criterion": criterion, "language": language}
            for digest, name, criterion, language in sorted(prompts)
        ],
        **criteria_config(config.criterion_named(criterion) for _, _, criterion, _ in sorted(prompts)),
    }


def _read_eurolingua(
    shards: Sequence[InputShard], source: SourceConfig, config: ConvertConfig, rejects: RejectsLog
) -> Iterator[_Answers]:
    for shard in shards:
        for location, row in read_records(shard, source, rejects):
            try:
                record = parse_record(row)
            except ValueError as error:
                rejects.add(shard.uri, location, "malformed_record", str(error))
                continue
            meta = record.meta_information
            prompt = _required("prompt", meta.prompt_name, config, f"{shard.uri}, {location}")
            language = meta.prompt_lang or config.language
            common = {
                "document_id": record.document_id,
                "annotator": _required("annotator", meta.model_name, config, f"{shard.uri}, {location}"),
                "prompt": prompt,
                "prompt_digest": meta.prompt_digest or digest_of(["eurolingua", prompt, language]),
                "criterion": meta.criterion or config.criterion or prompt,
                "language": language,
            }
            rows = [_row(common, number, vote, config) for number, vote in enumerate(votes_of(record))]
            yield shard.uri, location, rows


def _read_flat(
    shards: Sequence[InputShard], source: SourceConfig, config: ConvertConfig, rejects: RejectsLog
) -> Iterator[_Answers]:
    columns, paths = config.score_columns, ", ".join(source.paths)
    if config.annotator and len(columns) > 1:
        raise ConfigError("--annotator names one annotator, but there are several --score-column; leave it out")
    prompt = _required("prompt", None, config, f"{paths}, flat rows")
    common = {
        "prompt": prompt,
        "prompt_digest": digest_of(["fineweb-edu", prompt, config.language]),
        "criterion": config.criterion or prompt,
        "language": config.language,
    }
    names: dict[str, None] = {}
    with UniqueIds() as ids:
        for shard, table, _ in ids.read(shards, source, rejects):
            names |= dict.fromkeys(table.column_names)
            is_blank = pc.equal(table["text"], "")
            for document_id in table["id"].filter(is_blank).to_pylist():
                rejects.add(shard.uri, f"document {document_id}", "empty_text")
            documents = table.filter(pc.invert(is_blank))
            scores = [_numbers(documents, name, shard.uri) for name in columns]
            for document_id, *values in zip(documents["id"].to_pylist(), *scores, strict=True):
                for name, score in zip(columns, values, strict=True):
                    answer = {**common, "document_id": document_id, "annotator": config.annotator or name}
                    yield shard.uri, f"document {document_id}", [_row(answer, 0, {"score": score}, config)]
    missing = [name for name in columns if not {name, split_item(name)[0]} & names.keys()]
    if names and missing:
        raise InputError(f"{paths} has no column {', '.join(missing)}; it has {', '.join(names)}; set --score-column")


def _read_annotations(
    shards: Sequence[InputShard], source: SourceConfig, config: ConvertConfig, rejects: RejectsLog
) -> Iterator[_Answers]:
    measured = ("expected_score", "windows", "truncated", "prompt_tokens", "completion_tokens", "latency_s", "attempts")
    for shard in shards:
        for location, row in read_records(shard, source, rejects):
            common = {name: row.get(name) for name in ("document_id", "annotator", "prompt", "prompt_digest")}
            vote, score = row.get("vote"), row.get("score")
            if None in common.values() or not isinstance(vote, int) or not isinstance(score, int | float | None):
                rejects.add(shard.uri, location, "malformed_record", "not an annotation of ml_filter")
                continue
            common |= {"criterion": row.get("criterion") or common["prompt"], "language": config.language}
            answer = _row(common, vote, {**row, "score": score}, config)
            answer |= {name: row[name] for name in measured if row.get(name) is not None}
            yield shard.uri, location, [answer]


_READERS = {"eurolingua": _read_eurolingua, "annotations": _read_annotations, "fineweb-edu": _read_flat}


def _row(common: Mapping[str, Any], number: int, vote: Mapping[str, Any], config: ConvertConfig) -> dict[str, Any]:
    """An annotation row, with `language` in addition."""
    low, high = config.criterion_named(common["criterion"]).bounds
    score, error, reason = vote["score"], vote.get("error"), vote.get("reason")
    if score is None or not math.isfinite(score):
        score, error = None, error or "no_score"
    elif error is None and not low <= score <= high:
        error = "out_of_range"
    if error and score is not None:  # the number beside an error is recorded, but not as a score
        reason = "; ".join(filter(None, [reason, f"the file gives the score {score:g}"]))
    return {
        **dict.fromkeys(ANNOTATION_SCHEMA.names),
        **common,
        "vote": number,
        "status": "failed" if error else "scored",
        "score": None if error or score is None else float(score),
        "reason": reason,
        "error": error,
        "raw": vote.get("raw"),
        "windows": 1,
        "truncated": False,
        "created_at": vote.get("created_at"),
    }


def _required(name: Literal["prompt", "annotator"], value: str | None, config: ConvertConfig, location: str) -> str:
    value = value or getattr(config, name)
    if not value:
        raise ConfigError(f"{location}: the file does not name the {name}; give it with --{name}")
    return value


def _numbers(table: pa.Table, column: str, uri: str) -> list[float | None]:
    if not {column, split_item(column)[0]} & set(table.column_names):
        return [None] * table.num_rows
    numbers: list[float | None] = number_column(table, column, uri).to_pylist()
    return numbers


def write_eurolingua(annotations: str | Path, output: str | Path, criterion: str | None = None) -> dict[str, int]:
    """Write annotations as EuroLingua records: one line for each document and annotator.

    The format has no field for expected scores, tokens and latencies.

    Args:
        annotations: directory of annotations.
        output: a file, at a path or URL; it appears when it is complete.
        criterion: which of several criteria; the EuroLingua tool expects one per file.

    Returns:
        Counts: documents (lines), scored and failed (votes).

    Raises:
        InputError: the directory holds no annotations or several criteria, or `output` exists with other content.
    """
    manifest = read_manifest(annotations, "annotations")
    languages = {prompt["digest"]: prompt["language"] for prompt in manifest.config["prompts"]}
    name = only_criterion(manifest, criterion).name
    source = ", ".join((manifest.config.get("source") or {"paths": []})["paths"])
    counts: Counter[str] = Counter(documents=0, scored=0, failed=0)

    def lines() -> Iterator[dict[str, Any]]:
        written: set[tuple[str, ...]] = set()
        for key, group in groupby(_rows_about(name, manifest), itemgetter("document_id", "annotator", "prompt_digest")):
            if key in written:
                raise InputError(f"{manifest.root}: the votes on document {key[0]!r} are not in consecutive rows")
            written.add(key)
            votes = sorted(group, key=itemgetter("vote"))
            counts["documents"] += 1
            counts.update(vote["status"] for vote in votes)
            yield record_of(votes, languages[key[2]], source)

    _write_lines(lines(), Location(output))
    return dict(counts)


def write_fineweb_edu(
    scores: str | Path, output: str | Path, criterion: str | None = None, documents: SourceConfig | None = None
) -> dict[str, int]:
    """Write aggregated scores as flat rows: each scored document's columns, `score` and `int_score`.

    `int_score` is the score clamped to its range and rounded, halves upwards. A document whose votes all failed has
    null in both. Documents that were not annotated are left out.

    Args:
        scores: directory of aggregated scores.
        output: a file, at a path or URL; it appears when it is complete.
        criterion: which of several criteria.
        documents: where the texts are (None: the documents that were annotated, by lineage).

    Returns:
        Counts: documents (lines), scored, failed, and those without text.

    Raises:
        InputError: the directory holds no aggregated scores, or `output` exists with other content.
    """
    manifest = read_manifest(scores, "scores")
    chosen = only_criterion(manifest, criterion)
    source = documents or annotated_documents(manifest)
    unwritten = {row["document_id"]: row["score"] for row in _rows_about(chosen.name, manifest)}
    counts: Counter[str] = Counter(documents=0, scored=0, failed=0)

    def lines() -> Iterator[dict[str, Any]]:
        for table in find_documents(list_shards(source)[0], source, list(unwritten)):
            for row in table.to_pylist():
                if row["id"] not in unwritten:
                    continue
                score = unwritten.pop(row["id"])
                counts["documents"] += 1
                counts["failed" if score is None else "scored"] += 1
                rounded = None if score is None else math.floor(min(max(score, chosen.low), chosen.high) + 0.5)
                yield {**row, "score": score, "int_score": rounded}

    _write_lines(lines(), Location(output))
    counts["without_text"] = len(unwritten)
    return dict(counts)


def _rows_about(criterion: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    for path in manifest.shard_paths():
        for table in read_tables(path):
            yield from table.filter(pc.field("criterion") == criterion).to_pylist()


def _write_lines(rows: Iterable[dict[str, Any]], output: Location) -> None:
    output.parent.make_directory()
    beside = output.parent.local if output.is_local else None
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=beside) as scratch:
        lines = Path(scratch) / output.name
        with lines.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json_text(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if output.exists() and (output.fs.isdir(output.path) or file_digest(output) != file_digest(lines)):
            raise InputError(f"{output} already exists with other content; choose another --output, or delete it")
        output.move_here(lines)
