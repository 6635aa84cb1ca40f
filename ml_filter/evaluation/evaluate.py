"""Evaluate a head on labelled documents, such as human gold, and compare it with another head on the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.result import read_result
from ml_filter.documents.writer import file_digest
from ml_filter.errors import InputError
from ml_filter.evaluation.result import (
    EVALUATION_NAME,
    REPORT_NAME,
    Disagreement,
    HeadEvaluation,
    Unit,
    evaluation_report,
    excerpt_of,
)
from ml_filter.heads.config import EngineConfig, TrainConfig
from ml_filter.heads.info import CalibratedCriterion
from ml_filter.heads.kinds import load_head
from ml_filter.heads.labels import STRATA, Labelled, LabelledDocuments
from ml_filter.heads.store import HeadName, LocalHead, fetch_head, find_head
from ml_filter.heads.trained import TrainedHead
from ml_filter.location import Location
from ml_filter.progress import progress
from ml_filter.statistics.quality import LENGTH, HeadScores, compare_heads, length_buckets, measure_quality

WORST = 20
_EXCERPT_CHARS = 400
_SHARD = "predictions"
_SCORE_COLUMNS = ("score", "compared_score")
"""Columns of the predictions: of the head, and of the one it is compared with."""
_SOURCE_COLUMNS = ("host", "source")
"""Columns that say where a document comes from, the most specific first."""


def evaluate_head(
    head: HeadName,
    gold: SourceConfig,
    label_column: str,
    output: str | Path,
    compare: HeadName | None = None,
    criterion: str | None = None,
    earlier: Sequence[Manifest] = (),
) -> tuple[HeadEvaluation, Manifest]:
    """Score labelled documents with a head, and with the head `compare` if given, and compare scores with labels.

    Writes shards with each document's `id`, `label`, `score` (null: none), `int_score`, the other head's
    `compared_score`, its length in `tokens` or `words` and the columns of the strata; all figures as
    `evaluation.json`; and a page, `evaluation.html`. `{digest}` in `output` is replaced by that of heads and documents.

    If one of the `earlier` outputs has a head's scores of these very documents (by the digests of both), they are
    reused. The only criterion of a compared head is used whatever its name.

    Raises:
        InputError: a head or the labels cannot be found, or do not fit each other.
    """
    data = LabelledDocuments(gold, TrainConfig(label_column=label_column))
    heads = [find_head(name) for name in (head, compare) if name is not None]
    parents = [found.parent for found in heads]
    settings = {"label_column": label_column, "criterion": criterion}
    with OutputDirectory(output, "predictions", settings, [*data.parents, *parents]) as out:
        if out.manifest:
            return read_result(out.manifest, EVALUATION_NAME, HeadEvaluation, "ml-filter evaluate"), out.manifest
        scorers = [
            _earlier_scorer(found, data.parents, settings, earlier, compared=index > 0)
            or _head_scorer(fetch_head(found), criterion, compared=index > 0)
            for index, found in enumerate(heads)
        ]
        _check_ranges(scorers, [parent.path for parent in parents])
        scale, unit = scorers[0].criterion, scorers[0].unit
        column = 0 if len(data.criteria) == 1 else _column(data.names, criterion, ", ".join(gold.paths))
        tables: list[pa.Table] = []
        sizes: list[int] = []
        worst: list[Disagreement] = []
        seen = 0
        with out.new_shard(_SHARD) as writer, out.new_rejects(_SHARD) as rejects, progress("Evaluating") as bar:
            for chunk in data:
                seen += len(chunk.ids)
                labelled = _with_label(chunk, column)
                if not labelled.ids:
                    continue
                scores = [scorer.score(labelled, len(sizes)) for scorer in scorers]
                int_scores = HeadScores.from_scores(scores[0], scale, scale.calibration).int_scores
                table = _predictions(labelled, scores, int_scores, unit, scorers[0].lengths(labelled, len(sizes)))
                writer.write(table)
                tables.append(table.drop_columns(["id"]))
                sizes += [len(text.encode(errors="replace")) for text in labelled.texts]
                worst = _keep_worst(worst, labelled, scores[0])
                bar.advance(len(labelled.ids))
        if not tables:
            raise InputError(f"no document of {', '.join(gold.paths)} has a label in {label_column!r}")
        # Chunks may not have the columns of others, which become null.
        predictions = pa.concat_tables(tables, promote_options="default")
        labels, *scores = (predictions[name].to_numpy() for name in ("label", *_SCORE_COLUMNS[: len(scorers)]))
        unlabelled = data.unlabelled + seen - len(labels)
        _check_labels(labels, scale, gold, label_column)
        if not np.isfinite(scores[0]).any():
            raise InputError(f"{parents[0].path} gives none of the labelled documents a score")
        columns = {name: predictions[name].to_pylist() for name in predictions.column_names if name in STRATA}
        columns[f"{LENGTH} {unit}"] = length_buckets(predictions[unit].to_numpy())
        source = next((name for name in _SOURCE_COLUMNS if name in columns), None)
        quality = measure_quality(
            scores[0],
            labels,
            scale,
            calibration=scale.calibration,
            columns={name: values for name, values in columns.items() if name != "host"},
            source=None if source is None else (source, columns[source]),
            tokens=np.array(sizes),
        )
        compared = [
            HeadScores.from_scores(values, scorer.criterion, scorer.criterion.calibration)
            for values, scorer in zip(scores, scorers, strict=True)
        ]
        evaluation = HeadEvaluation(
            **dict(quality),
            head=parents[0].path,
            head_digest=parents[0].digest,
            criterion=scale.name,
            labels=", ".join(gold.paths),
            label_column=label_column,
            unlabelled=unlabelled,
            compared_with=None if compare is None else parents[1].path,
            comparison=None if compare is None else compare_heads(compared[0], compared[1], labels, scale),
            worst=worst,
            length_unit=unit,
        )
        out.put_bytes(EVALUATION_NAME, (evaluation.model_dump_json(indent=1) + "\n").encode())
        out.put_bytes(REPORT_NAME, evaluation_report(evaluation, scores[0], labels).encode())
        counts = {"documents": len(labels), "unscored": evaluation.unscored, "unlabelled": unlabelled}
        return evaluation, out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


@dataclass(frozen=True)
class _Scorer:
    """One criterion of a head. `score` and `lengths` take a chunk and the number of labelled documents before it, and
    return scores and lengths of whole texts, [documents]."""

    criterion: CalibratedCriterion
    unit: Unit
    score: Callable[[Labelled, int], NDArray[np.float32]]
    lengths: Callable[[Labelled, int], Sequence[int]]


def _head_scorer(local: LocalHead, criterion: str | None, *, compared: bool) -> _Scorer:
    head = load_head(local.directory, EngineConfig())
    column = _column(head.info.names, criterion, local.origin, compared=compared)
    return _Scorer(
        head.info.criteria[column],
        head.unit,
        lambda chunk, _: head.score(chunk.texts)[:, column],
        lambda chunk, _: head.lengths(chunk.texts),
    )


def _earlier_scorer(
    head: TrainedHead | LocalHead,
    documents: Sequence[Parent],
    settings: dict[str, Any],
    earlier: Sequence[Manifest],
    *,
    compared: bool,
) -> _Scorer | None:
    """A head's scores in earlier predictions of the same documents, if the file exists unchanged."""
    if isinstance(head, LocalHead):  # a published classifier, whose criteria nobody has read yet
        return None
    digests = [parent.digest for parent in documents]
    for manifest in earlier:
        data, heads = manifest.parents[: len(digests)], manifest.parents[len(digests) :]
        same = manifest.kind == "predictions" and manifest.config == settings
        same &= [parent.digest for parent in data] == digests and head.digest in [parent.digest for parent in heads]
        if not same or find_manifest(manifest.root) is None:
            continue
        path = Location(manifest.shard_paths()[0])
        score_column = _SCORE_COLUMNS[[parent.digest for parent in heads].index(head.digest)]
        if not path.exists() or file_digest(path) != manifest.shards[0].digest:
            continue
        logger.info(f"The scores of {head.origin} on these documents are reused from {manifest.root}")
        info = head.info
        index = _column(info.names, settings["criterion"], head.origin, compared=compared)
        return _table_scorer(pq.read_table(path.path, filesystem=path.fs), score_column, info.criteria[index])
    return None


def _table_scorer(predictions: pa.Table, score_column: str, criterion: CalibratedCriterion) -> _Scorer:
    unit: Unit = "tokens" if "tokens" in predictions.column_names else "words"
    return _Scorer(
        criterion,
        unit,
        lambda chunk, start: predictions[score_column].slice(start, len(chunk.ids)).to_numpy(),
        lambda chunk, start: predictions[unit].slice(start, len(chunk.ids)).to_pylist(),
    )


def _predictions(
    chunk: Labelled,
    scores: Sequence[NDArray[np.float32]],
    int_scores: NDArray[np.int64],
    unit: Unit,
    lengths: Sequence[int],
) -> pa.Table:
    """The rows of a chunk in the shard. `int_scores` are of the first head."""
    columns = {
        "id": pa.array(chunk.ids, pa.string()),
        "label": pa.array(chunk.labels[:, 0]),
        "score": pa.array(scores[0], from_pandas=True),
        "int_score": pa.array(int_scores, pa.int32(), mask=np.isnan(scores[0])),
        unit: pa.array(lengths, pa.int64()),
    }
    columns |= {name: pa.array(values, from_pandas=True) for name, values in zip(_SCORE_COLUMNS, scores, strict=False)}
    for name, values in chunk.strata.items():
        columns[name] = pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.table(columns)


def _keep_worst(worst: list[Disagreement], chunk: Labelled, scores: NDArray[np.float32]) -> list[Disagreement]:
    """The largest disagreements of those so far and those of a chunk; of two that are equal, the first."""
    labels = chunk.labels[:, 0]
    distances = np.nan_to_num(np.abs(scores.astype(np.float64) - labels))
    rows = [row for row in np.argsort(-distances, kind="stable")[:WORST].tolist() if distances[row] > 0]
    found = [
        Disagreement(
            id=chunk.ids[row],
            label=float(labels[row]),
            score=float(scores[row]),
            excerpt=excerpt_of(chunk.texts[row], _EXCERPT_CHARS),
        )
        for row in rows
    ]
    return sorted([*worst, *found], key=lambda document: -abs(document.score - document.label))[:WORST]


def _with_label(chunk: Labelled, column: int) -> Labelled:
    """The documents of a chunk that have this label, without other labels."""
    rows = np.flatnonzero(np.isfinite(chunk.labels[:, column])).tolist()
    taken = chunk.labels[rows, column : column + 1], chunk.weights[rows, column : column + 1]
    strata = {name: [values[row] for row in rows] for name, values in chunk.strata.items()}
    return Labelled([chunk.ids[row] for row in rows], [chunk.texts[row] for row in rows], *taken, strata)


def _column(names: Sequence[str], criterion: str | None, owner: str, *, compared: bool = False) -> int:
    """The index of a criterion among those of a head or of labels; None: the only one.

    If a compared head has only one criterion, it is used whatever its name.
    """
    if compared and len(names) == 1:
        return 0
    if len(names) > 1 if criterion is None else criterion not in names:
        raise InputError(
            f"{owner} has the criteria {', '.join(names)}; choose one of them with --criterion, in a pipeline with "
            "gold_label_column: {CRITERION: COLUMN}"
        )
    return 0 if criterion is None else names.index(criterion)


def _check_ranges(heads: Sequence[_Scorer], names: Sequence[str]) -> None:
    ranges = [(head.criterion.low, head.criterion.high) for head in heads]
    if len(set(ranges)) > 1:
        scales = [f"{name} scores from {low:g} to {high:g}" for name, (low, high) in zip(names, ranges, strict=True)]
        raise InputError(f"{' and '.join(scales)}; only heads with the same score range can be compared")


def _check_labels(
    labels: NDArray[np.float64], criterion: CalibratedCriterion, gold: SourceConfig, label_column: str
) -> None:
    outside = labels[(labels < criterion.low) | (labels > criterion.high)]
    if len(outside):
        raise InputError(
            f"{len(outside):,} labels of {', '.join(gold.paths)} in {label_column!r} are outside the head's score "
            f"range {criterion.low:g} to {criterion.high:g}, such as {outside[0]:g}; use a column with labels in that "
            "range"
        )
