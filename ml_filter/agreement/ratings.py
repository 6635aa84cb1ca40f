"""Who gave which document what score: ratings from annotations, scores and tables, joined by document id."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from loguru import logger
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.agreement.config import AgreementConfig
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.eurolingua import failed_votes
from ml_filter.documents.lineage import only_criterion
from ml_filter.documents.manifest import Parent, find_manifest
from ml_filter.documents.readers import read_rows, read_schema, read_tables, text_id
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import split_item, value_in
from ml_filter.errors import InputError

NO_STRATUM = "(none)"
"""The stratum of documents without a value in the column."""
_ID_COLUMNS = ("id", "document_id")
_RATING_COLUMNS = ("score", "scores")
_OUTCOMES = ("score_status", "errors", "document_processing_status")
"""Columns that say which ratings failed."""
_ANNOTATION_COLUMNS = ("document_id", "annotator", "criterion", "vote", "status", "score", "expected_score")


class RatedInput(BaseModel):
    """One input: its `kind` is annotations, scores, table or gold.

    An unmatched row is of a document that gold does not have; without gold, that no other input has.
    """

    path: str
    kind: str
    digest: str
    rows: int
    documents: int
    unmatched_rows: int


@dataclass(frozen=True)
class Ratings:
    """Ratings by document and rater.

    Attributes:
        raters: R names; gold, if there is one, is the first.
        values: [documents, R] scores; NaN: no score.
        failed: [documents, R] whether scoring the document failed.
        columns: for each column of `by`, the value of each document; each value is a stratum.
        score_range: lowest and highest score, if the inputs define it.
        threshold: documents with at least this rounded score count as good.
    """

    documents: list[str]
    raters: list[str]
    values: NDArray[np.float64]
    failed: NDArray[np.bool_]
    columns: dict[str, list[str]]
    has_gold: bool
    score_range: tuple[float, float] | None
    threshold: float
    inputs: list[RatedInput]


@dataclass
class _Input:
    path: str
    kind: str
    digest: str
    only: Counter[str] | None
    """The documents of gold, if there is gold: rows of other documents are skipped."""
    ratings: dict[tuple[str, ...], dict[str, list[float]]] = field(default_factory=dict)
    """By rater, the scores of each document; none if all failed. The names of a rater are its shortest, which need not
    be unique, to its longest."""
    rows: Counter[str] = field(default_factory=Counter)
    """Rows of each document that is kept."""
    skipped: int = 0
    some_skipped: list[str] = field(default_factory=list)
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    """By column of `by`, the value of each document that has one."""
    columns: set[str] = field(default_factory=set)
    criterion: Criterion | None = None
    """From the manifest; None: a table, which has none."""

    def count(self, document: str) -> bool:
        """Count a row; returns whether its document is kept."""
        if self.only is not None and document not in self.only:
            self.skipped += 1
            if len(self.some_skipped) < 2:
                self.some_skipped.append(document)
            return False
        self.rows[document] += 1
        return True

    def add(self, names: tuple[str, ...], document: str, score: float | None, *, failed: bool) -> None:
        """Add a rating; a rating that is neither a score nor failed is missing."""
        ratings = self.ratings.setdefault(names, {})
        if failed or score is not None:
            ratings.setdefault(document, []).extend([] if failed or score is None else [score])

    @property
    def some_ids(self) -> str:
        return ", ".join(self.some_skipped or list(self.rows)[:2]) or "(no rows)"


def read_ratings(scores: Sequence[str], config: AgreementConfig) -> tuple[Ratings, list[Parent]]:
    """The ratings of all inputs, and the digests that pin their content.

    In a directory of annotations each annotator is a rater, and its votes on a document are averaged. (Several prompts
    of one criterion are its languages, one per document.) A directory of scores is a rater, and so is each column of a
    table. With gold, only its documents are kept, so that a whole corpus of scores can be compared in little memory.

    Raises:
        InputError: an input cannot be read, has several criteria, or has no document in common with the others.
    """
    inputs = _read_inputs(scores, config)
    _check_join(inputs)
    ratings = _join(inputs, config)
    if len(ratings.raters) < 2:
        raise InputError(
            f"{', '.join(scores)} has only one rater ({', '.join(ratings.raters) or 'none'}); agreement requires two: "
            "add --gold, another input, or more --rating-columns"
        )
    scored = np.isfinite(ratings.values)
    if not (scored.sum(axis=1) >= 2).any():
        counts = [
            f"{name} ({n_scored:,} scored, {n_failed:,} failed)"
            for name, n_scored, n_failed in zip(
                ratings.raters, scored.sum(axis=0), ratings.failed.sum(axis=0), strict=True
            )
        ]
        raise InputError(
            f"no document was scored by two raters: {', '.join(counts)}; if a column is empty, name the right ones "
            "with --gold-column or --rating-columns"
        )
    return ratings, [Parent(path=rated.path, digest=rated.digest) for rated in inputs]


def require_gold(config: AgreementConfig) -> None:
    """Check the gold before paying for annotations that will be compared with it.

    Raises:
        InputError: it cannot be read, has no such column, or no rating in it.
    """
    for gold in _read_inputs([], config):
        if not any(any(ratings.values()) for ratings in gold.ratings.values()):
            raise InputError(f"{gold.path} has no rating in {config.gold_column!r}; name the column with --gold-column")


def _read_inputs(scores: Sequence[str], config: AgreementConfig) -> list[_Input]:
    """All inputs, gold first; with gold, only its documents."""
    gold = _read_table(config.gold, "gold", config, None) if config.gold else None
    only = gold.rows if gold else None
    inputs = [_read_input(SourceConfig(paths=[path]), config, only) for path in scores]
    return [gold, *inputs] if gold else inputs


def _join(inputs: Sequence[_Input], config: AgreementConfig) -> Ratings:
    """The raters of all inputs, joined by document."""
    raters = [rater for rated in inputs for rater in rated.ratings.items()]
    has_gold = any(rated.kind == "gold" for rated in inputs)
    documents = sorted({document for rated in inputs for document in rated.rows})
    rows = {document: row for row, document in enumerate(documents)}
    values = np.full((len(documents), len(raters)), np.nan)
    failed = np.zeros(values.shape, dtype=np.bool_)
    for column, (_, ratings) in enumerate(raters):
        for document, votes in ratings.items():
            if votes:
                values[rows[document], column] = statistics.fmean(votes)
            else:
                failed[rows[document], column] = True
    names, (score_range, threshold) = _shortest_names([names for names, _ in raters]), _scale(inputs, config)
    if score_range:
        _warn_of_scores_outside(score_range, names, values)
    return Ratings(
        documents=documents,
        raters=names,
        values=values,
        failed=failed,
        columns={column: _values_of(column, inputs, documents) for column in config.by},
        has_gold=has_gold,
        score_range=score_range,
        threshold=threshold,
        inputs=[_summary(rated, inputs, has_gold) for rated in inputs],
    )


# --- One input -------------------------------------------------------------------------------------------------------


def _read_input(source: SourceConfig, config: AgreementConfig, only: Counter[str] | None) -> _Input:
    manifest = find_manifest(source.paths[0])
    if manifest is None or manifest.kind not in ("annotations", "scores"):
        return _read_table(source.model_copy(update={"id_column": config.id_column}), "table", config, only)
    criterion = only_criterion(manifest, config.criterion)
    rated = _Input(manifest.root, manifest.kind, manifest.digest, only, criterion=criterion)
    path = PurePosixPath(manifest.root)
    names = (path.name, f"{path.parent.name}/{path.name}", manifest.root)
    prompts = [p["name"] for p in manifest.config.get("prompts", []) if p["criterion"] == criterion.name]
    prompt = prompts[0] if len(prompts) == 1 else criterion.name
    columns = _ANNOTATION_COLUMNS if manifest.kind == "annotations" else ("document_id", "criterion", "score")
    for row in (row for shard in manifest.shard_paths() for t in read_tables(shard, columns) for row in t.to_pylist()):
        if row["criterion"] != criterion.name or not rated.count(row["document_id"]):
            continue
        score, vote = row["score"], ""
        if manifest.kind == "annotations":
            annotator = row["annotator"]
            names = (annotator, f"{annotator} / {prompt}", f"{annotator} in {manifest.root}")
            vote = f" vote {row['vote']}" if config.votes_as_raters else ""
            if row["status"] != "scored":
                score = None
            elif config.use == "expected" and row["expected_score"] is not None:
                score = row["expected_score"]
        rated.add(tuple(name + vote for name in names), row["document_id"], score, failed=score is None)
    return rated


def _read_table(source: SourceConfig, kind: str, config: AgreementConfig, only: Counter[str] | None) -> _Input:
    shards, parents = list_shards(source)
    path = ", ".join(source.paths)
    rated = _Input(path, kind, "+".join(parent.digest for parent in parents), only)
    rated.values = {name: {} for name in config.by}
    rating_columns = [config.gold_column] if kind == "gold" else config.rating_columns
    needed = {*(rating_columns or _RATING_COLUMNS), *config.by, *_ID_COLUMNS, *_OUTCOMES, source.text_column}
    needed |= {source.id_column} if source.id_column else set()
    needed |= {split_item(name)[0] for name in rating_columns}
    stem = f"{'gold ' if kind == 'gold' else ''}{PurePosixPath(path).name}"
    for shard in shards:
        if shard.format == "parquet":
            rated.columns.update(read_schema(shard.uri).names)
        for location, row in read_rows(shard, needed):
            rated.columns.update(row)
            document = _document_id(location, row, source)
            if not rated.count(document):
                continue
            for name in config.by:
                if row.get(name) is not None:
                    rated.values[name][document] = str(row[name])
            for column in rating_columns or [name for name in _RATING_COLUMNS if name in row][:1]:
                failed = _failed(location, column, row) if kind == "table" else []
                value = value_in(
                    row, column
                )  # a list has one rating for each of several raters, identified by their index
                items = value if isinstance(value, list) else [value]
                for index, item in enumerate(items):
                    name = f"{column}[{index}]" if items is value else column
                    names = (name, f"{stem}: {name}", f"{path}: {name}")
                    has_failed = failed[index : index + 1] == [True]
                    rated.add(names, document, _number(location, column, item), failed=has_failed)
    missing = [name for name in rating_columns if not {name, split_item(name)[0]} & rated.columns]
    if missing or not (rating_columns or rated.columns & set(_RATING_COLUMNS)):
        absent = f"no column {missing[0]!r}" if missing else "no column score or scores"
        raise InputError(
            f"{path} has {absent}; it has {', '.join(sorted(rated.columns)) or 'no rows'}; name the ratings with "
            f"{'--gold-column' if kind == 'gold' else '--rating-columns'}"
        )
    repeated = [document for document, rows in rated.rows.items() if rows > 1]
    if repeated:
        logger.warning(
            f"{path}: documents with several rows, whose ratings are averaged: {len(repeated):,}, such as "
            f"{repeated[0]!r}"
        )
    return rated


def _failed(location: str, column: str, row: dict[str, Any]) -> list[bool]:
    """Which of a column's ratings failed, if the row says so; any other null is a missing rating."""
    if column == "score":
        return [row.get("score_status") == "failed" and row.get("score") is None]
    try:
        return (failed_votes(row) if column == "scores" else None) or []
    except ValueError as error:
        raise InputError(f"{location}: {error}") from error


def _document_id(location: str, row: dict[str, Any], source: SourceConfig) -> str:
    names = [source.id_column] if source.id_column else _ID_COLUMNS
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    if isinstance(row.get(source.text_column), str):
        return text_id(row[source.text_column])
    raise InputError(f"{location} has no {' or '.join(names)}; name the column of the document id")


def _number(location: str, column: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{location}: {value!r} in column {column!r} is not a number") from None
    if math.isinf(number):
        raise InputError(f"{location}: {value!r} in column {column!r} is not a finite number")
    return None if math.isnan(number) else number


# --- All inputs together ---------------------------------------------------------------------------------------------


def _documents_of_others(rated: _Input, inputs: Sequence[_Input]) -> set[str]:
    return {document for other in inputs if other is not rated for document in other.rows}


def _check_join(inputs: Sequence[_Input]) -> None:
    """Several inputs must share document ids, or there would be nothing to compare."""
    for rated in inputs[1:]:
        if rated.rows.keys().isdisjoint(_documents_of_others(rated, inputs)):
            raise InputError(
                f"{rated.path} has no document in common with the other inputs: its ids look like {rated.some_ids}, "
                f"those of {inputs[0].path} like {inputs[0].some_ids}; name the right columns with --id-column and "
                "--gold-id-column"
            )


def _summary(rated: _Input, inputs: Sequence[_Input], with_gold: bool) -> RatedInput:
    unmatched = rated.skipped
    if len(inputs) > 1 and (rated.kind == "gold" or not with_gold):
        others = _documents_of_others(rated, inputs)
        unmatched += sum(count for document, count in rated.rows.items() if document not in others)
    return RatedInput(
        path=rated.path,
        kind=rated.kind,
        digest=rated.digest,
        rows=rated.rows.total() + rated.skipped,
        documents=len(rated.rows),
        unmatched_rows=unmatched,
    )


def _shortest_names(raters: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest names that are unique."""
    lengths = [0] * len(raters)
    while True:
        names = [rater[length] for rater, length in zip(raters, lengths, strict=True)]
        clashes = [i for i, name in enumerate(names) if names.count(name) > 1]
        if not clashes:
            return names
        for i in clashes:
            if lengths[i] + 1 == len(raters[i]):
                raise InputError(f"{names[i]} is a duplicate; give each input once")
            lengths[i] += 1


def _values_of(column: str, inputs: Sequence[_Input], documents: Sequence[str]) -> list[str]:
    """The value of each document in a column, from the first input that has one."""
    sources = [rated.values[column] for rated in inputs if column in rated.columns]
    if not sources:
        columns = sorted({name for rated in inputs for name in rated.columns})
        raise InputError(f"no table has the column {column!r} to compare by; there are {', '.join(columns) or 'none'}")
    return [next((source[document] for source in sources if document in source), NO_STRATUM) for document in documents]


def _warn_of_scores_outside(
    score_range: tuple[float, float], names: Sequence[str], values: NDArray[np.float64]
) -> None:
    low, high = score_range
    for name, scores in zip(names, values.T, strict=True):
        outside = scores[(scores < low - 0.5) | (scores >= high + 0.5)]
        if len(outside):
            logger.warning(
                f"{name}: {len(outside):,} of {np.isfinite(scores).sum():,} scores are outside the range {low:g} to "
                f"{high:g}, such as {outside[0]:g}; figures of classes clamp them to the range, others use them as is"
            )


def _scale(inputs: Sequence[_Input], config: AgreementConfig) -> tuple[tuple[float, float] | None, float]:
    """Score range (None: not known) and threshold: those of the inputs' criterion, or those in the configuration.

    Raises:
        InputError: the inputs have different score ranges or thresholds.
    """
    ranges = {rated.criterion.bounds: rated.path for rated in inputs if rated.criterion}
    if config.score_range:
        ranges.setdefault(config.score_range, "score_range")
    if len(ranges) > 1:
        raise InputError(
            "the inputs have different score ranges: "
            + "; ".join(f"{path} from {low:g} to {high:g}" for (low, high), path in ranges.items())
        )
    thresholds = {rated.criterion.threshold: rated.path for rated in inputs if rated.criterion}
    if config.threshold is not None or not thresholds:
        thresholds = {Criterion.of_labels("score", config.score_range, config.threshold).threshold: ""}
    if len(thresholds) > 1:
        raise InputError(
            "the inputs have different thresholds: "
            + "; ".join(f"{path} {threshold:g}" for threshold, path in thresholds.items())
            + "; choose one with --threshold"
        )
    return next(iter(ranges), None), next(iter(thresholds))
