"""The next documents to annotate: those whose jury disagrees, or where one more vote is worth most."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from loguru import logger

from ml_filter.agreement.config import RankConfig
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import annotated_documents, only_criterion
from ml_filter.documents.manifest import Manifest, Parent, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import known_rows, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.progress import progress
from ml_filter.statistics.rounding import ROUNDING_VARIANCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANK_COLUMNS = ("rank", "rank_value")
_TINY = 1e-9
"""A standard deviation below this is rounding."""
_SHARD = "ranked"
_BLOCK = 5000
_COLUMNS = ["document_id", "criterion", "score", "votes", "disagreement", "posterior"]


def wrong_decision(
    scores: NDArray[np.float64], votes: NDArray[np.int64], disagreement: NDArray[np.float64], threshold: float
) -> NDArray[np.float64]:
    """How probable it is that keeping or dropping a document at the threshold is wrong, [documents], 0 to 0.5.

    This is the expected value of perfect information about the document, with a loss of 1 for a wrong decision. The
    true score is taken as normal around the score with the votes' standard error, whose variance takes the document's
    votes together with one vote's worth of the variance within documents, pooled over all that have two votes or more
    (a scaled inverse chi-squared prior of one degree of freedom; Gelman et al. 2013, section 2.6): a single vote has
    the pooled variance.

    Args:
        scores: [documents].
        votes: how many votes stand behind each score, [documents].
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
    """Write the documents to annotate next, the first one first, as a document source that annotate takes.

    `rank_value` is, by `disagreement`, the standard deviation of the document's votes; by `expected-value`, the
    probability that a filter at `threshold` decides wrongly about it: min(p, 1 - p) with p the probability that its
    true score reaches the threshold, from the posterior where the scores have one, else see `wrong_decision`. Ties go
    by document id. Documents without a score are not ranked: asking the same again is `annotate --retry-failed`.
    They are counted and listed in rejects.jsonl as `no_score`.

    Args:
        scores: directory of aggregated scores.
        config: how many, by what, and of which criterion.
        output: directory or URL.
        documents: where the texts are; not given: those that were annotated, by lineage.

    Raises:
        InputError: there are no scores to rank by, or their documents cannot be found.
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
                for shard in shards:
                    for table in read_shard(shard, documents, RejectsLog()):
                        candidates.write(_take_ranked(table, ranks, values))
                        bar.advance(table.num_rows)
            for document_id in ranks:  # what was found is gone from it
                rejects.add(manifest.root, document_id, "no_document", f"not in {', '.join(documents.paths)}")
        if candidates.rows == 0:
            raise InputError(
                f"{manifest.root} has no score"
                if not ranked
                else f"none of the {len(ranked):,} ranked documents is in {', '.join(documents.paths)}; give the "
                "documents that were annotated with --documents"
            )
        with out.new_shard(_SHARD) as writer:
            for first in range(1, len(ranked) + 1, _BLOCK):
                writer.write(_block(candidates.path, first))
        candidates.path.unlink()
        counts = {"scored": len(values), "ranked": writer.rows}
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def _warn_of_ties(values: dict[str, float], ranked: list[str], config: RankConfig) -> None:
    differ = sum(values[document_id] > _TINY for document_id in ranked)
    if config.by == "disagreement" and differ < len(ranked):
        logger.warning(
            f"{differ:,} of the {len(ranked):,} ranked documents have votes that differ; the others stand in the order "
            "of their ids. To tell them apart, annotate with more votes or annotators and aggregate again, or rank "
            "--by expected-value, which single votes are enough for"
        )


def _values(manifest: Manifest, criterion: Criterion, config: RankConfig) -> tuple[dict[str, float], list[str]]:
    """What each document is ranked by, and the documents that have no score."""
    table = pa.concat_tables(
        pq.read_table(path, columns=_COLUMNS, filters=pc.field("criterion") == criterion.name)
        for path in manifest.shard_paths()
    )
    without = table.filter(pc.is_null(table.column("score"))).column("document_id").to_pylist()
    table = table.filter(pc.is_valid(table.column("score")))
    disagreement = table.column("disagreement").to_numpy()
    if config.by == "disagreement":
        values = disagreement
    elif manifest.config["method"] == "dawid-skene":
        lowest = math.ceil(criterion.low)
        posterior = np.array(table.column("posterior").to_pylist()).reshape(len(table), -1)
        reached = posterior[:, lowest + np.arange(posterior.shape[1]) >= config.threshold].sum(axis=1)
        values = np.clip(np.minimum(reached, 1 - reached), 0, 0.5)
    else:
        votes = table.column("votes").to_numpy()
        values = wrong_decision(table.column("score").to_numpy(), votes, disagreement, config.threshold)
    return dict(zip(table.column("document_id").to_pylist(), values.tolist(), strict=True)), without


def _take_ranked(table: pa.Table, ranks: dict[str, int], values: dict[str, float]) -> pa.Table:
    """The ranked documents of a table, each of which is taken out of `ranks`."""
    ids = table.column("id").to_pylist()
    found = [ranks.pop(document_id, None) for document_id in ids]
    table = table.drop_columns([name for name in RANK_COLUMNS if name in table.column_names])
    table = table.append_column("rank", pa.array(found, pa.int64()))
    table = table.append_column("rank_value", pa.array([values.get(document_id) for document_id in ids], pa.float64()))
    return table.filter(pc.is_valid(table.column("rank")))


def _block(path: Path, first: int) -> pa.Table:
    """The documents of ranks `first` to `first + _BLOCK - 1`, in that order."""
    file = pq.ParquetFile(path)
    parts = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        rank = table.column("rank")
        parts.append(table.filter(pc.and_(pc.greater_equal(rank, first), pc.less(rank, first + _BLOCK))))
    return pa.concat_tables(parts).sort_by("rank")
