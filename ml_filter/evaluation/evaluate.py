"""Evaluate a head on labelled documents, such as human gold, and compare it with another head on the same ones."""

from __future__ import annotations

from collections.abc import Sequence
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
from ml_filter.documents.writer import file_digest
from ml_filter.errors import InputError
from ml_filter.evaluation.collector import SCORE_COLUMNS, Collector
from ml_filter.evaluation.result import EVALUATION_NAME, REPORT_NAME, HeadEvaluation, Unit, evaluation_report
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.info import CalibratedCriterion, read_info
from ml_filter.heads.kinds import load_head
from ml_filter.heads.labels import Labelled, LabelledDocuments
from ml_filter.heads.load import head_origin, resolve_head
from ml_filter.heads.train import TRAINING_NAME, head_parent
from ml_filter.progress import progress
from ml_filter.statistics.quality import HeadScores

_SHARD = "predictions"


def evaluate_head(
    model_directory: str | Path,
    gold: SourceConfig,
    label_column: str,
    output: str | Path,
    compare: str | Path | None = None,
    criterion: str | None = None,
    earlier: Sequence[Manifest] = (),
) -> tuple[HeadEvaluation, Manifest]:
    """Score labelled documents with a head and compare the scores with the labels.

    Writes shards with each document's `id`, `label`, `score` (null: none), `int_score`, the other head's
    `compared_score`, its length in `tokens` or `words` and the columns of the strata; all figures as
    `evaluation.json`; and a page, `evaluation.html`.

    Args:
        model_directory: the head: a directory, or a name that `resolve_head` finds.
        gold: documents with labels.
        label_column: column of the labels.
        output: directory or URL; `{digest}` in it is replaced by the digest of heads and documents.
        compare: a second head, such as the one in production. If it has several criteria, the one of the same name is
            compared; its only criterion is compared whatever its name.
        criterion: of the head; None: its only one.
        earlier: outputs of this function. If one has a head's scores of these very documents (by the digests of both),
            they are reused.

    Raises:
        InputError: a head or the labels cannot be found, or do not fit each other.
    """
    data = LabelledDocuments(gold, label_column)
    directories = [resolve_head(name) for name in (model_directory, compare) if name is not None]
    parents = [head_parent(directory) for directory in directories]
    settings = {"label_column": label_column, "criterion": criterion}
    with OutputDirectory(output, "predictions", settings, [*data.parents, *parents]) as out:
        if out.manifest:
            return HeadEvaluation.model_validate_json(out.fs.cat_file(f"{out.root}/{EVALUATION_NAME}")), out.manifest
        heads = [
            _find_scores(directory, parent, data.parents, settings, earlier, compared=index > 0)
            or _HeadScores(directory, criterion, compared=index > 0)
            for index, (directory, parent) in enumerate(zip(directories, parents, strict=True))
        ]
        _check_ranges(heads, [parent.path for parent in parents])
        scale = heads[0].criterion
        column = 0 if len(data.criteria) == 1 else _column(data.names, criterion, ", ".join(gold.paths))
        collector, seen = Collector(heads=len(heads), unit=heads[0].unit), 0
        with out.new_shard(_SHARD) as writer, out.new_rejects(_SHARD) as rejects, progress("Evaluating") as bar:
            for chunk in data:
                seen += len(chunk.ids)
                labelled = _with_label(chunk, column)
                if not labelled.ids:
                    continue
                scores = [
                    HeadScores.from_scores(head.score(labelled), head.criterion, head.criterion.calibration)
                    for head in heads
                ]
                writer.write(collector.add(labelled, scores, heads[0].lengths(labelled)))
                bar.advance(len(labelled.ids))
        labels = collector.labels
        unlabelled = data.unlabelled + seen - len(labels)
        _check_labels(labels, scale, gold, label_column)
        scores_of_head = collector.scores_of(0).scores
        if not np.isfinite(scores_of_head).any():
            raise InputError(f"{parents[0].path} gives none of the labelled documents a score")
        evaluation = HeadEvaluation(
            **dict(collector.quality(scale)),
            head=parents[0].path,
            head_digest=parents[0].digest,
            criterion=scale.name,
            labels=", ".join(gold.paths),
            label_column=label_column,
            unlabelled=unlabelled,
            compared_with=None if compare is None else parents[1].path,
            comparison=collector.comparison(scale),
            worst=collector.worst(),
            length_unit=heads[0].unit,
        )
        out.put_bytes(EVALUATION_NAME, (evaluation.model_dump_json(indent=1) + "\n").encode())
        out.put_bytes(REPORT_NAME, evaluation_report(evaluation, scores_of_head, labels).encode())
        counts = {"documents": len(labels), "unscored": evaluation.unscored, "unlabelled": unlabelled}
        return evaluation, out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


class _HeadScores:
    """One criterion of a head, and its scores of texts."""

    def __init__(self, directory: Path, criterion: str | None, *, compared: bool) -> None:
        head = load_head(directory, EngineConfig())
        self._head, names = head, head.info.names
        self._column = _column(names, criterion, head_origin(directory), compared=compared)
        self.criterion = head.info.criteria[self._column]
        self.unit: Unit = head.unit

    def score(self, chunk: Labelled) -> NDArray[np.float32]:
        """Scores [documents]."""
        return self._head.score(chunk.texts)[:, self._column]

    def lengths(self, chunk: Labelled) -> Sequence[int]:
        """Lengths of whole texts [documents]."""
        return self._head.lengths(chunk.texts)


class _EarlierScores:
    """The same, from the predictions of an earlier evaluation."""

    def __init__(self, predictions: pa.Table, column: str, criterion: CalibratedCriterion) -> None:
        self.criterion, self._column = criterion, column
        self.unit: Unit = "tokens" if "tokens" in predictions.column_names else "words"
        self._left = predictions

    def score(self, chunk: Labelled) -> NDArray[np.float32]:
        """Scores [documents]; call it before `lengths`."""
        self._current, self._left = self._left[: len(chunk.ids)], self._left[len(chunk.ids) :]
        assert self._current["id"].to_pylist() == list(chunk.ids)
        scores: NDArray[np.float32] = self._current[self._column].to_numpy()
        return scores

    def lengths(self, chunk: Labelled) -> Sequence[int]:
        """Lengths of whole texts [documents]."""
        lengths: list[int] = self._current[self.unit].to_pylist()
        return lengths


def _find_scores(
    directory: Path,
    head: Parent,
    documents: Sequence[Parent],
    settings: dict[str, Any],
    earlier: Sequence[Manifest],
    *,
    compared: bool,
) -> _EarlierScores | None:
    """A head's scores in earlier predictions of the same documents, if the file exists unchanged."""
    digests = [parent.digest for parent in documents]
    for manifest in earlier:
        data, heads = manifest.parents[: len(digests)], manifest.parents[len(digests) :]
        same = manifest.kind == "predictions" and manifest.config == settings
        same &= [parent.digest for parent in data] == digests and head.digest in [parent.digest for parent in heads]
        if not same or not (directory / TRAINING_NAME).exists() or find_manifest(manifest.root) is None:
            continue
        path = manifest.shard_paths()[0]
        column = SCORE_COLUMNS[[parent.digest for parent in heads].index(head.digest)]
        if "://" in path or not Path(path).exists() or file_digest(Path(path)) != manifest.shards[0].digest:
            continue
        info = read_info(directory)
        logger.info(f"The scores of {head.path} on these documents are reused from {manifest.root}")
        index = _column(info.names, settings["criterion"], head.path, compared=compared)
        return _EarlierScores(pq.read_table(path), column, info.criteria[index])
    return None


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


def _check_ranges(heads: Sequence[_HeadScores | _EarlierScores], names: Sequence[str]) -> None:
    ranges = [(head.criterion.low, head.criterion.high) for head in heads]
    if len(set(ranges)) > 1:
        scales = [f"{name} scores from {low:g} to {high:g}" for name, (low, high) in zip(names, ranges, strict=True)]
        raise InputError(f"{' and '.join(scales)}; only heads with the same score range can be compared")


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
            f"{criterion.low:g} to {criterion.high:g}, such as {outside[0]:g}; use a column with labels in that range"
        )
