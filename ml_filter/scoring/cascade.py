"""A cascade: a cheap student settles the clear cases, the encoder decides the rest, and how often that changes a
decision is bounded.

The student is trained on the encoder's own scores of a sample of the corpus. It settles documents with a score under
`low`, which are dropped, or from `high` upwards, which are kept; the threshold lies between. On a part of the sample
that the student was not trained on, these two are found; on another part, that neither saw, they are tested: a
sequence of ever bolder choices, each accepted if the Clopper-Pearson upper bound of the share of all decisions that
differ from the encoder's is at most what was asked for; the first that fails ends it. So the bound holds for documents
drawn like the sample at the stated confidence, however many choices were tried.

Documents unlike the sample are not the student's to settle: those in another script or language, those of other
sources, and longer ones. A share of what it settles goes to the encoder all the same, and shows how often they really
differ.

Sources: Clopper and Pearson 1934 (the interval); Angelopoulos et al. 2021, Learn then Test (fixed sequence testing).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.output import with_digest, write_whole
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.engine import CascadeInfo, load_engine
from ml_filter.heads.info import Criterion, HeadInfo, read_info, write_config
from ml_filter.heads.labels import Groups, LabelledDocuments
from ml_filter.heads.load import resolve_head
from ml_filter.heads.profile import script_of
from ml_filter.heads.train import (
    TRAINING_NAME,
    TrainedHead,
    TrainingResult,
    alone_in,
    for_test,
    head_files,
    head_parent,
    read_head,
)
from ml_filter.heads.train import train_head as train
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents, sampling_key
from ml_filter.progress import progress
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.statistics.evaluation import evaluate_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Value = TypeVar("_Value", str, str | None)
STUDENT, ENCODER = "student", "encoder"
_SCRATCH_NAME = ".cascade"
_DISTANCES = (0.1, 0.05, 0.02)
"""As shares of the range of the scores."""
_KEPT_APART = 0.5
"""Of the sample, from the student's training."""


@dataclass(frozen=True)
class Scored:
    """Documents with the scores [documents] of both: the student's, the encoder's; and whether they are like the
    sample, so that the student may settle them."""

    student: NDArray[np.float64]
    encoder: NDArray[np.float64]
    is_like: NDArray[np.bool_]

    def take(self, places: NDArray[np.bool_]) -> Scored:
        """Some of them."""
        return Scored(self.student[places], self.encoder[places], self.is_like[places])


@dataclass(frozen=True)
class Choice:
    """From where to where the student settles nothing, and what came of it on documents that it was tested on."""

    low: float
    high: float
    tested: int
    settled: int
    changed: int
    bound: float


def build_cascade(
    head: str | Path, source: SourceConfig, config: CascadeConfig, score: ScoreConfig, output: str | Path
) -> TrainedHead:
    """Train a student for a head on a sample of a corpus and find what it may settle; saved as a head to `output`.

    Killed and called again, it goes on where it was.

    Args:
        head: as `resolve_head` knows it; it scores the sample.
        source: the corpus that is to be scored.
        config: the threshold, the share of decisions that may change, the sample.
        score: how the head scores the sample.
        output: the cascade's directory, to be used as that of any head.

    Raises:
        InputError: the head has several criteria, the sample is too small for what is asked, the bound cannot be kept,
            or `output` holds another cascade.
    """
    directory = resolve_head(head)
    info = _info(directory)
    criterion = _decided(info, config)
    _, parents = list_shards(source)
    digest = digest_of([config.model_dump(mode="json"), head_parent(directory).digest, [p.digest for p in parents]])
    with alone_in(with_digest(output, digest)) as target:
        if (target / TRAINING_NAME).exists():
            made = read_head(target)
            if made.training.config_digest != digest:
                raise InputError(f"{output} holds a cascade of another head, corpus or settings; choose another")
            return made
        _build(directory, criterion, source, config, score, target, digest)
        return read_head(target)


def _build(
    directory: Path,
    criterion: Criterion,
    source: SourceConfig,
    config: CascadeConfig,
    score: ScoreConfig,
    target: Path,
    digest: str,
) -> None:
    scratch = target / _SCRATCH_NAME
    sampled = sample_documents(source, SampleConfig(size=config.sample, seed=config.seed), scratch / "sample")
    _check_size(sampled.rows, config)
    scored = score_corpus(directory, SourceConfig(paths=[sampled.root]), score, scratch / "scored")
    labels = SourceConfig(paths=[scored.root])
    how = TrainConfig(
        engine=config.student,
        label_column="score",
        score_min=criterion.low,
        score_max=criterion.high,
        threshold=config.threshold if config.threshold is not None else criterion.threshold,
        test_share=_KEPT_APART,
        seed=config.seed,
        calibration=None,
    )
    student = train(labels, how, target / STUDENT)
    both, like, is_tested = _score_apart(student.directory, labels, how, config)
    finding, testing = both.take(~is_tested), both.take(is_tested)
    choice = choose_bounds(finding, testing, how.threshold, config.max_changed, config.confidence)
    cascade = CascadeInfo(
        **asdict(choice),
        **asdict(like),
        threshold=how.threshold,
        audit_share=config.audit_share,
        seed=config.seed,
        max_changed=config.max_changed,
        confidence=config.confidence,
        sample=sampled.rows,
        student=config.student,
    )
    _copy_head(directory, target / ENCODER)
    info = _info(directory).model_copy(update={"engine": "cascade"})
    write_config(target, info, cascade=cascade.model_dump(mode="json"))
    settled = settles(testing, choice.low, choice.high)
    evaluation = evaluate_scores(
        np.where(settled, testing.student, testing.encoder),
        testing.encoder,
        low=criterion.low,
        high=criterion.high,
        threshold=how.threshold,
    )
    result = TrainingResult(
        config_digest=digest,
        engine="cascade",
        documents=sampled.rows,
        unlabelled=student.training.unlabelled,
        train_documents=student.training.train_documents,
        test_documents=choice.tested,
        test={criterion.name: evaluation},
        cross_validated={},
        parents=[head_parent(directory), *sampled.parents],
        lineage=_lineage(directory),
    )
    content = json.dumps(result.model_dump(mode="json"), indent=1) + "\n"
    write_whole(target / TRAINING_NAME, content.encode())
    shutil.rmtree(scratch, ignore_errors=True)
    logger.info(
        f"The student settles {choice.settled:,} of {choice.tested:,} documents it was tested on, {choice.changed:,} "
        f"of them otherwise than the encoder: at most {choice.bound:.2%} of the decisions at {how.threshold:g} differ, "
        f"with {config.confidence:.0%} confidence"
    )


def choose_bounds(finding: Scored, testing: Scored, threshold: float, max_changed: float, confidence: float) -> Choice:
    """The boldest choice of what the student may settle that still passes the test.

    Args:
        finding: documents that the choices are found on.
        testing: other documents, that they are tested on.
        threshold: a document is kept where its score reaches it.
        max_changed: share of all decisions that may differ from the encoder's.
        confidence: of the bound.

    Raises:
        InputError: not even the most careful choice passes.
    """
    accepted: Choice | None = None
    for low, high in _ever_bolder(finding, threshold, most=1 + int(2 * max_changed * len(finding.student))):
        settled = settles(testing, low, high)
        changed = int((settled & ((testing.student >= threshold) != (testing.encoder >= threshold))).sum())
        bound = upper_bound(changed, len(settled), confidence)
        if bound > max_changed:
            break
        accepted = Choice(low, high, len(settled), int(settled.sum()), changed, bound)
    if accepted is None:
        raise InputError(
            f"even the most careful choice may change {bound:.2%} of the decisions, more than {max_changed:.2%}: give "
            "a larger sample, allow more changed decisions, or score with the head alone"
        )
    return accepted


def settles(scored: Scored, low: float, high: float) -> NDArray[np.bool_]:
    """Which documents the student settles."""
    clear: NDArray[np.bool_] = ((scored.student < low) | (scored.student >= high)) & scored.is_like
    return clear


def upper_bound(changed: int, documents: int, confidence: float) -> float:
    """One-sided Clopper-Pearson bound of a share."""
    from scipy.stats import beta

    return 1.0 if changed >= documents else float(beta.ppf(confidence, changed + 1, documents - changed))


def share_interval(changed: int, documents: int, confidence: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a share."""
    outside = (1 - confidence) / 2
    low = 1 - upper_bound(documents - changed, documents, 1 - outside)
    return max(low, 0.0), upper_bound(changed, documents, 1 - outside)


def _ever_bolder(found: Scored, threshold: float, most: int) -> Iterator[tuple[float, float]]:
    """Choices to try: first some that keep a distance from the worst mistakes, then those that make 0, 1, 2, ..."""
    low, high = _bounds(found, threshold, 0)
    reach = float(np.ptp(found.encoder))
    for distance in _DISTANCES:
        yield low - distance * reach, high + distance * reach
    for mistakes in range(most + 1):
        yield _bounds(found, threshold, mistakes)


def _bounds(found: Scored, threshold: float, mistakes: int) -> tuple[float, float]:
    """Bounds below and above the threshold that settle as many documents as they can with so many mistakes."""
    kept = found.encoder >= threshold
    # With m mistakes the bound may lie just above the m worst that are on the wrong side of the threshold.
    wrongly_low = np.sort(found.student[found.is_like & kept & (found.student < threshold)])
    wrongly_high = np.sort(found.student[found.is_like & ~kept & (found.student >= threshold)])[::-1]
    best = (-1, threshold, threshold)
    for below in range(mistakes + 1):
        above = mistakes - below
        low = float(wrongly_low[below]) if below < len(wrongly_low) else threshold
        high = float(np.nextafter(wrongly_high[above], np.inf)) if above < len(wrongly_high) else threshold
        best = max(best, (int(settles(found, low, high).sum()), low, high))
    return best[1], best[2]


class _Document(NamedTuple):
    """What is known of a document of the sample."""

    student: float
    encoder: float
    script: str
    language: str | None
    source: str | None
    length: int


@dataclass(frozen=True)
class _Like:
    """What documents are like that the student may settle; languages and sources are None where none has one."""

    scripts: list[str]
    languages: list[str | None] | None
    sources: list[str | None] | None
    longest: int

    @classmethod
    def of(cls, sample: Sequence[_Document], config: CascadeConfig, has: Set[str]) -> _Like:
        """What the student may settle, judged by documents that it is not tested on."""
        enough = config.min_script_share * len(sample)
        return cls(
            scripts=_frequent([one.script for one in sample], enough),
            languages=_frequent([one.language for one in sample], enough) if "language" in has else None,
            sources=_frequent([one.source for one in sample], 1) if "source" in has else None,
            longest=int(np.quantile([one.length for one in sample], config.length_quantile)),
        )

    def has(self, one: _Document) -> bool:
        """Whether a document is like them."""
        return (
            one.script in self.scripts
            and one.length <= self.longest
            and (self.languages is None or one.language in self.languages)
            and (self.sources is None or one.source in self.sources)
        )


def _frequent(values: Sequence[_Value], least: float) -> list[_Value]:
    return sorted((value for value, count in Counter(values).items() if count >= least), key=str)


def _score_apart(
    student: str, labels: SourceConfig, how: TrainConfig, config: CascadeConfig
) -> tuple[Scored, _Like, NDArray[np.bool_]]:
    """Documents that the student was not trained on: both scores, what is like them, which of them test."""
    engine = load_engine(student, ScoreConfig())
    made: list[_Document] = []
    keys: list[int] = []
    halves: list[int] = []
    has: set[str] = set()
    together = Groups(how.near_duplicates)
    data = LabelledDocuments(labels, how.label_column)
    with progress("Scoring with the student") as bar:
        for chunk in data:
            scores = engine.score(chunk.texts)[:, 0]
            together.add(chunk)
            keys += [sampling_key(group, how.seed, "test") for group in chunk.groups]
            halves += [sampling_key(group, config.seed, "bounds") for group in chunk.groups]
            has |= chunk.strata.keys()
            unknown = [None] * len(chunk.texts)
            languages, sources = (chunk.strata.get(name, unknown) for name in ("language", "source"))
            of_each = zip(chunk.texts, scores, chunk.labels[:, 0], languages, sources, strict=True)
            made += [
                _Document(float(score), float(label), script_of(text), language, source, len(text))
                for text, score, label, language, source in of_each
            ]
            bar.advance(len(chunk.ids))
    apart = for_test(together.draw(keys), how.test_share)
    tests: NDArray[np.bool_] = (together.draw(halves) % 2 == 0)[apart]
    kept = [one for one, is_apart in zip(made, apart, strict=True) if is_apart]
    like = _Like.of([one for one, is_tested in zip(kept, tests, strict=True) if not is_tested], config, has)
    scored = Scored(
        np.array([one.student for one in kept]),
        np.array([one.encoder for one in kept]),
        np.array([like.has(one) for one in kept]),
    )
    return scored, like, tests


def _info(directory: Path) -> HeadInfo:
    """What a head or a published classifier says of itself."""
    if (directory / TRAINING_NAME).exists():
        return read_info(directory)
    return load_engine(directory, ScoreConfig()).info


def _decided(info: HeadInfo, config: CascadeConfig) -> Criterion:
    if len(info.criteria) > 1:
        raise InputError(
            f"the head scores {', '.join(info.names)}: a cascade decides one criterion; train a head for it alone"
        )
    (criterion,) = info.criteria
    threshold = criterion.threshold if config.threshold is None else config.threshold
    if not criterion.low < threshold <= criterion.high:
        raise InputError(
            f"threshold {threshold:g} is outside the head's scores, {criterion.low:g} to {criterion.high:g}"
        )
    return criterion


def _check_size(documents: int, config: CascadeConfig) -> None:
    """A bound needs so many documents even where not one decision changes: (1 - share)^n is at most 1 - confidence."""
    tested = documents * _KEPT_APART / 2
    needed = math.log(1 - config.confidence) / math.log1p(-config.max_changed)
    if tested < needed:
        raise InputError(
            f"a sample of {documents:,} documents, {tested:.0f} of them to test on, cannot show that at most "
            f"{config.max_changed:.2%} of the decisions change; that takes {math.ceil(needed / tested * documents):,}"
        )


def _lineage(directory: Path) -> list[dict[str, object]]:
    return read_head(directory).training.lineage if (directory / TRAINING_NAME).exists() else []


def _copy_head(directory: Path, target: Path) -> None:
    """The head's files, under their names."""
    for file in head_files(directory):
        place = target / file.relative_to(directory)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.tmp")
        shutil.copyfile(file, temporary)
        os.replace(temporary, place)
