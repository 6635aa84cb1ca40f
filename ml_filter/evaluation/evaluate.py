"""Evaluate a head on labelled documents, such as human gold, and compare it with another head on the same ones."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.writer import file_digest
from ml_filter.errors import InputError
from ml_filter.evaluation.page import evaluation_report
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.engine import CascadeEngine, EncoderEngine, Engine, LexicalEngine, StackEngine, load_engine
from ml_filter.heads.info import CalibratedCriterion, read_info
from ml_filter.heads.labels import Labelled, LabelledDocuments
from ml_filter.heads.load import head_origin, resolve_head
from ml_filter.heads.static import StaticModel
from ml_filter.heads.train import TRAINING_NAME, head_parent
from ml_filter.prepare.ngrams import words
from ml_filter.progress import progress
from ml_filter.statistics.quality import (
    LENGTH,
    HeadComparison,
    HeadScores,
    Quality,
    compare_heads,
    length_buckets,
    measure_quality,
)

EVALUATION_NAME = "evaluation.json"
REPORT_NAME = "evaluation.html"
WORST = 20
_EXCERPT_CHARS = 400
_SHARD = "predictions"
_SOURCES = ("host", "source")
"""Columns that say where a document comes from, the finest first."""


_SCORES = ("score", "compared_score")
"""Columns of the predictions, by the place of the head."""
Unit = Literal["tokens", "words"]


class Disagreement(BaseModel):
    """A document whose score is far from its label, and the beginning of its text."""

    id: str
    label: float
    score: float
    excerpt: str


class HeadEvaluation(Quality):
    """The content of evaluation.json. `worst` holds the widest disagreements, the widest first.

    Tokens, in `table`, are taken as proportional to UTF-8 bytes. The strata of lengths are in `length_unit`: tokens of
    the head's own tokenizer, or words where it has none; whole texts are counted, though a head may read less.
    """

    head: str
    head_digest: str
    criterion: str
    labels: str
    label_column: str
    unlabelled: int
    compared_with: str | None
    comparison: HeadComparison | None
    worst: list[Disagreement]
    length_unit: str = "characters"  # as in evaluations of older versions


def evaluate_head(
    model_directory: str | Path,
    gold: SourceConfig,
    label_column: str,
    output: str | Path,
    compare: str | Path | None = None,
    criterion: str | None = None,
    earlier: Sequence[Manifest] = (),
) -> tuple[HeadEvaluation, Manifest]:
    """Score labelled documents with a head and compare.

    Writes shards with each document's `id`, `label`, `score` (null: none), `int_score`, the other head's
    `compared_score`, its length in `tokens` or `words` and the columns of the strata; all figures as
    `evaluation.json`; and a page, `evaluation.html`.

    Args:
        model_directory: the head, as `resolve_head` knows it.
        gold: documents with labels.
        label_column: their column.
        output: directory or URL; `{digest}` in it stands for what is evaluated on what.
        compare: a second head, such as the one in production. Its only criterion is compared, whatever its name; of
            several, that of the same name.
        criterion: of the head; not given: its only one.
        earlier: what this function has written before. A head whose scores of these very documents are in one of
            them, by the digests of both, scores no document again.

    Raises:
        InputError: a head or the labels cannot be found, or do not fit each other.
    """
    data = LabelledDocuments(gold, label_column)
    directories = [resolve_head(name) for name in (model_directory, compare) if name is not None]
    heads = [head_parent(directory) for directory in directories]
    settings = {"label_column": label_column, "criterion": criterion}
    with OutputDirectory(output, "predictions", settings, [*data.parents, *heads]) as out:
        if out.manifest:
            return HeadEvaluation.model_validate_json(out.fs.cat_file(f"{out.root}/{EVALUATION_NAME}")), out.manifest
        opened = [
            _find_scores(directory, head, data.parents, settings, earlier, compared=place > 0)
            or _EngineScores(directory, criterion, compared=place > 0)
            for place, (directory, head) in enumerate(zip(directories, heads, strict=True))
        ]
        _check_ranges(opened, [head.path for head in heads])
        column = 0 if len(data.criteria) == 1 else _column(data.names, criterion, ", ".join(gold.paths))
        held, seen = _Held(compared=compare is not None, unit=opened[0].unit), 0
        with out.new_shard(_SHARD) as writer, out.new_rejects(_SHARD) as rejects, progress("Evaluating") as bar:
            for whole_chunk in data:
                seen += len(whole_chunk.ids)
                chunk = _with_label(whole_chunk, column)
                if not chunk.ids:
                    continue
                made = [
                    HeadScores.from_scores(head.of(chunk), head.criterion, head.criterion.calibration)
                    for head in opened
                ]
                writer.write(held.add(chunk, made, opened[0].lengths(chunk)))
                bar.advance(len(chunk.ids))
        labels = held.joined_labels()
        unlabelled = data.unlabelled + seen - len(labels)
        _check_labels(labels, opened[0].criterion, gold, label_column)
        evaluation = HeadEvaluation(
            **dict(_quality(held, opened[0].criterion)),
            head=heads[0].path,
            head_digest=heads[0].digest,
            criterion=opened[0].criterion.name,
            labels=", ".join(gold.paths),
            label_column=label_column,
            unlabelled=unlabelled,
            compared_with=None if compare is None else heads[1].path,
            comparison=_comparison(held, opened[0].criterion),
            worst=held.worst(),
            length_unit=opened[0].unit,
        )
        out.put_bytes(EVALUATION_NAME, (evaluation.model_dump_json(indent=1) + "\n").encode())
        ours = held.joined_scores(0)
        out.put_bytes(REPORT_NAME, evaluation_report(evaluation, ours.scores, labels).encode())
        counts = {"documents": len(labels), "unscored": evaluation.unscored, "unlabelled": unlabelled}
        return evaluation, out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


class _EngineScores:
    """One criterion of a head: what it is, and its scores of texts."""

    def __init__(self, directory: Path, criterion: str | None, *, compared: bool) -> None:
        engine = load_engine(directory, EngineConfig())
        self._engine, names = engine, engine.info.names
        self._column = _column(names, criterion, head_origin(directory), compared=compared)
        self.criterion = engine.info.criteria[self._column]
        self.unit, self._count = measure_of(engine)

    def of(self, chunk: Labelled) -> NDArray[np.float32]:
        """Scores [documents]."""
        return self._engine.score(chunk.texts)[:, self._column]

    def lengths(self, chunk: Labelled) -> Sequence[int]:
        """Lengths of whole texts [documents]."""
        return self._count(chunk.texts)


def measure_of(engine: Engine) -> tuple[Unit, Callable[[Sequence[str]], Sequence[int]]]:
    """What an engine's texts are counted in, and how: tokens where it has a tokenizer, else words."""
    if isinstance(engine, CascadeEngine):
        return measure_of(engine.encoder)
    if isinstance(engine, StackEngine):
        found = [measure_of(member) for member in engine.members]
        return next((of for of in found if of[0] == "tokens"), found[0])
    if isinstance(engine, EncoderEngine):
        tokenizer = engine.tokenizer

        def tokens(texts: Sequence[str]) -> Sequence[int]:
            return list(map(len, tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]))

        return "tokens", tokens
    if isinstance(engine, LexicalEngine) and isinstance(engine.model, StaticModel):
        plain = engine.model.tokenizer
        return "tokens", lambda texts: list(map(len, plain.encode_batch_fast(list(texts), add_special_tokens=False)))
    return "words", lambda texts: [len(words(text)) for text in texts]


class _EarlierScores:
    """The same, out of the predictions of an earlier evaluation."""

    def __init__(self, predictions: pa.Table, column: str, criterion: CalibratedCriterion) -> None:
        self.criterion, self._column = criterion, column
        self.unit: Unit = "tokens" if "tokens" in predictions.column_names else "words"
        self._left = predictions

    def of(self, chunk: Labelled) -> NDArray[np.float32]:
        """Scores [documents]; asked for before their lengths."""
        self._here, self._left = self._left[: len(chunk.ids)], self._left[len(chunk.ids) :]
        assert self._here["id"].to_pylist() == list(chunk.ids)
        scores: NDArray[np.float32] = self._here[self._column].to_numpy()
        return scores

    def lengths(self, chunk: Labelled) -> Sequence[int]:
        """Lengths of whole texts [documents]."""
        found: list[int] = self._here[self.unit].to_pylist()
        return found


def _find_scores(
    directory: Path,
    head: Parent,
    documents: Sequence[Parent],
    settings: dict[str, Any],
    earlier: Sequence[Manifest],
    *,
    compared: bool,
) -> _EarlierScores | None:
    """A head's scores in earlier predictions of the same documents, if their file is still there as it was written."""
    wanted = [parent.digest for parent in documents]
    for manifest in earlier:
        data, heads = manifest.parents[: len(wanted)], manifest.parents[len(wanted) :]
        same = manifest.kind == "predictions" and manifest.config == settings
        same &= [parent.digest for parent in data] == wanted and head.digest in [parent.digest for parent in heads]
        if not same or not (directory / TRAINING_NAME).exists() or find_manifest(manifest.root) is None:
            continue
        path = manifest.shard_paths()[0]
        column = _SCORES[[parent.digest for parent in heads].index(head.digest)]
        if "://" in path or not Path(path).exists() or file_digest(Path(path)) != manifest.shards[0].digest:
            continue
        table = pq.read_table(path)
        if {"tokens", "words"} & set(table.column_names):
            info = read_info(directory)
            logger.info(f"{head.path} scored these documents before: {manifest.root}")
            place = _column(info.names, settings["criterion"], head.path, compared=compared)
            return _EarlierScores(table, column, info.criteria[place])
    return None


def _with_label(chunk: Labelled, column: int) -> Labelled:
    """The documents of a chunk that have this label, with it alone."""
    known = np.flatnonzero(np.isfinite(chunk.labels[:, column])).tolist()
    taken = chunk.labels[known, column : column + 1], chunk.weights[known, column : column + 1]
    strata = {name: [values[row] for row in known] for name, values in chunk.strata.items()}
    return Labelled([chunk.ids[row] for row in known], [chunk.texts[row] for row in known], *taken, strata)


def _column(names: Sequence[str], criterion: str | None, of: str, *, compared: bool = False) -> int:
    """The place of a criterion among those of a head or of labels; not given: the only one.

    Of a head that is compared the only one is taken, whatever its name.
    """
    if compared and len(names) == 1:
        return 0
    if len(names) > 1 if criterion is None else criterion not in names:
        raise InputError(
            f"{of} has the criteria {', '.join(names)}; choose one of them with --criterion, in a pipeline with "
            "gold_label_column: {CRITERION: COLUMN}"
        )
    return 0 if criterion is None else names.index(criterion)


def _check_ranges(heads: Sequence[_EngineScores | _EarlierScores], names: Sequence[str]) -> None:
    ranges = [(head.criterion.low, head.criterion.high) for head in heads]
    if len(set(ranges)) > 1:
        said = [f"{name} scores from {low:g} to {high:g}" for name, (low, high) in zip(names, ranges, strict=True)]
        raise InputError(f"{' and '.join(said)}; only heads of one score range can be compared")


def _check_labels(
    labels: NDArray[np.float64], criterion: CalibratedCriterion, gold: SourceConfig, label_column: str
) -> None:
    paths = ", ".join(gold.paths)
    if not len(labels):
        raise InputError(f"no document of {paths} has a label in {label_column!r}")
    outside = labels[(labels < criterion.low) | (labels > criterion.high)]
    if len(outside):
        raise InputError(
            f"{len(outside):,} labels of {paths} in {label_column!r} are outside the head's score range "
            f"{criterion.low:g} to {criterion.high:g} (the first is {outside[0]:g}); give a column of that range"
        )


class _Held:
    """What is kept of the documents while they stream by: numbers, strata, and the texts of the worst few."""

    def __init__(self, *, compared: bool, unit: Unit) -> None:
        self.unit: Unit = unit
        self.labels: list[NDArray[np.float64]] = []
        self.made: list[list[HeadScores]] = [[], []] if compared else [[]]
        self.lengths: list[int] = []
        self.bytes: list[int] = []
        self.strata: dict[str, list[str | None]] = {}
        self._worst: list[tuple[float, int, Disagreement]] = []

    def add(self, chunk: Labelled, made: Sequence[HeadScores], lengths: Sequence[int]) -> pa.Table:
        """Take a chunk with one label and one length a document; returns its rows for the shard."""
        labels = chunk.labels[:, 0]
        known = {
            name: [None if value is None else str(value) for value in values] for name, values in chunk.strata.items()
        }
        for name, values in known.items():
            self._padded(name).extend(values)
        for row, (document_id, text) in enumerate(zip(chunk.ids, chunk.texts, strict=True)):
            self._keep_worst(document_id, text, float(labels[row]), float(made[0].scores[row]))
            self.lengths.append(lengths[row])
            self.bytes.append(len(text.encode(errors="replace")))
        self.labels.append(labels)
        for held, scores in zip(self.made, made, strict=True):
            held.append(scores)
        missing = np.isnan(made[0].scores)
        columns = {
            "id": pa.array(chunk.ids, pa.string()),
            "label": pa.array(labels),
            _SCORES[0]: pa.array(made[0].scores, from_pandas=True),
            "int_score": pa.array(made[0].int_scores, pa.int32(), mask=missing),
            self.unit: pa.array(lengths, pa.int64()),
        }
        if len(made) > 1:
            columns[_SCORES[1]] = pa.array(made[1].scores, from_pandas=True)
        taken = {name: pa.array(values, pa.string()) for name, values in known.items() if name not in columns}
        return pa.table(columns | taken)

    def _padded(self, column: str) -> list[str | None]:
        """A column of the strata, None for the documents so far that have none."""
        values = self.strata.setdefault(column, [])
        values += [None] * (len(self.lengths) - len(values))
        return values

    def columns(self) -> dict[str, Sequence[str | None]]:
        """The strata's columns and the lengths, [documents] each."""
        found: dict[str, Sequence[str | None]] = {name: self._padded(name) for name in self.strata}
        return {**found, f"{LENGTH} {self.unit}": length_buckets(np.array(self.lengths))}

    def _keep_worst(self, document_id: str, text: str, label: float, score: float) -> None:
        apart = abs(score - label)
        place = -len(self.lengths)  # of two that are as far apart the first stays
        if apart > 0 and (len(self._worst) < WORST or (apart, place) > self._worst[0][:2]):
            excerpt = text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + " …"
            one = (apart, place, Disagreement(id=document_id, label=label, score=score, excerpt=excerpt))
            (heapq.heappush if len(self._worst) < WORST else heapq.heappushpop)(self._worst, one)

    def worst(self) -> list[Disagreement]:
        return [one for *_, one in sorted(self._worst, key=lambda held: held[:2], reverse=True)]

    def joined_labels(self) -> NDArray[np.float64]:
        return np.concatenate(self.labels) if self.labels else np.empty(0)

    def joined_scores(self, head: int) -> HeadScores:
        parts = self.made[head]
        return HeadScores(
            np.concatenate([part.scores for part in parts]), np.concatenate([part.int_scores for part in parts])
        )


def _quality(held: _Held, criterion: CalibratedCriterion) -> Quality:
    scores = held.joined_scores(0).scores
    if not np.isfinite(scores).any():
        raise InputError("the head gives none of the labelled documents a score")
    columns = held.columns()
    source = next((name for name in _SOURCES if name in columns), None)
    return measure_quality(
        scores,
        held.joined_labels(),
        criterion,
        calibration=criterion.calibration,
        columns={name: values for name, values in columns.items() if name != "host"},
        source=None if source is None else (source, columns[source]),
        tokens=np.array(held.bytes),
    )


def _comparison(held: _Held, criterion: CalibratedCriterion) -> HeadComparison | None:
    if len(held.made) < 2:
        return None
    return compare_heads(
        held.joined_scores(0),
        held.joined_scores(1),
        held.joined_labels(),
        criterion,
    )
