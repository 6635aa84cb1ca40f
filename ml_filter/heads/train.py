"""Train a head: look at every labelled document once, fit, calibrate, evaluate on documents kept apart."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout
from loguru import logger
from pydantic import BaseModel

from ml_filter import __version__
from ml_filter.config import Settings
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.output_directory import with_digest
from ml_filter.documents.writer import file_digest
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.encoder import shown_name
from ml_filter.heads.info import CONFIG_NAME, CalibratedCriterion, HeadInfo
from ml_filter.heads.labels import Groups, LabelledDocuments, text_keys
from ml_filter.heads.load import head_origin, resolve_head
from ml_filter.heads.profile import Profile, script_of
from ml_filter.prepare.sampling import sampling_key
from ml_filter.progress import progress
from ml_filter.statistics.calibration import fit_calibration
from ml_filter.statistics.evaluation import Evaluation, evaluate_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ml_filter.heads.members import Member

MIN_LABELS = 20
TRAINING_NAME = "training.json"
SCRATCH_NAME = ".finetune"
TRAINED_ON_NAME = "trained_on.safetensors"
"""`text_keys` of the documents that a head was trained on, in rising order: hashes, from which no text can be had."""


class TrainingResult(BaseModel):
    """What `training.json` beside the model holds. Written last: without it the model is not complete.

    `test` is on the documents kept apart, `cross_validated` on those trained on, each by a head fitted on others (where
    the encoder is trained, on the one fold that it was not trained on, which chose its checkpoint); by criterion.
    """

    config_digest: str
    engine: str
    documents: int
    unlabelled: int
    train_documents: int
    test_documents: int
    test: dict[str, Evaluation]
    cross_validated: dict[str, Evaluation]
    history: list[dict[str, float]] = []
    """Of training step by step: losses, rates and figures on the validation documents."""
    parents: list[Parent]
    lineage: list[dict[str, object]]
    code_version: str = __version__

    @property
    def evaluation(self) -> Evaluation:
        """Figures of the first criterion on the documents kept apart."""
        return next(iter(self.test.values()))


class TrainedHead(BaseModel):
    """A head on disk: its directory, the digest of its files, and what is known of its training."""

    directory: str
    digest: str
    training: TrainingResult


@dataclass(frozen=True)
class KnownLabels:
    """All labels, by document: [documents, criteria]; which documents are for the test; a number for each of the
    `Groups`."""

    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    is_test: NDArray[np.bool_]
    groups: NDArray[np.uint64]
    bytes: NDArray[np.int64]
    scripts: NDArray[np.str_]
    texts: NDArray[np.uint64]
    """`text_keys` of the documents."""


def train_head(
    labels: SourceConfig, config: TrainConfig, output: str | Path, documents: SourceConfig | None = None
) -> TrainedHead:
    """Fit a head and save it to `output`.

    Args:
        labels: documents with label columns, or a directory of aggregated scores.
        config: engine, encoder, head, label columns, test share, seed.
        output: the head's directory: safetensors, config, tokenizer, training.json.
        documents: the documents of aggregated scores; not given: those that were annotated.

    Raises:
        InputError: labels are missing, too few or all the same, or `output` holds another head.
        ConfigError: the encoder cannot be loaded.
    """
    data = open_labels(labels, config, documents)
    digest = digest_of([config.model_dump(mode="json"), [parent.digest for parent in data.parents]])
    with alone_in(with_digest(output, digest)) as target:
        earlier = target / TRAINING_NAME
        if earlier.exists():
            result = _read_training(earlier)
            if result.config_digest != digest:
                raise InputError(f"{output} holds a head of other labels or settings; choose another --output")
        else:
            _train(data, config, target, digest)
        return read_head(target)


@contextmanager
def alone_in(directory: str) -> Iterator[Path]:
    """The directory of a head, made where there is none, which no other process writes to meanwhile.

    Raises:
        InputError: another process does.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{directory} is being written by another process") from None
    with lock:
        yield path


def _train(data: LabelledDocuments, config: TrainConfig, target: Path, digest: str) -> None:
    from ml_filter.heads.members import fold_numbers, open_member

    with open_member(config, data.criteria, Settings().embedding_dir, target / SCRATCH_NAME) as member:
        known = take_up(data, member.add, config)
        check_labels(known, data.criteria)
        train, test = np.flatnonzero(~known.is_test), np.flatnonzero(known.is_test)
        logger.info(f"Fitting on {len(train):,} documents")
        folds = fold_numbers(known.groups[train])
        check_folds(known.labels[train], folds, data.criteria)
        crossed = member.cross_fit(train, known.labels[train], known.weights[train], folds)
        criteria = [
            _calibrated(criterion, config, crossed[:, column], known, train, column, member.crossed)
            for column, criterion in enumerate(data.criteria)
        ]
        member.fit(train, known.labels[train], known.weights[train])
        scores = member.predict(test)
        info = HeadInfo(
            engine=config.engine,
            criteria=criteria,
            profile=_profile(criteria, crossed, known, train),
            provenance={
                "labels": data.lineage,
                "training": {**config.model_dump(mode="json"), "encoder": shown_name(config.encoder)},
                "encoder_digest": member.encoder_digest,
            },
        )
        result = TrainingResult(
            config_digest=digest,
            engine=config.engine,
            documents=len(known.labels),
            unlabelled=data.unlabelled,
            train_documents=len(train),
            test_documents=len(test),
            test=_evaluations(criteria, scores, known.labels[test]),
            cross_validated=_evaluations(criteria, crossed, known.labels[train]),
            history=list(member.history),
            parents=data.parents,
            lineage=data.lineage,
        )
        _save(member, info, result, np.unique(known.texts[train]), target)


def open_labels(labels: SourceConfig, config: TrainConfig, documents: SourceConfig | None) -> LabelledDocuments:
    """The labels that a configuration chooses; raises as `LabelledDocuments`."""
    return LabelledDocuments(
        labels,
        config.label_column,
        documents,
        config.criterion,
        config.trust_agreement,
        config.score_range,
        config.threshold,
    )


def take_up(data: LabelledDocuments, add: Callable[[Sequence[str]], None], config: TrainConfig) -> KnownLabels:
    """Give all texts to `add`, chunk by chunk; returns what is known of the documents.

    Raises:
        InputError: no document has a label.
    """
    labels: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    keys: list[int] = []
    together = Groups(config.near_duplicates)
    lengths: list[int] = []
    scripts: list[str] = []
    texts: list[NDArray[np.uint64]] = []
    with progress(f"Reading labelled documents ({config.engine})") as bar:
        for chunk in data:
            add(chunk.texts)
            together.add(chunk)
            labels.append(chunk.labels)
            weights.append(chunk.weights)
            keys += [sampling_key(group, config.seed, "test") for group in chunk.groups]
            lengths += [len(text.encode("utf-8", "surrogatepass")) for text in chunk.texts]
            scripts += map(script_of, chunk.texts)
            texts.append(text_keys(chunk.texts))
            bar.advance(len(chunk.ids))
    if not keys:
        raise InputError(f"no document has a label of {', '.join(data.names)}")
    groups = together.draw(keys)
    return KnownLabels(
        np.concatenate(labels),
        np.concatenate(weights),
        for_test(groups, config.test_share),
        groups,
        np.array(lengths),
        np.array(scripts),
        np.concatenate(texts),
    )


def _calibrated(
    criterion: Criterion,
    config: TrainConfig,
    scores: NDArray[np.float64],
    known: KnownLabels,
    places: NDArray[np.int64],
    place: int,
    fitted_on: str,
) -> CalibratedCriterion:
    """The criterion with what scores of documents that the head was not fitted on say about their labels."""
    uncalibrated = CalibratedCriterion(**criterion.model_dump())
    if config.calibration is None:
        return uncalibrated
    labels = known.labels[places, place]
    there = ~np.isnan(labels)
    calibration = fit_calibration(
        np.clip(scores[there], criterion.low, criterion.high),
        labels[there],
        criterion,
        method=config.calibration,
        tokens=known.bytes[places][there],
        fitted_on=fitted_on,
    )
    return uncalibrated.model_copy(update={"calibration": calibration})


def _profile(
    criteria: list[CalibratedCriterion], scores: NDArray[np.float64], known: KnownLabels, places: NDArray[np.int64]
) -> Profile:
    made = Profile.of(criteria)
    made.add_texts(known.bytes[places].tolist(), known.scripts[places].tolist())
    for place, criterion in enumerate(criteria):
        made.add_scores(criterion, np.clip(scores[:, place], criterion.low, criterion.high))
    return made


def _evaluations(
    criteria: list[CalibratedCriterion], scores: NDArray[np.float64], labels: NDArray[np.float64]
) -> dict[str, Evaluation]:
    made = {}
    for place, criterion in enumerate(criteria):
        there = ~np.isnan(labels[:, place])
        there &= np.isfinite(scores[:, place])  # not all are scored in place of cross-fitting a trained encoder
        if not there.any():
            raise InputError(
                f"the head gives no document with a label of {criterion.name} a score that is a number: its training "
                "diverged; lower the learning rate"
            )
        clamped = np.clip(scores[there, place], criterion.low, criterion.high)
        made[criterion.name] = evaluate_scores(
            clamped,
            labels[there, place],
            criterion,
            int_scores=criterion.integer_scores(clamped),
        )
    return made


def for_test(groups: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which documents [n] are kept for the test, by the key [n] of the group that each is in.

    Groups go whole, those of the smallest keys first, each if it brings the number of documents nearer to its share; so
    a few large groups are not all on one side.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    taken, wanted, chosen = 0, share * len(groups), np.zeros(len(sizes), bool)
    for group, size in enumerate(sizes.tolist()):
        if abs(taken + size - wanted) < abs(taken - wanted) and taken + size < len(groups):
            chosen[group] = True
            taken += size
    mask: NDArray[np.bool_] = chosen[group_of]
    return mask


def check_labels(known: KnownLabels, criteria: Sequence[Criterion]) -> None:
    """Refuse labels that cannot teach.

    Raises:
        InputError: they are too few, outside the score range, or all the same.
    """
    for place, criterion in enumerate(criteria):
        there = ~np.isnan(known.labels[:, place])
        values, is_test = known.labels[there, place], known.is_test[there]
        of = f" of {criterion.name}" if len(criteria) > 1 else ""
        if len(values) < MIN_LABELS:
            raise InputError(
                f"{len(values)} labelled documents{of} ({int(is_test.sum())} of them for the test) are too few; "
                f"give at least {MIN_LABELS}, better thousands"
            )
        if is_test.all() or not is_test.any():
            s = "" if (groups := len(np.unique(known.groups[there]))) == 1 else "s"
            raise InputError(
                f"the {len(values):,} labelled documents{of} are of {groups} host{s} or group{s} of near-duplicates, "
                f"which are never split: none is left for {'training' if is_test.all() else 'the test'}; give labels "
                "of more hosts, better hundreds"
            )
        outside = (values < criterion.low) | (values > criterion.high)
        if outside.any():
            raise InputError(
                f"{int(outside.sum())} labels{of} are outside the score range {criterion.low:g} to "
                f"{criterion.high:g} (the first is {values[outside][0]:g}); set score_range (--score-range LOW HIGH)"
            )
        if len(np.unique(values[~is_test])) < 2:
            raise InputError(f"all labels{of} are {values[0]:g}: there is nothing to learn")


def check_folds(labels: NDArray[np.float64], folds: NDArray[np.int64], criteria: Sequence[Criterion]) -> None:
    """Refuse labels [documents, criteria] of which one of the folds [documents] holds all of a criterion.

    Raises:
        InputError: says which criterion.
    """
    for place, criterion in enumerate(criteria):
        there = ~np.isnan(labels[:, place])
        if len(np.unique(folds[there])) < 2:
            raise InputError(
                f"the {int(there.sum()):,} documents with a label of {criterion.name} to train on are all in one fold, "
                "as they are of one host, of a few, or nearly the same: cross-validation needs others; give labels of "
                "more hosts, or leave the criterion out"
            )


def _save(member: Member, info: HeadInfo, result: TrainingResult, trained_on: NDArray[np.uint64], target: Path) -> None:
    from safetensors.numpy import save_file

    for leftover in target.glob(".saving-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as scratch:
        member.save(Path(scratch), info)
        save_file({"texts": trained_on}, Path(scratch) / TRAINED_ON_NAME)
        for file in head_files(scratch):
            place = target / file.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o644)
            os.replace(file, place)
    complete = target / f".{TRAINING_NAME}.tmp"
    complete.write_text(json.dumps(result.model_dump(mode="json"), indent=1) + "\n")
    os.replace(complete, target / TRAINING_NAME)
    shutil.rmtree(target / SCRATCH_NAME, ignore_errors=True)
    logger.info(f"Head trained on {result.train_documents:,} documents, saved to {target}")


def head_files(directory: str | Path) -> list[Path]:
    """The files of a head, those of a stack's members among them, in alphabetical order."""
    found = (path for path in Path(directory).rglob("*") if path.is_file())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(directory).parts))


def read_head(directory: str | Path) -> TrainedHead:
    """What is known of the head in a directory.

    Raises:
        InputError: the directory holds no complete head.
    """
    known = Path(directory) / TRAINING_NAME
    files = [file for file in head_files(directory) if file.suffix == ".safetensors" or file.name == CONFIG_NAME]
    if not known.exists() or not {".safetensors", ".json"} <= {file.suffix for file in files}:
        raise InputError(f"{directory} holds no trained head (no {TRAINING_NAME}); make one with ml-filter train")
    digest = digest_of({str(file.relative_to(directory)): file_digest(file) for file in files})
    return TrainedHead(directory=str(directory), digest=digest, training=_read_training(known))


def read_trained_on(directory: str | Path) -> NDArray[np.uint64] | None:
    """`text_keys` of the documents that a head was trained on, in rising order; None: of an older version."""
    from safetensors.numpy import load_file

    path = Path(directory) / TRAINED_ON_NAME
    return load_file(path)["texts"] if path.exists() else None


def _read_training(path: Path) -> TrainingResult:
    from pydantic import ValidationError

    try:
        return TrainingResult.model_validate_json(path.read_text())
    except ValidationError as error:
        raise InputError(f"{path} is of another version of ml-filter; train the head again: {error}") from error


def head_parent(head: str | Path) -> Parent:
    """What pins a head, or a published classifier, as the input of a later stage.

    Args:
        head: as `resolve_head` knows it. One of the Hub is named by repository and commit.

    Raises:
        InputError: there is neither.
    """
    directory = resolve_head(head)
    config = directory / CONFIG_NAME
    if config.exists() and not (directory / TRAINING_NAME).exists():
        names = json.loads(config.read_text()).get("architectures") or [""]
        if names[0].endswith("ForSequenceClassification"):
            files = {file.name: file_digest(file) for file in head_files(directory)}
            return Parent(path=head_origin(directory), digest=digest_of(files))
    return Parent(path=head_origin(directory), digest=read_head(directory).digest)
