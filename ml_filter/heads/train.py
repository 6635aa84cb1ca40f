"""Train a head: embed the labelled documents once, fit the regression, evaluate on documents kept apart."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock, Timeout
from loguru import logger
from pydantic import BaseModel

from ml_filter import __version__
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.output import file_digest, with_digest
from ml_filter.documents.readers import text_id
from ml_filter.documents.sampling import sampling_key
from ml_filter.errors import InputError
from ml_filter.heads.batching import run_in_batches
from ml_filter.heads.encoder import load_encoder, quiet_transformers
from ml_filter.heads.labels import LabelledDocuments
from ml_filter.heads.metrics import Evaluation, evaluate_scores
from ml_filter.heads.model import HeadModel
from ml_filter.heads.ridge import fit_ridge, label_weights
from ml_filter.progress import progress
from ml_filter.settings import ScoreConfig, SourceConfig, TrainConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

MIN_LABELS = 20
TRAINING_NAME = "training.json"
WEIGHTS_NAME = "model.safetensors"
_CHUNK = 512


class TrainingResult(BaseModel):
    """What `training.json` beside the model holds. Written last: without it the model is not complete."""

    config_digest: str
    documents: int
    unlabelled: int
    train_documents: int
    test_documents: int
    alpha: float
    evaluation: Evaluation
    parents: list[Parent]
    lineage: list[dict[str, object]]
    code_version: str = __version__


class TrainedHead(BaseModel):
    """A head on disk: its directory, the SHA-256 of its weights file, and what is known of its training."""

    directory: str
    digest: str
    training: TrainingResult


def train_head(
    labels: SourceConfig, config: TrainConfig, output: str | Path, documents: SourceConfig | None = None
) -> TrainedHead:
    """Fit a regression head on a frozen encoder and save it to `output`.

    Args:
        labels: documents with a label column, or a directory of aggregated scores.
        config: encoder, label column, test share, seed.
        output: the model's directory: safetensors, config, tokenizer, training.json.
        documents: the documents of aggregated scores; not given: those that were annotated.

    Raises:
        InputError: labels are missing, too few or all the same, or `output` holds another model.
        ConfigError: the encoder cannot be loaded.
    """
    data = LabelledDocuments(labels, config.label_column, documents, config.criterion)
    digest = digest_of([config.model_dump(mode="json"), [parent.digest for parent in data.parents]])
    target = Path(with_digest(output, digest))
    target.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{output} is being written by another process") from None
    with lock:
        earlier = target / TRAINING_NAME
        if earlier.exists():
            result = TrainingResult.model_validate_json(earlier.read_text())
            if result.config_digest != digest:
                raise InputError(f"{output} holds a head of other labels or settings; choose another --output")
        else:
            _train(data, config, target, digest)
        return read_head(target)


def _train(data: LabelledDocuments, config: TrainConfig, target: Path, digest: str) -> None:
    encoder = load_encoder(config.encoder)
    model = HeadModel.from_encoder(
        encoder,
        max_tokens=config.max_tokens,
        score_min=config.score_min,
        score_max=config.score_max,
        threshold=config.threshold,
    )
    with tempfile.TemporaryDirectory(prefix=".embeddings-", dir=target) as scratch:
        embeddings, values, is_test = _embed(data, model, encoder.tokenizer, config, Path(scratch))
        _check_labels(values, is_test, config)
        train = values[~is_test]
        coefficients, bias, alpha = fit_ridge(
            embeddings[~is_test], train, label_weights(train, config.balance), seed=config.seed
        )
        scores = np.clip(embeddings[is_test] @ coefficients + bias, config.score_min, config.score_max)
        del embeddings
    evaluation = evaluate_scores(
        scores, values[is_test], low=config.score_min, high=config.score_max, threshold=config.threshold
    )
    result = TrainingResult(
        config_digest=digest,
        documents=len(values),
        unlabelled=data.unlabelled,
        train_documents=int((~is_test).sum()),
        test_documents=int(is_test.sum()),
        alpha=alpha,
        evaluation=evaluation,
        parents=data.parents,
        lineage=data.lineage,
    )
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(coefficients).unsqueeze(0))
        model.head.bias.fill_(bias)
    model.config.provenance = {"labels": data.lineage, "training": config.model_dump(mode="json")}
    _save(model, encoder.tokenizer, result, target)


def _embed(
    data: LabelledDocuments, model: HeadModel, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, scratch: Path
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    """Embeddings on disk [n, width], labels [n] and which of them are kept apart for the test."""
    values: list[float] = []
    is_test: list[bool] = []
    batch_tokens = ScoreConfig().batch_tokens
    with progress(f"Embedding with {config.encoder}") as bar, (scratch / "embeddings").open("wb") as file:
        for chunk in data:
            for start in range(0, len(chunk.texts), _CHUNK):
                texts = chunk.texts[start : start + _CHUNK]
                made = run_in_batches(
                    texts,
                    tokenizer,
                    model.embed,
                    max_tokens=config.max_tokens,
                    batch_tokens=batch_tokens,
                    device=model.device,
                )
                file.write(made.tobytes())
                # By text, so that exact duplicates never stand on both sides.
                is_test += [sampling_key(text_id(text), config.seed) < config.test_share * 2**64 for text in texts]
                bar.advance(len(texts))
            values += chunk.labels
    if not values:
        raise InputError(f"no document has a label in {config.label_column!r}")
    embeddings = np.memmap(scratch / "embeddings", dtype=np.float32, mode="r", shape=(len(values), model.width))
    return embeddings, np.array(values), np.array(is_test)


def _check_labels(values: NDArray[np.float64], is_test: NDArray[np.bool_], config: TrainConfig) -> None:
    if len(values) < MIN_LABELS or is_test.all() or not is_test.any():
        raise InputError(
            f"{len(values)} labelled documents ({int(is_test.sum())} of them for the test) are too few; "
            f"give at least {MIN_LABELS}, better thousands"
        )
    outside = (values < config.score_min) | (values > config.score_max)
    if outside.any():
        raise InputError(
            f"{int(outside.sum())} labels are outside the score range {config.score_min:g} to {config.score_max:g} "
            f"(the first is {values[outside][0]:g}); set --score-min and --score-max"
        )
    if len(np.unique(values[~is_test])) < 2:
        raise InputError(f"all labels are {values[0]:g}: there is nothing to learn")


def _save(model: HeadModel, tokenizer: PreTrainedTokenizerBase, result: TrainingResult, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as scratch, quiet_transformers():
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in sorted(Path(scratch).iterdir()):
            file.chmod(0o644)
            os.replace(file, target / file.name)
    for leftover in target.glob(".embeddings-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    complete = target / f".{TRAINING_NAME}.tmp"
    complete.write_text(json.dumps(result.model_dump(mode="json"), indent=1) + "\n")
    os.replace(complete, target / TRAINING_NAME)
    logger.info(f"Head trained on {result.train_documents:,} documents, saved to {target}")


def load_head(directory: str | Path) -> tuple[HeadModel, PreTrainedTokenizerBase]:
    """A trained head and its tokenizer.

    Raises:
        InputError: the directory holds no complete head.
    """
    from transformers import AutoTokenizer

    _complete_head(directory)
    with quiet_transformers():
        model = HeadModel.from_pretrained(directory)
        model.eval()
        return model, AutoTokenizer.from_pretrained(directory, config=model.config)


def _complete_head(directory: str | Path) -> tuple[Path, Path]:
    known, weights = Path(directory) / TRAINING_NAME, Path(directory) / WEIGHTS_NAME
    if not known.exists() or not weights.exists():
        raise InputError(f"{directory} holds no trained head (no {TRAINING_NAME}); make one with ml-filter train")
    return known, weights


def read_head(directory: str | Path) -> TrainedHead:
    """What is known of the head in a directory.

    Raises:
        InputError: the directory holds no complete head.
    """
    known, weights = _complete_head(directory)
    training = TrainingResult.model_validate_json(known.read_text())
    return TrainedHead(directory=str(directory), digest=file_digest(weights), training=training)


def head_parent(directory: str | Path) -> Parent:
    """What pins a head as the input of a later stage."""
    return Parent(path=str(directory), digest=read_head(directory).digest)
