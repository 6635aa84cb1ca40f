"""From the votes on a document to one score. Failed votes are counted and never enter it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.manifest import Manifest, Parent, read_manifest
from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.schema import AGGREGATED_SCHEMA
from ml_filter.errors import InputError
from ml_filter.progress import progress
from ml_filter.settings import AggregateConfig, VoteMethod

_SHARD = "scores"


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


def aggregate_annotations(annotations: Sequence[str | Path], config: AggregateConfig, output: str | Path) -> Manifest:
    """One score per document and criterion from one or more annotation directories.

    Memory holds the votes (three numbers a vote), not the annotations.

    Raises:
        InputError: a directory holds no annotations, or they have different score ranges for one criterion.
    """
    manifests = [read_manifest(str(path)) for path in annotations]
    for manifest in manifests:
        if manifest.kind != "annotations":
            raise InputError(f"{manifest.root} holds {manifest.kind}, not annotations")
    ranges = _score_ranges(manifests)
    settings = {**config.model_dump(mode="json"), "score_ranges": ranges}
    parents = [Parent(path=m.root, digest=m.digest) for m in manifests]
    with OutputDirectory(output, "scores", settings, parents) as out:
        if out.manifest:
            return out.manifest
        votes, failed = _gather(manifests, config)
        combine = METHODS[config.method]
        rows = []
        for (document_id, criterion), values in votes.items():
            rows.append(
                {
                    "document_id": document_id,
                    "criterion": criterion,
                    "score": combine(values) if values else None,
                    "votes": len(values),
                    "failed_votes": failed[document_id, criterion],
                    "disagreement": statistics.pstdev(values) if values else None,
                    "method": config.method,
                }
            )
        with out.new_shard(_SHARD, AGGREGATED_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
            writer.write(pa.Table.from_pylist(rows, schema=AGGREGATED_SCHEMA))
        scored = sum(row["score"] is not None for row in rows)
        counts = {"documents": len(rows), "scored": scored, "failed": len(rows) - scored}
        counts |= {"votes": sum(map(len, votes.values())), "failed_votes": failed.total()}
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


Votes = dict[tuple[str, str], list[float]]


def _gather(manifests: Sequence[Manifest], config: AggregateConfig) -> tuple[Votes, Counter[tuple[str, str]]]:
    votes: Votes = {}
    failed: Counter[tuple[str, str]] = Counter()
    columns = ["document_id", "status", "score", "expected_score"]
    with progress("Aggregating votes", sum(m.rows for m in manifests)) as bar:
        for manifest in manifests:
            criterion = str(manifest.config["criterion"])
            for path in manifest.shard_paths():
                for batch in pq.ParquetFile(path).iter_batches(columns=columns):
                    for row in batch.to_pylist():
                        key = (row["document_id"], criterion)
                        values = votes.setdefault(key, [])
                        if row["status"] != "scored":
                            failed[key] += 1
                        elif config.use == "expected" and row["expected_score"] is not None:
                            values.append(row["expected_score"])
                        else:
                            values.append(row["score"])
                    bar.advance(batch.num_rows)
    return votes, failed


def _score_ranges(manifests: Sequence[Manifest]) -> dict[str, list[float]]:
    ranges: dict[str, list[float]] = {}
    for manifest in manifests:
        criterion, score_range = str(manifest.config["criterion"]), list(manifest.config["score_range"])
        if ranges.setdefault(criterion, score_range) != score_range:
            raise InputError(
                f"{manifest.root} scores {criterion} from {score_range[0]:g} to {score_range[1]:g}, another input from "
                f"{ranges[criterion][0]:g} to {ranges[criterion][1]:g}; aggregate them apart"
            )
    return ranges
