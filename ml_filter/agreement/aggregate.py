"""From the votes on a document to one score. Failed votes are counted and never enter it."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.agreement.config import AggregateConfig, VoteMethod
from ml_filter.agreement.dawid_skene import SMOOTHING, dawid_skene
from ml_filter.criterion import Criterion
from ml_filter.documents.lineage import criteria_config, criteria_of
from ml_filter.documents.manifest import Manifest, Parent, find_manifest, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.documents.schema import AGGREGATED_SCHEMA
from ml_filter.errors import InputError
from ml_filter.location import Location
from ml_filter.progress import progress
from ml_filter.statistics.rounding import integer_scores

ANNOTATORS_NAME = "annotators.json"
FEW_DOCUMENTS = 250
"""With 60 documents of simulated annotators the mean of the votes mostly orders documents better than dawid-skene,
with 250 it depends on the annotators, with 1000 it never does (benchmarks/dawid_skene.py)."""
_SHARD = "scores"
_WRITE_ROWS = 10_000
_NAMES = ("document_id", "criterion", "annotator", "prompt_digest")


def majority(votes: Sequence[float]) -> float:
    """The most frequent vote; the mean of those that tie."""
    return statistics.fmean(statistics.multimode(votes))


METHODS: dict[VoteMethod, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "majority": majority,
    "min": min,
    "max": max,
}
"""The methods that look at one document at a time; dawid-skene looks at all of them."""


class AnnotatorReliability(BaseModel):
    """How an annotator answers: `confusion[true class][answer]` is a probability, `accuracy` the expected share of
    its votes that are the true class."""

    annotator: str
    votes: int
    accuracy: float
    confusion: list[list[float]]


class CriterionReliability(BaseModel):
    """The estimates of dawid-skene for one criterion. `classes` are the whole scores, `priors` the share of each."""

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

    All votes on a document count, whichever directory or annotator they come from. `dawid-skene` rounds each vote to a
    whole score (halves upwards) and gives the mean of a document's posterior; its estimates of the annotators are
    written to `annotators.json`. Memory holds votes and ids: 150 to 200 MB for 300,000 votes on 100,000 documents.

    Raises:
        InputError: a directory holds no annotations, votes are duplicates, one criterion has different score ranges
            or thresholds, or no document has the two votes that dawid-skene needs.
    """
    manifests = [read_manifest(path, "annotations") for path in annotations]
    _refuse_duplicate_directories(manifests)
    criteria = _same_criteria(manifests)
    settings = {**config.model_dump(mode="json"), **criteria_config(criteria.values())}
    parents = [Parent(path=m.root, digest=m.digest) for m in manifests]
    out = OutputDirectory(output, "scores", settings, parents)
    if find_manifest(out.path) is not None:
        with out:
            assert out.manifest is not None
            return out.manifest
    # Read before the directory is claimed, so that refused votes leave nothing behind.
    votes = _read_votes(manifests, config)
    posteriors: dict[tuple[int, int], list[float]] = {}
    reliability: list[CriterionReliability] = []
    if config.method == "dawid-skene":
        reliability = [_fit(votes, number, criteria, posteriors) for number in range(len(votes.criteria))]
    with out:
        if reliability:
            content = json.dumps([entry.model_dump() for entry in reliability], indent=1, ensure_ascii=False)
            out.put_bytes(ANNOTATORS_NAME, (content + "\n").encode())
        counts = Counter(
            documents=len(votes.documents), criteria=len(votes.criteria), annotators=len(votes.annotators), scored=0
        )
        with out.new_shard(_SHARD, AGGREGATED_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
            scored = _score_documents(votes, config.method, criteria, posteriors)
            for rows in iter(lambda: list(islice(scored, _WRITE_ROWS)), []):
                counts.update(
                    scored=sum(row["score"] is not None for row in rows),
                    failed=sum(row["score"] is None for row in rows),
                    votes=sum(row["votes"] for row in rows),
                    failed_votes=sum(row["failed_votes"] for row in rows),
                )
                writer.write(pa.Table.from_pylist(rows, schema=AGGREGATED_SCHEMA))
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def read_reliability(scores: Manifest) -> list[CriterionReliability]:
    """The estimates of dawid-skene, one entry per criterion; empty for other methods."""
    if scores.config["method"] != "dawid-skene":
        return []
    content = json.loads(Location(scores.path_of(ANNOTATORS_NAME)).read_bytes())
    return [CriterionReliability.model_validate(entry) for entry in content]


@dataclass(frozen=True)
class _Votes:
    """The votes, column by column, with documents, criteria and annotators as indices into their names.

    Votes on one document and criterion are adjacent, the lowest first, failed ones (NaN) last.
    """

    documents: list[str]
    criteria: list[str]
    annotators: list[str]
    document: NDArray[np.int64]
    criterion: NDArray[np.int64]
    annotator: NDArray[np.int64]
    value: NDArray[np.float64]


def _read_votes(manifests: Sequence[Manifest], config: AggregateConfig) -> _Votes:
    indices: dict[str, dict[str, int]] = {name: {} for name in _NAMES}
    parts: list[list[NDArray[Any]]] = []
    columns = [*_NAMES, "vote", "status", "score", "expected_score"]
    with progress("Aggregating votes", sum(m.rows for m in manifests)) as bar:
        for source, manifest in enumerate(manifests):
            for path in manifest.shard_paths():
                for table in read_tables(path, columns):
                    score = table["score"]
                    if config.use == "expected":
                        score = pc.coalesce(table["expected_score"], score)
                    score = pc.if_else(pc.equal(table["status"], "scored"), score, None)
                    codes = []
                    for name, index in indices.items():  # new names get the next numbers
                        numbers = (index.setdefault(value, len(index)) for value in table[name].to_pylist())
                        codes.append(np.fromiter(numbers, np.int64, table.num_rows))
                    sources = np.full(table.num_rows, source, dtype=np.int32)
                    parts.append([*codes, table["vote"].to_numpy(), sources, score.to_numpy()])
                    bar.advance(table.num_rows)
    if not parts:
        raise InputError(f"{', '.join(m.root for m in manifests)} has no votes")
    document, criterion, annotator, prompt, vote, source_of, value = map(np.concatenate, zip(*parts, strict=True))
    names = {name: list(index) for name, index in indices.items()}
    order = np.lexsort((vote, prompt, annotator, document))
    same = np.ones(len(order) - 1, dtype=bool)
    for column in (document, annotator, prompt, vote):
        same &= column[order][1:] == column[order][:-1]
    if same.any():
        first, second = order[np.flatnonzero(same)[0] :][:2]
        roots = dict.fromkeys(manifests[source_of[row]].root for row in (first, second))
        raise InputError(
            f"vote {vote[first]} of {names['annotator'][annotator[first]]} on document "
            f"{names['document_id'][document[first]]!r} is a duplicate ({' and '.join(roots)}); aggregate only one of "
            "the two. To get several votes of one annotator, use annotate --votes"
        )
    order = np.lexsort((value, criterion, document))
    return _Votes(
        documents=names["document_id"],
        criteria=names["criterion"],
        annotators=names["annotator"],
        document=document[order],
        criterion=criterion[order],
        annotator=annotator[order],
        value=value[order],
    )


def _score_documents(
    votes: _Votes,
    method: VoteMethod,
    criteria: dict[str, Criterion],
    posteriors: dict[tuple[int, int], list[float]],
) -> Iterator[dict[str, Any]]:
    """A row for each document and criterion with a vote."""
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


def _fit(
    votes: _Votes, criterion: int, criteria: dict[str, Criterion], posteriors: dict[tuple[int, int], list[float]]
) -> CriterionReliability:
    """Dawid-Skene on the votes of one criterion; the posteriors go to `posteriors`."""
    name = votes.criteria[criterion]
    low, high = math.ceil(criteria[name].low), math.floor(criteria[name].high)
    chosen = (votes.criterion == criterion) & ~np.isnan(votes.value)
    ids, documents, per_document = np.unique(votes.document[chosen], return_inverse=True, return_counts=True)
    annotator_ids, annotators = np.unique(votes.annotator[chosen], return_inverse=True)
    if not len(ids) or per_document.max() < 2:
        raise InputError(
            f"dawid-skene needs documents with at least two votes, and {name} has none. Aggregate the annotations of "
            "several annotators, annotate with --votes, or use another --method"
        )
    answers = integer_scores(votes.value[chosen], low, high) - low
    result = dawid_skene(documents, annotators, answers, high - low + 1)
    _warn_of_weak_estimates(name, len(ids), int(per_document.max()), [votes.annotators[id_] for id_ in annotator_ids])
    if not result.converged:
        logger.warning(f"{name}: dawid-skene did not converge in {result.iterations} iterations")
    for document, posterior in zip(ids.tolist(), result.posterior.tolist(), strict=True):
        posteriors[document, criterion] = posterior
    return CriterionReliability(
        criterion=name,
        classes=list(range(low, high + 1)),
        priors=result.priors.tolist(),
        annotators=[
            AnnotatorReliability(
                annotator=votes.annotators[annotator], votes=int(count), accuracy=accuracy, confusion=confusion
            )
            for annotator, count, accuracy, confusion in zip(
                annotator_ids,
                np.bincount(annotators),
                result.accuracy.tolist(),
                result.confusion.tolist(),
                strict=True,
            )
        ],
        smoothing=SMOOTHING,
        log_likelihood=result.log_likelihood,
        iterations=result.iterations,
        converged=result.converged,
    )


def _warn_of_weak_estimates(criterion: str, documents: int, most_votes: int, annotators: Sequence[str]) -> None:
    if most_votes < 3:
        logger.warning(f"{criterion}: no document has more than two votes; where they differ, neither is more credible")
    if documents < FEW_DOCUMENTS:
        logger.warning(
            f"{criterion}: {documents:,} documents are few to estimate the reliability of annotators; below "
            f"{FEW_DOCUMENTS} the mean of the votes is often the better score"
        )
    if len(annotators) == 1:
        logger.warning(
            f"{criterion}: {annotators[0]} is the only annotator; its reliability measures how consistent it is, not "
            "how accurate"
        )


def _refuse_duplicate_directories(manifests: Sequence[Manifest]) -> None:
    seen: dict[str, str] = {}
    for manifest in manifests:
        location = str(Location(manifest.root).absolute)
        for key in {manifest.digest, location}:
            if key in seen:
                raise InputError(
                    f"{seen[key]} and {manifest.root} are the same annotations, whose votes would count twice; give "
                    "only one of them"
                )
            seen[key] = manifest.root


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
