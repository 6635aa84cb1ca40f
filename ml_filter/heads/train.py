"""Train a head: read every labelled document once, fit, calibrate, and evaluate on held-out test documents."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from ml_filter.commit import code_commit
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.output_directory import with_digest
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.encoder import shown_name
from ml_filter.heads.info import CalibratedCriterion, HeadInfo, uncalibrated
from ml_filter.heads.labels import LabelledDocuments, LabelTable, check_folds, check_labels, read_label_table
from ml_filter.heads.profile import Profile
from ml_filter.heads.store import new_head, read_head
from ml_filter.heads.trained import (
    TRAINED_ON_NAME,
    TRAINING_NAME,
    TrainedHead,
    TrainingResult,
    file_digests,
    head_files,
)
from ml_filter.location import Location, write_atomically
from ml_filter.statistics.calibration import fit_calibration
from ml_filter.statistics.evaluation import Evaluation, evaluate_scores
from ml_filter.statistics.intervals import Array

if TYPE_CHECKING:
    from ml_filter.heads.kinds import Trainer

SCRATCH_NAME = ".finetune"


def train_head(
    labels: SourceConfig, config: TrainConfig, output: str | Path, documents: SourceConfig | None = None
) -> TrainedHead:
    """Fit a head and save it to `output`.

    Args:
        labels: documents with label columns, or a directory of aggregated scores.
        config: kind, encoder, output layer, label columns, share of test documents, seed.
        output: the head's directory or URL: safetensors, config, tokenizer, training.json.
        documents: the documents of aggregated scores (default: those that were annotated).

    Raises:
        InputError: labels are missing, too few or identical, or `output` has another head.
        ConfigError: the encoder cannot be loaded.
    """
    data = LabelledDocuments(labels, config, documents)
    digest = digest_of([config.model_dump(mode="json"), [parent.digest for parent in data.parents]])
    location = Location(with_digest(output, digest))
    if not (location / TRAINING_NAME).exists():
        with new_head(location, digest) as target:
            if not (target / TRAINING_NAME).exists():
                _train(data, config, target, digest)
    head = read_head(str(location))
    if head.training.config_digest != digest:
        raise InputError(f"{output} already has a head with other labels or settings; choose another --output")
    return head


def _train(data: LabelledDocuments, config: TrainConfig, target: Path, digest: str) -> None:
    from ml_filter.heads.kinds import create_trainer
    from ml_filter.heads.kinds.base import fold_numbers

    with create_trainer(config, data.criteria, Settings().embedding_dir, target / SCRATCH_NAME) as trainer:
        table = read_label_table(data, [trainer.add], config)
        check_labels(table, data.criteria)
        train, test = np.flatnonzero(~table.is_test), np.flatnonzero(table.is_test)
        labels, weights = table.labels[train], table.weights[train]
        logger.info(f"Fitting on {len(train):,} documents")
        folds = fold_numbers(table.groups[train])
        check_folds(labels, folds, data.criteria)
        crossed = trainer.cross_fit(train, labels, weights, folds)
        criteria = uncalibrated(data.criteria)
        if config.calibration is not None:
            for column, criterion in enumerate(data.criteria):
                labelled = ~np.isnan(labels[:, column])
                calibration = fit_calibration(
                    np.clip(crossed[labelled, column], criterion.low, criterion.high),
                    labels[labelled, column],
                    criterion,
                    method=config.calibration,
                    tokens=table.bytes[train][labelled],
                    fitted_on=trainer.calibrated_on,
                )
                criteria[column] = criteria[column].model_copy(update={"calibration": calibration})
        trainer.fit(train, labels, weights)
        info = HeadInfo(
            engine=config.kind,
            criteria=criteria,
            profile=_profile(criteria, crossed, table, train),
            provenance={
                "labels": data.lineage,
                "training": {**config.model_dump(mode="json"), "encoder": shown_name(config.encoder)},
                "encoder_digest": trainer.encoder_digest,
            },
        )
        result = TrainingResult(
            config_digest=digest,
            engine=config.kind,
            documents=len(table.labels),
            unlabelled=data.unlabelled,
            train_documents=len(train),
            test_documents=len(test),
            test=_evaluate(criteria, trainer.predict(test), table.labels[test]),
            cross_validated=_evaluate(criteria, crossed, labels),
            history=list(trainer.history),
            parents=data.parents,
            lineage=data.lineage,
            files={},
            commit=code_commit(),
        )
        _save(trainer, info, result, np.unique(table.texts[train]), target)


def _profile(criteria: list[CalibratedCriterion], scores: Array, table: LabelTable, rows: NDArray[np.int64]) -> Profile:
    profile = Profile.of(criteria)
    profile.add_texts(table.bytes[rows].tolist(), table.scripts[rows].tolist())
    for column, criterion in enumerate(criteria):
        profile.add_scores(criterion, np.clip(scores[:, column], criterion.low, criterion.high))
    return profile


def _evaluate(criteria: list[CalibratedCriterion], scores: Array, labels: Array) -> dict[str, Evaluation]:
    evaluations = {}
    for column, criterion in enumerate(criteria):
        # With a trained encoder only the documents of the validation fold have cross-validated scores.
        rows = np.isfinite(scores[:, column]) & ~np.isnan(labels[:, column])
        if not rows.any():
            raise InputError(
                f"the head gives no document with a label of {criterion.name} a finite score, so its training "
                "diverged; lower the learning rate"
            )
        clamped = np.clip(scores[rows, column], criterion.low, criterion.high)
        evaluations[criterion.name] = evaluate_scores(
            clamped, labels[rows, column], criterion, int_scores=criterion.integer_scores(clamped)
        )
    return evaluations


def _save(
    trainer: Trainer, info: HeadInfo, result: TrainingResult, trained_on: NDArray[np.uint64], target: Path
) -> None:
    from safetensors.numpy import save_file

    for leftover in target.glob(".saving-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as scratch:
        trainer.save(Path(scratch), info)
        save_file({"texts": trained_on}, Path(scratch) / TRAINED_ON_NAME)
        result = result.model_copy(update={"files": file_digests(Path(scratch))})
        for file in head_files(scratch):
            destination = target / file.relative_to(scratch)
            destination.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o644)
            os.replace(file, destination)
    write_atomically(target / TRAINING_NAME, result.to_json())
    shutil.rmtree(target / SCRATCH_NAME, ignore_errors=True)
    logger.info(f"Saved a head trained on {result.train_documents:,} documents to {target}")
