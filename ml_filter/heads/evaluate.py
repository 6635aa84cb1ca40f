"""Evaluate a head on labelled documents, such as human gold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory
from ml_filter.errors import InputError
from ml_filter.heads.labels import LabelledDocuments
from ml_filter.heads.metrics import Evaluation, evaluate_scores
from ml_filter.heads.train import head_parent, load_head
from ml_filter.progress import progress
from ml_filter.reports.evaluation import evaluation_report
from ml_filter.scoring.engine import ScoringEngine
from ml_filter.settings import ScoreConfig, SourceConfig

EVALUATION_NAME = "evaluation.json"
REPORT_NAME = "evaluation.html"
_SHARD = "predictions"


def evaluate_head(
    model_directory: str | Path, gold: SourceConfig, label_column: str, output: str | Path
) -> tuple[Evaluation, Manifest]:
    """Score labelled documents and compare.

    Writes each document's label and score as shards, the figures as `evaluation.json` and, with a plot, as
    `evaluation.html`.

    Raises:
        InputError: the model or the labels cannot be found.
    """
    data = LabelledDocuments(gold, label_column)
    parents = [*data.parents, head_parent(model_directory)]
    with OutputDirectory(output, "predictions", {"label_column": label_column}, parents) as out:
        if out.manifest:
            return Evaluation.model_validate_json(out.fs.cat_file(f"{out.root}/{EVALUATION_NAME}")), out.manifest
        model, tokenizer = load_head(model_directory)
        engine = ScoringEngine(model, tokenizer, ScoreConfig())
        scores: list[float] = []
        labels: list[float] = []
        with out.new_shard(_SHARD) as writer, out.new_rejects(_SHARD) as rejects, progress("Evaluating") as bar:
            for chunk in data:
                made = engine.score(chunk.texts)
                writer.write(pa.table({"id": list(chunk.ids), "label": list(chunk.labels), "score": pa.array(made)}))
                scores += made.tolist()
                labels += chunk.labels
                bar.advance(len(chunk.ids))
        if not labels:
            raise InputError(f"no document of {', '.join(gold.paths)} has a label in {label_column!r}")
        config = model.config
        evaluation = evaluate_scores(
            np.array(scores),
            np.array(labels),
            low=config.score_min,
            high=config.score_max,
            threshold=config.threshold,
        )
        out.put_bytes(EVALUATION_NAME, (evaluation.model_dump_json(indent=1) + "\n").encode())
        out.put_bytes(REPORT_NAME, evaluation_report(evaluation, scores, labels).encode())
        counts = {"documents": len(labels), "unlabelled": data.unlabelled}
        return evaluation, out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])
