"""Who gave which document what score: ratings from annotations, scores and tables, joined by document id."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from loguru import logger
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.agreement.config import AgreementConfig
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.eurolingua import failed_votes
from ml_filter.documents.lineage import only_criterion
from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.documents.readers import read_rows, read_schema, text_id
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError

NO_STRATUM = "(none)"
"""The stratum of documents whose column is null or that the table with the column lacks."""
_ID_COLUMNS = ("id", "document_id")
_RATING_COLUMNS = ("score", "scores")
_OUTCOMES = ("score_status", "errors", "document_processing_status")
"""Columns that say which ratings failed."""


class RatedInput(BaseModel):
    """One input. An unmatched row is of a document that gold lacks; without gold, that no other input has."""

    path: str
    kind: Literal["annotations", "scores", "table", "gold"]
    digest: str
    rows: int
    documents: int
    unmatched_rows: int


@dataclass(frozen=True)
class Ratings:
    """Ratings by document and rater.

    Args:
        documents: D ids.
        raters: R names; where there is gold, it is the first.
        values: [D, R] scores, nan where there is none.
        failed: [D, R] whether the rater was asked and gave no score.
        strata: for each column of `by`, the stratum of each document.
        has_gold: whether the first rater is gold.
        score_range: lowest and highest score, where the inputs say it.
        inputs: what was read.
    """

    documents: list[str]
    raters: list[str]
    values: NDArray[np.float64]
    failed: NDArray[np.bool_]
    strata: dict[str, list[str]]
    has_gold: bool
    score_range: tuple[float, float] | None
    inputs: list[RatedInput]


@dataclass
class _Rater:
    names: tuple[str, ...]
    """From the shortest, which need not be unique, to the longest."""
    votes: dict[str, list[float]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def add(self, document: str, score: float | None) -> None:
        if score is None:
            self.failed.add(document)
        else:
            self.votes.setdefault(document, []).append(score)


@dataclass
class _Input:
    path: str
    kind: Literal["annotations", "scores", "table", "gold"]
    digest: str
    raters: dict[Any, _Rater] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    """Rows of each document that is kept."""
    left_out: int = 0
    """Rows of documents that gold lacks."""
    some_left_out: list[str] = field(default_factory=list)
    strata: dict[str, dict[str, str]] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)
    criterion: Criterion | None = None
    """What the manifest says that was scored; a table says nothing."""

    def takes(self, document: str, only: Counter[str] | None) -> bool:
        """Count a row; false where its document is not among those that are compared."""
        if only is not None and document not in only:
            self.left_out += 1
            if len(self.some_left_out) < 2:
                self.some_left_out.append(document)
            return False
        self.rows[document] += 1
        return True


def read_ratings(scores: Sequence[str], config: AgreementConfig) -> tuple[Ratings, list[Parent]]:
    """The ratings of all inputs, and what pins their content.

    In a directory of annotations each annotator is a rater (the prompts of one criterion there are its languages, one
    a document), and its votes on a document are averaged. A directory of scores is a rater, and so is each column of a
    table; a row that repeats a document counts as a further vote. With gold, only documents that it has are kept, so
    that a whole corpus of scores can be compared in little memory.

    Raises:
        InputError: an input cannot be read, several criteria are mixed, or the ids of an input match nothing.
    """
    inputs = _read_inputs(scores, config)
    _check_join(inputs)
    ratings = _together(inputs, config)
    if len(ratings.raters) < 2:
        raise InputError(
            f"{', '.join(scores)} holds one rater ({', '.join(ratings.raters) or 'none'}); agreement needs two: "
            "give --gold, another input, or further --rating-columns"
        )
    if not (np.isfinite(ratings.values).sum(axis=1) >= 2).any():
        names = ", ".join(ratings.raters)
        counts = (", ".join(map(str, one.sum(axis=0))) for one in (np.isfinite(ratings.values), ratings.failed))
        asked = (np.isfinite(ratings.values) | ratings.failed).sum(axis=0)
        hint = ", ".join(name for name, count in zip(ratings.raters, asked.tolist(), strict=True) if not count)
        raise InputError(
            f"no document was scored by two raters: {names} (scored: {'; failed: '.join(counts)})"
            + f"; {hint} holds nothing: name the right columns with --gold-column or --rating-columns" * bool(hint)
        )
    return ratings, _parents(inputs)


def read_scores(scores: Sequence[str], config: AgreementConfig) -> tuple[Ratings, list[Parent]]:
    """As `read_ratings`, for what needs no second rater and no document that two have scored.

    Raises:
        InputError: an input cannot be read, or several criteria are mixed.
    """
    inputs = _read_inputs(scores, config)
    return _together(inputs, config), _parents(inputs)


def require_gold(config: AgreementConfig) -> None:
    """Read the gold before anything is paid for that is to be compared with it.

    Raises:
        InputError: it cannot be read, has no such column, or no rating in it.
    """
    for gold in _read_inputs([], config):
        if not any(rater.votes for rater in gold.raters.values()):
            raise InputError(f"{gold.path} has no rating in {config.gold_column!r}; name the column with --gold-column")


def _parents(inputs: Sequence[_Input]) -> list[Parent]:
    return [Parent(path=one.path, digest=one.digest) for one in inputs]


def _read_inputs(scores: Sequence[str], config: AgreementConfig) -> list[_Input]:
    """All inputs, gold first; with gold, only of the documents that it has."""
    gold = _read_table(config.gold, "gold", config, None) if config.gold else None
    only = gold.rows if gold else None
    inputs = [_read_input(SourceConfig(paths=[path]), config, only) for path in scores]
    return [gold, *inputs] if gold else inputs


def _together(inputs: Sequence[_Input], config: AgreementConfig) -> Ratings:
    """The raters of all inputs, joined by document."""
    raters = [rater for one in inputs for rater in one.raters.values()]
    has_gold = any(one.kind == "gold" for one in inputs)
    documents = sorted({document for one in inputs for document in one.rows})
    rows = {document: row for row, document in enumerate(documents)}
    values = np.full((len(documents), len(raters)), np.nan)
    failed = np.zeros(values.shape, dtype=np.bool_)
    for column, rater in enumerate(raters):
        for document, votes in rater.votes.items():
            values[rows[document], column] = statistics.fmean(votes)
        for document in rater.failed - rater.votes.keys():
            failed[rows[document], column] = True
    names, score_range = _names(raters), _score_range(inputs)
    _warn_of_scores_outside(score_range, names, values)
    return Ratings(
        documents=documents,
        raters=names,
        values=values,
        failed=failed,
        strata={name: _strata(name, inputs, documents) for name in config.by},
        has_gold=has_gold,
        score_range=score_range,
        inputs=[_summary(one, inputs, has_gold) for one in inputs],
    )


# --- One input -------------------------------------------------------------------------------------------------------


def _read_input(source: SourceConfig, config: AgreementConfig, only: Counter[str] | None) -> _Input:
    path = source.paths[0]
    manifest = find_manifest(path)
    if manifest is not None and manifest.kind == "annotations":
        return _read_annotations(manifest, config, only)
    if manifest is not None and manifest.kind == "scores":
        return _read_scores(manifest, config, only)
    return _read_table(source.model_copy(update={"id_column": config.id_column}), "table", config, only)


def _read_annotations(manifest: Manifest, config: AgreementConfig, only: Counter[str] | None) -> _Input:
    made = _Input(manifest.root, "annotations", manifest.digest)
    made.criterion = only_criterion(manifest, config.criterion)
    criterion = made.criterion.name
    prompts = [prompt["name"] for prompt in manifest.config["prompts"] if prompt["criterion"] == criterion]
    asked = prompts[0] if len(prompts) == 1 else criterion
    columns = ["document_id", "annotator", "criterion", "vote", "status", "score", "expected_score"]
    for path in manifest.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(columns=columns):
            for row in batch.to_pylist():
                if row["criterion"] != criterion or not made.takes(row["document_id"], only):
                    continue
                vote = f" vote {row['vote']}" if config.votes_as_raters else ""
                key = (row["annotator"], vote)
                if key not in made.raters:
                    names = (
                        row["annotator"],
                        f"{row['annotator']} / {asked}",
                        f"{row['annotator']} in {manifest.root}",
                    )
                    made.raters[key] = _Rater(tuple(name + vote for name in names))
                score = row["expected_score"] if config.use == "expected" else None
                score = row["score"] if score is None else score
                made.raters[key].add(row["document_id"], score if row["status"] == "scored" else None)
    return made


def _read_scores(manifest: Manifest, config: AgreementConfig, only: Counter[str] | None) -> _Input:
    made = _Input(manifest.root, "scores", manifest.digest)
    path = PurePosixPath(manifest.root)
    rater = made.raters["score"] = _Rater((path.name, f"{path.parent.name}/{path.name}", manifest.root))
    made.criterion = only_criterion(manifest, config.criterion)
    for shard in manifest.shard_paths():
        for batch in pq.ParquetFile(shard).iter_batches(columns=["document_id", "criterion", "score"]):
            for row in batch.to_pylist():
                if row["criterion"] == made.criterion.name and made.takes(row["document_id"], only):
                    rater.add(row["document_id"], row["score"])
    return made


def _read_table(
    source: SourceConfig, kind: Literal["table", "gold"], config: AgreementConfig, only: Counter[str] | None
) -> _Input:
    shards, parents = list_shards(source)
    label = ", ".join(source.paths)
    made = _Input(label, kind, "+".join(parent.digest for parent in parents))
    wanted = [config.gold_column] if kind == "gold" else config.rating_columns
    needed = {*(wanted or _RATING_COLUMNS), *config.by, *_ID_COLUMNS, *_OUTCOMES, source.text_column}
    needed |= {source.id_column} if source.id_column else set()
    made.strata = {name: {} for name in config.by}
    for shard in shards:
        if shard.format == "parquet":
            made.columns.update(read_schema(shard.uri).names)
        for place, row in read_rows(shard, needed):
            made.columns.update(row)
            document = _document_id(place, row, source)
            if not made.takes(document, only):
                continue
            for name in config.by:
                if row.get(name) is not None:
                    made.strata[name][document] = str(row[name])
            for column in wanted or [name for name in _RATING_COLUMNS if name in row][:1]:
                failed = _failed(place, column, row) if kind == "table" else []
                for number, (name, value) in enumerate(_cells(column, row.get(column))):
                    rater = made.raters.get(name)
                    if rater is None:
                        stem = f"{'gold ' if kind == 'gold' else ''}{PurePosixPath(label).name}"
                        rater = made.raters[name] = _Rater((name, f"{stem}: {name}", f"{label}: {name}"))
                    score = _number(place, column, value)
                    if failed[number : number + 1] == [True]:
                        rater.add(document, None)
                    elif score is not None:
                        rater.add(document, score)
    missing = [name for name in wanted if name not in made.columns]
    if missing or not (wanted or made.columns & set(_RATING_COLUMNS)):
        absent = f"no column {missing[0]!r}" if missing else "no column score or scores"
        raise InputError(
            f"{label} has {absent}; it has {', '.join(sorted(made.columns)) or 'no rows'}; name the ratings with "
            f"{'--gold-column' if kind == 'gold' else '--rating-columns'}"
        )
    repeated = [document for document, rows in made.rows.items() if rows > 1]
    if repeated:
        logger.warning(
            f"{label}: {len(repeated):,} documents have several rows, such as {repeated[0]!r}; the ratings of a column "
            "are averaged over them"
        )
    return made


def _failed(place: str, column: str, row: dict[str, Any]) -> list[bool]:
    """Which of a column's ratings failed, where the row says so: any other that is null is just not there."""
    if column == "score":
        return [row.get("score_status") == "failed" and row.get("score") is None]
    try:
        return (failed_votes(row) if column == "scores" else None) or []
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error


def _cells(column: str, value: Any) -> list[tuple[str, Any]]:
    """A list holds one rating for each of several raters, told apart by position."""
    return [(f"{column}[{i}]", one) for i, one in enumerate(value)] if isinstance(value, list) else [(column, value)]


def _document_id(place: str, row: dict[str, Any], source: SourceConfig) -> str:
    names = [source.id_column] if source.id_column else _ID_COLUMNS
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    if isinstance(row.get(source.text_column), str):
        return text_id(row[source.text_column])
    raise InputError(f"{place} has no {' or '.join(names)}; name the column of the document's id")


def _number(place: str, column: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{place}: column {column!r} holds {value!r}, not a number") from None
    if math.isinf(number):
        raise InputError(f"{place}: column {column!r} holds {value!r}, which is no score")
    return None if math.isnan(number) else number


# --- All inputs together ---------------------------------------------------------------------------------------------


def _others(one: _Input, inputs: Sequence[_Input]) -> set[str]:
    return {document for other in inputs if other is not one for document in other.rows}


def _check_join(inputs: Sequence[_Input]) -> None:
    """Several inputs must share ids, or their figures would be of nothing."""
    for one in inputs[1:]:
        if one.rows.keys().isdisjoint(_others(one, inputs)):
            mine = one.some_left_out or list(one.rows)[:2]
            theirs = list(inputs[0].rows)[:2]
            raise InputError(
                f"no document of {one.path} is in another input: its ids are like {', '.join(mine) or '(no rows)'}, "
                f"those of {inputs[0].path} like {', '.join(theirs) or '(no rows)'}; "
                "name the right columns with --id-column and --gold-id-column"
            )


def _summary(one: _Input, inputs: Sequence[_Input], with_gold: bool) -> RatedInput:
    unmatched = one.left_out
    if len(inputs) > 1 and (one.kind == "gold" or not with_gold):
        others = _others(one, inputs)
        unmatched += sum(count for document, count in one.rows.items() if document not in others)
    return RatedInput(
        path=one.path,
        kind=one.kind,
        digest=one.digest,
        rows=one.rows.total() + one.left_out,
        documents=len(one.rows),
        unmatched_rows=unmatched,
    )


def _names(raters: Sequence[_Rater]) -> list[str]:
    """The shortest names that tell the raters apart."""
    lengths = [0] * len(raters)
    while True:
        names = [rater.names[length] for rater, length in zip(raters, lengths, strict=True)]
        clashes = [i for i, name in enumerate(names) if names.count(name) > 1]
        if not clashes:
            return names
        for i in clashes:
            if lengths[i] + 1 == len(raters[i].names):
                raise InputError(f"{names[i]} is given twice")
            lengths[i] += 1


def _strata(column: str, inputs: Sequence[_Input], documents: Sequence[str]) -> list[str]:
    known = [one.strata[column] for one in inputs if column in one.columns]
    if not known:
        columns = sorted({name for one in inputs for name in one.columns})
        raise InputError(f"no table has the column {column!r} to compare by; there are {', '.join(columns) or 'none'}")
    return [next((of[document] for of in known if document in of), NO_STRATUM) for document in documents]


def _warn_of_scores_outside(
    score_range: tuple[float, float] | None, names: Sequence[str], values: NDArray[np.float64]
) -> None:
    """Say whose scores are not on the scale of the prompt."""
    if score_range is None:
        return
    low, high = score_range
    for name, given in zip(names, values.T, strict=True):
        outside = given[(given < low - 0.5) | (given >= high + 0.5)]
        if len(outside):
            logger.warning(
                f"{name}: {len(outside):,} of {np.isfinite(given).sum():,} scores lie outside the range of {low:g} to "
                f"{high:g}, such as {outside[0]:g}; figures of classes take the nearest score within, all others take "
                "them as they are"
            )


def _score_range(inputs: Sequence[_Input]) -> tuple[float, float] | None:
    ranges = {one.criterion.bounds: one.path for one in inputs if one.criterion}
    if len(ranges) > 1:
        raise InputError(
            "the inputs have different score ranges: "
            + "; ".join(f"{path} from {low:g} to {high:g}" for (low, high), path in ranges.items())
        )
    return next(iter(ranges), None)
