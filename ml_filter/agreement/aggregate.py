"""From the votes on a document to one score. Failed votes are counted and never enter it."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from loguru import logger
from pydantic import BaseModel

from ml_filter.agreement.config import AggregateConfig, VoteMethod
from ml_filter.agreement.dawid_skene import SMOOTHING, dawid_skene
from ml_filter.criterion import Criterion
from ml_filter.documents.lineage import criteria_config, criteria_of
from ml_filter.documents.manifest import Manifest, Parent, find_manifest, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.schema import AGGREGATED_SCHEMA
from ml_filter.errors import InputError
from ml_filter.progress import progress
from ml_filter.statistics.rounding import integer_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANNOTATORS_NAME = "annotators.json"
FEW_DOCUMENTS = 250
"""With 60 documents of simulated juries the mean of the votes mostly orders documents better than dawid-skene, with
250 it depends on the jury, with 1000 it never does (benchmarks/dawid_skene.py)."""
_SHARD = "scores"
_WRITE_ROWS = 10_000


def majority(votes: Sequence[float]) -> float:
    """The most frequent vote; the mean of those that tie."""
    counts = Counter(votes)
    most = max(counts.values())
    return statistics.fmean(vote for vote, count in counts.items() if count == most)


METHODS: dict[VoteMethod, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "majority": majority,
    "min": min,
    "max": max,
}
"""The methods that look at one document alone; dawid-skene looks at all of them."""


class AnnotatorReliability(BaseModel):
    """How an annotator answers: `confusion[true class][answer]` is a probability, `accuracy` the expected share of
    its votes that are the true class."""

    annotator: str
    votes: int
    accuracy: float
    confusion: list[list[float]]


class JuryReliability(BaseModel):
    """What dawid-skene found for one criterion. `classes` are the whole scores, `priors` the share of each."""

    criterion: str
    classes: list[int]
    priors: list[float]
    annotators: list[AnnotatorReliability]
    smoothing: float
    log_likelihood: float
    iterations: int
    converged: bool


def aggregate_annotations(annotations: Sequence[str | Path], config: AggregateConfig, output: str | Path) -> Manifest:
    """One score per document and criterion from one or more annotation directories.

    With several annotators or votes on a document they are its jury. `dawid-skene` takes each vote as one of the
    whole scores of the prompt's range (halves upwards), estimates each annotator's confusion matrix, and gives the
    mean of a document's posterior as its score; `annotators.json` beside the manifest holds what it found.

    Memory holds the votes and the documents' ids, not the annotations: about 150 MB for 300,000 votes on 100,000
    documents, 200 MB with `dawid-skene`.

    Raises:
        InputError: a directory holds no annotations, the same votes are there twice, one criterion has different
            score ranges or thresholds, or no document has the two votes that dawid-skene needs.
    """
    manifests = [read_manifest(path, "annotations") for path in annotations]
    _refuse_the_same(manifests)
    criteria = _same_criteria(manifests)
    settings = {**config.model_dump(mode="json"), **criteria_config(criteria.values())}
    parents = [Parent(path=m.root, digest=m.digest) for m in manifests]
    out = OutputDirectory(output, "scores", settings, parents)
    if find_manifest(out.path) is not None:
        with out:
            assert out.manifest is not None
            return out.manifest
    # Before the directory is claimed, so that votes that are refused leave nothing behind.
    votes = _gather(manifests, config)
    posteriors: dict[tuple[int, int], list[float]] = {}
    found: list[JuryReliability] = []
    if config.method == "dawid-skene":
        found = [_fit(votes, number, criteria, posteriors) for number in range(len(votes.criteria))]
    with out:
        if found:
            content = json.dumps([jury.model_dump() for jury in found], indent=1, ensure_ascii=False)
            out.put_bytes(ANNOTATORS_NAME, (content + "\n").encode())
        counts = Counter(
            documents=len(votes.documents), criteria=len(votes.criteria), annotators=len(votes.annotators), scored=0
        )
        with out.new_shard(_SHARD, AGGREGATED_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
            for rows in _in_chunks(_score_each(votes, config.method, criteria, posteriors)):
                counts.update(
                    scored=sum(row["score"] is not None for row in rows),
                    failed=sum(row["score"] is None for row in rows),
                    votes=sum(row["votes"] for row in rows),
                    failed_votes=sum(row["failed_votes"] for row in rows),
                )
                writer.write(pa.Table.from_pylist(rows, schema=AGGREGATED_SCHEMA))
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def read_reliability(scores: Manifest) -> list[JuryReliability]:
    """What dawid-skene found, one entry a criterion; empty for other methods."""
    if scores.config["method"] != "dawid-skene":
        return []
    with fsspec.open(scores.path_of(ANNOTATORS_NAME), "rb") as file:
        return [JuryReliability.model_validate(entry) for entry in json.loads(file.read())]


@dataclass(frozen=True)
class _Votes:
    """The names of what is voted on and by whom, and the votes, column by column, sorted so that those on one
    document and criterion stand together, the lowest first, failed ones (NaN) last."""

    documents: list[str]
    criteria: list[str]
    annotators: list[str]
    document: NDArray[np.int64]
    criterion: NDArray[np.int64]
    annotator: NDArray[np.int64]
    value: NDArray[np.float64]


def _gather(manifests: Sequence[Manifest], config: AggregateConfig) -> _Votes:
    names: dict[str, dict[str, int]] = {n: {} for n in ("document_id", "criterion", "annotator", "prompt_digest")}
    parts: list[list[NDArray[Any]]] = []
    columns = [*names, "vote", "status", "score", "expected_score"]
    with progress("Aggregating votes", sum(m.rows for m in manifests)) as bar:
        for source, manifest in enumerate(manifests):
            for path in manifest.shard_paths():
                for batch in pq.ParquetFile(path).iter_batches(columns=columns):
                    score = batch.column("score")
                    if config.use == "expected":
                        score = pc.coalesce(batch.column("expected_score"), score)
                    score = pc.if_else(pc.equal(batch.column("status"), "scored"), score, None)
                    parts.append(
                        [
                            *(_numbered(batch.column(name).to_pylist(), known) for name, known in names.items()),
                            batch.column("vote").to_numpy(),
                            np.full(batch.num_rows, source, dtype=np.int32),
                            score.to_numpy(zero_copy_only=False),
                        ]
                    )
                    bar.advance(batch.num_rows)
    if not parts:
        raise InputError(f"{', '.join(m.root for m in manifests)} holds no votes")
    document, criterion, annotator, prompt, vote, source_of, value = map(np.concatenate, zip(*parts, strict=True))
    known = {name: list(numbers) for name, numbers in names.items()}
    order = np.lexsort((vote, prompt, annotator, document))
    same = np.ones(len(order) - 1, dtype=bool)
    for column in (document, annotator, prompt, vote):
        same &= column[order][1:] == column[order][:-1]
    if same.any():
        one, other = order[np.flatnonzero(same)[0] :][:2]
        places = dict.fromkeys(manifests[source_of[row]].root for row in (one, other))
        raise InputError(
            f"vote {vote[one]} of {known['annotator'][annotator[one]]} on document "
            f"{known['document_id'][document[one]]!r} is there twice ({' and '.join(places)}) and would count twice; "
            "leave one out. More votes of one annotator come from annotate --votes"
        )
    order = np.lexsort((value, criterion, document))
    return _Votes(
        documents=known["document_id"],
        criteria=known["criterion"],
        annotators=known["annotator"],
        document=document[order].astype(np.int64),
        criterion=criterion[order].astype(np.int64),
        annotator=annotator[order].astype(np.int64),
        value=value[order],
    )


def _numbered(values: Iterable[str], known: dict[str, int]) -> NDArray[np.int32]:
    return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int32)


def _score_each(
    votes: _Votes,
    method: VoteMethod,
    criteria: dict[str, Criterion],
    posteriors: dict[tuple[int, int], list[float]],
) -> Iterator[dict[str, Any]]:
    """A row for each document and criterion that was voted on."""
    starts = np.flatnonzero(np.r_[True, (np.diff(votes.document) != 0) | (np.diff(votes.criterion) != 0)])
    for start, end in zip(starts, [*starts[1:], len(votes.value)], strict=True):
        document, criterion = int(votes.document[start]), int(votes.criterion[start])
        values = votes.value[start:end]
        values = values[~np.isnan(values)]
        score: float | None = None
        posterior = posteriors.get((document, criterion))
        if posterior is not None:
            low = math.ceil(criteria[votes.criteria[criterion]].low)
            score = sum(probability * (low + k) for k, probability in enumerate(posterior))
        elif len(values):
            score = METHODS[method](values.tolist())
        yield {
            "document_id": votes.documents[document],
            "criterion": votes.criteria[criterion],
            "score": score,
            "votes": len(values),
            "failed_votes": int(end - start) - len(values),
            "disagreement": float(values.std()) if len(values) else None,
            "posterior": posterior,
            "method": method,
        }


def _in_chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for _, chunk in groupby(enumerate(rows), key=lambda numbered: numbered[0] // _WRITE_ROWS):
        yield [row for _, row in chunk]


def _fit(
    votes: _Votes, criterion: int, criteria: dict[str, Criterion], posteriors: dict[tuple[int, int], list[float]]
) -> JuryReliability:
    """Dawid-Skene on the votes of one criterion; the posteriors go to `posteriors`."""
    name = votes.criteria[criterion]
    low, high = math.ceil(criteria[name].low), math.floor(criteria[name].high)
    chosen = (votes.criterion == criterion) & ~np.isnan(votes.value)
    ids, documents, per_document = np.unique(votes.document[chosen], return_inverse=True, return_counts=True)
    judges, annotators = np.unique(votes.annotator[chosen], return_inverse=True)
    if not len(ids) or per_document.max() < 2:
        raise InputError(
            f"dawid-skene cannot work on {name}: no document has two votes, and from single votes an annotator's "
            "errors cannot be told from the truth. Give the annotations of several annotators, annotate with --votes, "
            "or choose another --method"
        )
    answers = integer_scores(votes.value[chosen], low, high) - low
    result = dawid_skene(documents, annotators, answers, high - low + 1)
    if per_document.max() < 3:
        logger.warning(
            f"{name}: no document has more than two votes; where two disagree, only three or more can tell who errs"
        )
    if len(ids) < FEW_DOCUMENTS:
        logger.warning(
            f"{name}: {len(ids):,} documents are few to estimate annotators by; under {FEW_DOCUMENTS} the mean of the "
            "votes is often the better score"
        )
    if len(judges) == 1:
        logger.warning(
            f"{name}: {votes.annotators[judges[0]]} is the only annotator; its reliability says how consistent it is "
            "with itself, not how right"
        )
    if not result.converged:
        logger.warning(f"{name}: dawid-skene had not converged after {result.iterations} iterations")
    for document, posterior in zip(ids.tolist(), result.posterior.tolist(), strict=True):
        posteriors[document, criterion] = posterior
    return JuryReliability(
        criterion=name,
        classes=list(range(low, high + 1)),
        priors=result.priors.tolist(),
        annotators=[
            AnnotatorReliability(annotator=votes.annotators[judge], votes=int(count), accuracy=a, confusion=c)
            for judge, count, a, c in zip(
                judges, np.bincount(annotators), result.accuracy.tolist(), result.confusion.tolist(), strict=True
            )
        ],
        smoothing=SMOOTHING,
        log_likelihood=result.log_likelihood,
        iterations=result.iterations,
        converged=result.converged,
    )


def _refuse_the_same(manifests: Sequence[Manifest]) -> None:
    places: dict[str, str] = {}
    for manifest in manifests:
        where = manifest.root.rstrip("/") if "://" in manifest.root else str(Path(manifest.root).resolve())
        for key in {manifest.digest, where}:
            if key in places:
                raise InputError(
                    f"{places[key]} and {manifest.root} are the same annotations, and their votes would count twice; "
                    "give them once"
                )
            places[key] = manifest.root


def _same_criteria(manifests: Sequence[Manifest]) -> dict[str, Criterion]:
    """The criteria of all annotations by name.

    Raises:
        InputError: two directories define one criterion differently.
    """
    criteria: dict[str, Criterion] = {}
    defined_in: dict[str, str] = {}
    for manifest in manifests:
        for criterion in criteria_of(manifest):
            other = criteria.setdefault(criterion.name, criterion)
            if other != criterion:
                raise InputError(
                    f"{manifest.root} scores {criterion.name} {_scale(criterion)}, {defined_in[criterion.name]} "
                    f"{_scale(other)}; aggregate them separately"
                )
            defined_in.setdefault(criterion.name, manifest.root)
    return criteria


def _scale(criterion: Criterion) -> str:
    return f"from {criterion.low:g} to {criterion.high:g} with threshold {criterion.threshold:g}"
