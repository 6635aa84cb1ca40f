"""Which documents to annotate next: those with the most disagreement, or where one more vote helps most."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from loguru import logger
from numpy.typing import NDArray

from ml_filter.agreement.config import RankConfig
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import annotated_documents, only_criterion
from ml_filter.documents.manifest import Manifest, Parent, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import known_rows, read_tables
from ml_filter.documents.sources import list_shards
from ml_filter.documents.unique import find_documents
from ml_filter.errors import InputError
from ml_filter.progress import progress
from ml_filter.statistics.rounding import ROUNDING_VARIANCE

RANK_COLUMNS = ("rank", "rank_value")
_TINY = 1e-9
"""A standard deviation below this is a rounding error."""
_SHARD = "ranked"
_BLOCK = 5000
_COLUMNS = ["document_id", "criterion", "score", "votes", "disagreement", "posterior"]


def wrong_decision(
    scores: NDArray[np.float64], votes: NDArray[np.int64], disagreement: NDArray[np.float64], threshold: float
) -> NDArray[np.float64]:
    """The probability that keeping or rejecting a document at the threshold is wrong, [documents], 0 to 0.5.

    This is the expected value of perfect information, with a loss of 1 for a wrong decision. The true score is normal
    around the score, with the standard error of the votes. Its variance combines the document's votes with one vote's
    worth of the variance within documents, pooled over those with two votes or more (a scaled inverse chi-squared prior
    of one degree of freedom; Gelman et al. 2013, section 2.6).

    Args:
        scores: [documents].
        votes: their number for each document, [documents].
        disagreement: their standard deviation, [documents].
        threshold: documents at or above it are kept.
    """
    from scipy.stats import norm

    several = votes > 1
    pooled = (votes * disagreement**2)[several].sum() / max((votes - 1)[several].sum(), 1)
    variance = (max(pooled, ROUNDING_VARIANCE) + votes * disagreement**2) / votes / votes
    wrong: NDArray[np.float64] = norm.sf(np.abs(scores - threshold) / np.sqrt(variance))
    return wrong


def rank_documents(
    scores: str | Path, config: RankConfig, output: str | Path, documents: SourceConfig | None = None
) -> Manifest:
    """Write the documents to annotate next, most valuable first, as documents that annotate can read.

    `rank_value` is, by `disagreement`, the standard deviation of the document's votes; by `expected-value`, the
    probability that a filter at `threshold` decides wrongly about it, from the posterior if the scores have one, or
    from `wrong_decision`. Ties are in the order of document ids. Documents without a score are listed in rejects.jsonl
    as `no_score`. `documents` has the texts; None: the documents that were annotated, by lineage.

    Raises:
        InputError: no document has a score to rank by, or the ranked documents cannot be found.
    """
    manifest = read_manifest(scores, "scores")
    criterion = only_criterion(manifest, config.criterion)
    documents = documents or annotated_documents(manifest)
    shards, parents = list_shards(documents)
    parents.append(Parent(path=manifest.root, digest=manifest.digest))
    settings = {"rank": config.model_dump(mode="json"), "criterion": criterion.name, "source": documents.model_dump()}
    with OutputDirectory(output, "documents", settings, parents) as out:
        if out.manifest:
            return out.manifest
        with out.new_shard("candidates") as candidates, out.new_rejects(_SHARD) as rejects:
            values, without = _values(manifest, criterion, config)
            for document_id in without:
                rejects.add(manifest.root, document_id, "no_score", "every vote failed; annotate with --retry-failed")
            ranked = sorted(values, key=lambda document_id: (-values[document_id], document_id))[: config.size]
            _warn_of_ties(values, ranked, config)
            ranks = {document_id: rank for rank, document_id in enumerate(ranked, 1)}
            with progress("Finding the ranked documents", known_rows(shards)) as bar:
                for table in find_documents(shards, documents, ranked):
                    candidates.write(_take_ranked(table, ranks, values))
                    bar.advance(table.num_rows)
            for document_id in ranks:  # _take_ranked removed those it found
                rejects.add(manifest.root, document_id, "no_document", f"not in {', '.join(documents.paths)}")
        if candidates.rows == 0:
            raise InputError(
                f"{manifest.root} has no scores to rank by"
                if not ranked
                else f"none of the {len(ranked):,} ranked documents is in {', '.join(documents.paths)}; use "
                "--documents to give the documents that were annotated"
            )
        with out.new_shard(_SHARD) as writer:
            for first in range(1, len(ranked) + 1, _BLOCK):
                block = [("rank", ">=", first), ("rank", "<", first + _BLOCK)]
                writer.write(pq.read_table(candidates.path, filters=block, partitioning=None).sort_by("rank"))
        candidates.path.unlink()
        counts = {"scored": len(values), "ranked": writer.rows}
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def _warn_of_ties(values: dict[str, float], ranked: list[str], config: RankConfig) -> None:
    differ = sum(values[document_id] > _TINY for document_id in ranked)
    if config.by == "disagreement" and differ < len(ranked):
        logger.warning(
            f"only {differ:,} of the {len(ranked):,} ranked documents have votes that differ; the others are in the "
            "order of their ids. Annotate with more votes or annotators and aggregate again, or rank --by "
            "expected-value, which needs only one vote per document"
        )


def _values(manifest: Manifest, criterion: Criterion, config: RankConfig) -> tuple[dict[str, float], list[str]]:
    """The rank value of each document, and the documents that have no score."""
    table = pa.concat_tables(table for path in manifest.shard_paths() for table in read_tables(path, _COLUMNS))
    table = table.filter(pc.field("criterion") == criterion.name)
    without = table.filter(pc.field("score").is_null())["document_id"].to_pylist()
    table = table.filter(pc.field("score").is_valid())
    threshold = criterion.threshold if config.threshold is None else config.threshold
    disagreement = table.column("disagreement").to_numpy()
    if config.by == "disagreement":
        values = disagreement
    elif manifest.config["method"] == "dawid-skene":
        lowest = math.ceil(criterion.low)
        posterior = np.array(table.column("posterior").to_pylist()).reshape(len(table), -1)
        reached = posterior[:, lowest + np.arange(posterior.shape[1]) >= threshold].sum(axis=1)
        values = np.clip(np.minimum(reached, 1 - reached), 0, 0.5)
    else:
        votes = table.column("votes").to_numpy()
        values = wrong_decision(table.column("score").to_numpy(), votes, disagreement, threshold)
    return dict(zip(table.column("document_id").to_pylist(), values.tolist(), strict=True)), without


def _take_ranked(table: pa.Table, ranks: dict[str, int], values: dict[str, float]) -> pa.Table:
    """The ranked documents of a table; they are removed from `ranks`, so that a duplicate is not written again."""
    ids = table.column("id").to_pylist()
    rank = [ranks.pop(document_id, None) for document_id in ids]
    table = table.drop_columns([name for name in RANK_COLUMNS if name in table.column_names])
    table = table.append_column("rank", pa.array(rank, pa.int64()))
    table = table.append_column("rank_value", pa.array([values.get(document_id) for document_id in ids], pa.float64()))
    return table.filter(pc.is_valid(table.column("rank")))
