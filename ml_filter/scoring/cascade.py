"""Build a cascade: a fast first-stage model decides the clear cases, the encoder decides the rest, and the share of
decisions that this changes is bounded.

The first-stage model learns the encoder's scores of a sample of the corpus. Documents that it scores below `low` are
dropped and those that it scores `high` or more are kept; the threshold lies between the two. One part of the sample
trains the model, a second part proposes pairs of `low` and `high`, a third part tests them.

The first-stage model never decides documents unlike the sample: those in another script or language, from another
source, or longer. Some of its decisions are audited by the encoder during scoring, to measure how often they differ.

Sources: Clopper and Pearson 1934 (the bound); Angelopoulos et al. 2021, Learn then Test (fixed sequence testing).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger

from ml_filter.commit import code_commit
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.output_directory import with_digest
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.info import CalibratedCriterion, HeadInfo, read_info, write_config
from ml_filter.heads.kinds import load_head
from ml_filter.heads.kinds.base import ENCODER_DIRECTORY
from ml_filter.heads.kinds.cascade import FIRST_STAGE_DIRECTORY, CascadeInfo
from ml_filter.heads.labels import Groups, LabelledDocuments, choose_test_documents
from ml_filter.heads.profile import script_of
from ml_filter.heads.store import HeadName, LocalHead, fetch_head, new_head, read_head
from ml_filter.heads.train import train_head
from ml_filter.heads.trained import TRAINING_NAME, TrainedHead, TrainingResult, file_digests, head_files
from ml_filter.location import Location, write_atomically
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents, sampling_key
from ml_filter.progress import progress
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.statistics.evaluation import evaluate_scores
from ml_filter.statistics.intervals import exact_upper_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCRATCH_NAME = ".cascade"
_MARGINS = (0.1, 0.05, 0.02)
"""Shares of the range of scores."""
_HELD_OUT_SHARE = 0.5
"""Of the sample: not used to train the first-stage model. Half of it proposes bounds, half tests them."""


@dataclass(frozen=True)
class ScorePairs:
    """Scores [documents] by both models, and whether the first-stage model may decide the document."""

    first_stage: NDArray[np.float64]
    encoder: NDArray[np.float64]
    in_scope: NDArray[np.bool_]

    def take(self, rows: NDArray[np.bool_]) -> ScorePairs:
        """The selected documents."""
        return ScorePairs(self.first_stage[rows], self.encoder[rows], self.in_scope[rows])


@dataclass(frozen=True)
class TestedBounds:
    """The first-stage model decides scores below `low` and from `high` upwards; the counts are of the tested documents.

    `settled` of `tested` documents were decided by it, `changed` of them differently than by the encoder. With the
    configured confidence at most a share of `bound` of all decisions changes.
    """

    low: float
    high: float
    tested: int
    settled: int
    changed: int
    bound: float


def build_cascade(
    head: HeadName, source: SourceConfig, config: CascadeConfig, score: ScoreConfig, output: str | Path
) -> TrainedHead:
    """Train a first-stage model for a head on a sample of a corpus, bound its errors, and save both as one head.

    Resumable.

    Args:
        head: scores the sample.
        source: the corpus to be scored later.
        score: how the head scores the sample.
        output: directory or URL of the cascade, which can be used like any head.

    Raises:
        InputError: the head has several criteria, the sample is too small, no bounds keep `max_changed`, or `output`
            contains another cascade.
    """
    local = fetch_head(head)
    criterion = _criterion(_read_info(local.directory), config)
    _, parents = list_shards(source)
    digest = digest_of([config.model_dump(mode="json"), local.digest, [p.digest for p in parents]])
    location = Location(with_digest(output, digest))
    if not (location / TRAINING_NAME).exists():
        with new_head(location, digest) as target:
            if not (target / TRAINING_NAME).exists():
                _build(local, criterion, source, config, score, target, digest)
    cascade = read_head(str(location))
    if cascade.training.config_digest != digest:
        raise InputError(
            f"{output} already contains a cascade of another head, corpus or configuration; choose another --output"
        )
    return cascade


def _build(
    local: LocalHead,
    criterion: CalibratedCriterion,
    source: SourceConfig,
    config: CascadeConfig,
    score: ScoreConfig,
    target: Path,
    digest: str,
) -> None:
    directory, scratch = local.directory, target / _SCRATCH_NAME
    sample = sample_documents(source, SampleConfig(size=config.sample, seed=config.seed), scratch / "sample")
    _check_sample_size(sample.rows, config)
    scored = score_corpus(directory, SourceConfig(paths=[sample.root]), score, scratch / "scored")
    labels = SourceConfig(paths=[scored.root])
    threshold = criterion.threshold
    train = TrainConfig(
        kind=config.first_stage,
        label_column="score",
        score_range=criterion.bounds,
        threshold=threshold,
        test_share=_HELD_OUT_SHARE,
        seed=config.seed,
        calibration=None,
    )
    first_stage = train_head(labels, train, target / FIRST_STAGE_DIRECTORY)
    pairs, scope, is_test = _score_held_out(first_stage.origin, labels, train, config)
    proposing, testing = pairs.take(~is_test), pairs.take(is_test)
    bounds = choose_bounds(proposing, testing, threshold, config.max_changed, config.confidence)
    cascade = CascadeInfo(
        **asdict(bounds),
        **scope,
        threshold=threshold,
        audit_share=config.audit_share,
        seed=config.seed,
        max_changed=config.max_changed,
        confidence=config.confidence,
        sample=sample.rows,
        student=config.first_stage,
    )
    _copy_head(directory, target / ENCODER_DIRECTORY)
    info = _read_info(directory).model_copy(update={"engine": "cascade"})
    write_config(target, info, cascade=cascade.model_dump(mode="json"))
    evaluation = evaluate_scores(
        np.where(is_settled(testing, bounds.low, bounds.high), testing.first_stage, testing.encoder),
        testing.encoder,
        criterion,
    )
    result = TrainingResult(
        config_digest=digest,
        engine="cascade",
        documents=sample.rows,
        unlabelled=first_stage.training.unlabelled,
        train_documents=first_stage.training.train_documents,
        test_documents=bounds.tested,
        test={criterion.name: evaluation},
        cross_validated={},
        parents=[local.parent, *sample.parents],
        lineage=read_head(directory).training.lineage if (directory / TRAINING_NAME).exists() else [],
        files=file_digests(target),
        commit=code_commit(),
    )
    write_atomically(target / TRAINING_NAME, result.to_json())  # last: it marks the cascade as complete
    shutil.rmtree(scratch, ignore_errors=True)
    logger.info(
        f"The first-stage model decides {bounds.settled:,} of {bounds.tested:,} test documents, {bounds.changed:,} of "
        f"them differently than the encoder. With {config.confidence:.0%} confidence at most {bounds.bound:.2%} of all "
        f"decisions at threshold {threshold:g} change"
    )


def choose_bounds(
    proposing: ScorePairs, testing: ScorePairs, threshold: float, max_changed: float, confidence: float
) -> TestedBounds:
    """The bounds that let the first-stage model decide the most documents and still pass the test.

    Why the result can be trusted although many pairs of bounds are tried:

    - Neither the first-stage model nor the proposed bounds have seen the test documents. For one fixed pair, the
      number of changed decisions among them is therefore binomial, which is what the exact upper bound assumes.
    - The order of the pairs is fixed before the test, and the test stops at the first pair that fails. If some pairs
      in the order change too much, a wrong one can only be accepted if the first of these passes, which happens with
      probability at most 1 - confidence. So the number of pairs needs no correction.

    Args:
        proposing: documents to find candidate bounds on.
        testing: other documents, to test them on.
        threshold: documents with at least this score are kept.
        max_changed: largest share of all decisions that may differ from the encoder's.
        confidence: of the bound.

    Raises:
        InputError: even the most cautious bounds fail the test.
    """
    accepted: TestedBounds | None = None
    max_mistakes = 1 + int(2 * max_changed * len(proposing.first_stage))
    for low, high in _candidate_bounds(proposing, threshold, max_mistakes):
        settled = is_settled(testing, low, high)
        changed = int((settled & ((testing.first_stage >= threshold) != (testing.encoder >= threshold))).sum())
        bound = exact_upper_bound(changed, len(settled), confidence)
        if bound > max_changed:
            break
        accepted = TestedBounds(low, high, len(settled), int(settled.sum()), changed, bound)
    if accepted is None:
        raise InputError(
            f"even the most cautious cascade may change {bound:.2%} of the decisions, more than "
            f"max_changed={max_changed:.2%}: increase sample or max_changed, or score with the head alone"
        )
    return accepted


def is_settled(pairs: ScorePairs, low: float, high: float) -> NDArray[np.bool_]:
    """Which documents the first-stage model decides."""
    settled: NDArray[np.bool_] = ((pairs.first_stage < low) | (pairs.first_stage >= high)) & pairs.in_scope
    return settled


def _candidate_bounds(pairs: ScorePairs, threshold: float, max_mistakes: int) -> Iterator[tuple[float, float]]:
    """Bounds from cautious to bold: first with a margin around the worst mistakes, then with 0, 1, 2, ... mistakes."""
    low, high = _boldest_bounds(pairs, threshold, 0)
    score_range = float(np.ptp(pairs.encoder))
    for margin in _MARGINS:
        yield low - margin * score_range, high + margin * score_range
    for mistakes in range(max_mistakes + 1):
        yield _boldest_bounds(pairs, threshold, mistakes)


def _boldest_bounds(pairs: ScorePairs, threshold: float, mistakes: int) -> tuple[float, float]:
    """The bounds that settle the most documents with this many mistakes in total, below and above the threshold."""
    kept = pairs.encoder >= threshold
    # Sorted so that the first m are the m worst: to allow m mistakes, the bound moves just past them.
    wrongly_low = np.sort(pairs.first_stage[pairs.in_scope & kept & (pairs.first_stage < threshold)])
    wrongly_high = np.sort(pairs.first_stage[pairs.in_scope & ~kept & (pairs.first_stage >= threshold)])[::-1]
    best = (-1, threshold, threshold)
    for below in range(mistakes + 1):
        above = mistakes - below
        low = float(wrongly_low[below]) if below < len(wrongly_low) else threshold
        high = float(np.nextafter(wrongly_high[above], np.inf)) if above < len(wrongly_high) else threshold
        best = max(best, (int(is_settled(pairs, low, high).sum()), low, high))
    return best[1], best[2]


def _find_scope(sample: pa.Table, config: CascadeConfig) -> dict[str, Any]:
    """Which documents the first-stage model may decide, as fields of CascadeInfo; None for columns that are missing."""

    def frequent(name: str, min_count: float) -> list[str | None] | None:
        if name not in sample.column_names:
            return None
        counts = sample[name].value_counts().to_pylist()
        return sorted((row["values"] for row in counts if row["counts"] >= min_count), key=str)

    min_count = config.min_script_share * sample.num_rows
    return {
        "scripts": frequent("script", min_count),
        "languages": frequent("language", min_count),
        "sources": frequent("source", 1),
        "longest": int(np.quantile(sample["length"].to_numpy(), config.length_quantile)),
    }


def _in_scope(documents: pa.Table, scope: dict[str, Any]) -> NDArray[np.bool_]:
    mask = pc.less_equal(documents["length"], scope["longest"])
    for name in ("script", "language", "source"):
        if (values := scope[f"{name}s"]) is not None:
            mask = pc.and_(mask, pc.is_in(documents[name], value_set=pa.array(values, documents[name].type)))
    in_scope: NDArray[np.bool_] = mask.to_numpy()
    return in_scope


def _score_held_out(
    first_stage: str, labels: SourceConfig, train: TrainConfig, config: CascadeConfig
) -> tuple[ScorePairs, dict[str, Any], NDArray[np.bool_]]:
    """Both scores of the documents that did not train the first-stage model, their scope, and which are for testing.

    Near duplicates fall into the same part, so that the test documents are new to the model and to the bounds.
    """
    model = load_head(first_stage, ScoreConfig())
    tables: list[pa.Table] = []
    test_keys: list[int] = []
    bounds_keys: list[int] = []
    groups = Groups(train.near_duplicates)
    with progress("Scoring with the first-stage model") as bar:
        for chunk in LabelledDocuments(labels, train):
            groups.add(chunk)
            test_keys += [sampling_key(group, train.seed, "test") for group in chunk.groups]
            bounds_keys += [sampling_key(group, config.seed, "bounds") for group in chunk.groups]
            columns = {
                "first_stage": model.score(chunk.texts)[:, 0].astype(np.float64),
                "encoder": chunk.labels[:, 0].astype(np.float64),
                "script": [script_of(text) for text in chunk.texts],
                "length": [len(text) for text in chunk.texts],
            }
            tables.append(pa.table({**columns, **chunk.strata}))
            bar.advance(len(chunk.ids))
    is_held_out = choose_test_documents(groups.draw(test_keys), train.test_share)
    is_test: NDArray[np.bool_] = (groups.draw(bounds_keys) % 2 == 0)[is_held_out]
    documents = pa.concat_tables(tables, promote_options="permissive").filter(pa.array(is_held_out))
    scope = _find_scope(documents.filter(pa.array(~is_test)), config)
    first_stage_scores, encoder_scores = (documents[name].to_numpy() for name in ("first_stage", "encoder"))
    return ScorePairs(first_stage_scores, encoder_scores, _in_scope(documents, scope)), scope, is_test


def _read_info(directory: Path) -> HeadInfo:
    """The criteria of a trained head or a published classifier."""
    if (directory / TRAINING_NAME).exists():
        return read_info(directory)
    return load_head(directory, ScoreConfig()).info


def _criterion(info: HeadInfo, config: CascadeConfig) -> CalibratedCriterion:
    """The head's criterion, with the configured threshold."""
    if len(info.criteria) > 1:
        raise InputError(
            f"a cascade needs a head with one criterion; this head scores {', '.join(info.names)}. Train a head for "
            "one of them"
        )
    (criterion,) = info.criteria
    threshold = criterion.threshold if config.threshold is None else config.threshold
    if not criterion.low < threshold <= criterion.high:
        raise InputError(
            f"threshold {threshold:g} is outside the head's score range, {criterion.low:g} to {criterion.high:g}"
        )
    return criterion.model_copy(update={"threshold": threshold})


def _check_sample_size(documents: int, config: CascadeConfig) -> None:
    """Refuse a sample so small that the test fails even without a changed decision.

    The upper bound for 0 changes in n documents is 1 - (1 - confidence)^(1/n).
    """
    tested = documents * _HELD_OUT_SHARE / 2
    needed = math.log(1 - config.confidence) / math.log1p(-config.max_changed)
    if tested < needed:
        raise InputError(
            f"a sample of {documents:,} documents ({tested:.0f} of them for testing) is too small to show that at most "
            f"{config.max_changed:.2%} of the decisions change: at least {math.ceil(needed / tested * documents):,} "
            "are required"
        )


def _copy_head(directory: Path, target: Path) -> None:
    for file in head_files(directory):
        copy = target / file.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)  # a copy cut short by a kill is overwritten, because the build starts over
