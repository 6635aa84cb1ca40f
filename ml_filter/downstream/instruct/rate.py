"""Rate instructions by one or several judges: ordinary annotations, aggregated, and a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.budget import SharedBudget
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.derived import Beside, derive_documents, read_rows_of
from ml_filter.documents.dropping import KeptAndDropped, drop_documents
from ml_filter.documents.lineage import criteria_of
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.instruct.stages import stages_of
from ml_filter.downstream.instruct.triples import DROPPED_SCHEMA

RATED = "rated"
_KEPT_FROM = "\n\nInstruction: "
"""A long passage is cut, and not what it is rated with."""


def rate_triples(
    triples: Manifest,
    jury: Sequence[AnnotateConfig],
    aggregate: AggregateConfig,
    min_rating: float | None,
    output: str,
    settings: Settings | None = None,
    *,
    budget: SharedBudget | None = None,
    ledgers: str | None = None,
) -> Manifest:
    """The instructions whose rating reaches the threshold of every criterion, with the column `rating`.

    With several criteria the columns are `rating_<criterion>`. `dropped/` has the others: `low_rating` or `unrated`.
    The reasons of the judges are in their annotations, which are parents of the scores that the result comes from.

    Args:
        min_rating: the threshold of every criterion (None: that of its prompt).
        output: directory of the directories of this stage.

    Raises:
        TooManyFailures, EndpointError: see `annotate_documents`.
    """
    documents = derive_documents(triples, ("id", "text", "passage"), _to_rate, f"{output}/to-rate-{{digest}}")
    source = SourceConfig(paths=[documents.root])
    annotations: list[Manifest] = []
    for judge in jury:
        limited = (budget or SharedBudget(None)).share(judge, *stages_of(triples, *annotations))
        directory = f"{output}/ratings-{{digest}}"
        annotations.append(
            annotate_documents(source, limited, directory, settings, ledgers=ledgers, kept_from=_KEPT_FROM)
        )
    scores = aggregate_annotations(
        [manifest.root for manifest in annotations], aggregate, f"{output}/scores-{{digest}}"
    )
    return _keep_rated(triples, scores, min_rating, f"{output}/rated-{{digest}}")


def rating_of(row: Mapping[str, Any]) -> float | None:
    """The rating of an instruction; of several criteria the lowest. None: it is not rated."""
    ratings = [value for name, value in row.items() if name == "rating" or name.startswith("rating_")]
    return min(ratings, default=None)


def _to_rate(triple: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What judges read: the passage, the instruction and the output."""
    yield triple["id"], f"Passage: {triple['passage']}\n\n{triple['text']}"


def _keep_rated(triples: Manifest, scores: Manifest, min_rating: float | None, output: str) -> Manifest:
    criteria = criteria_of(scores)
    thresholds = {c.name: c.threshold if min_rating is None else min_rating for c in criteria}
    columns = {c.name: "rating" if len(criteria) == 1 else f"rating_{c.name}" for c in criteria}
    source = SourceConfig(paths=[triples.root])
    shards, _ = list_shards(source)
    ratings = Beside(_ratings(scores), shards, scores.root)
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in (triples, scores)]

    def divide(shard: InputShard, offset: int, table: pa.Table) -> KeptAndDropped:
        dropped, keep = [], np.ones(table.num_rows, np.bool_)
        rows = table.select(["id", "instruction", "input", "output"]).to_pylist()
        of_rows = ratings.read(shard, offset, [row["id"] for row in rows])
        for position, (row, values) in enumerate(zip(rows, of_rows, strict=True)):
            low = next((name for name in columns if (value := values[name]) is None or value < thresholds[name]), None)
            if low is not None:
                keep[position] = False
                reason = "unrated" if values[low] is None else "low_rating"
                detail = None if values[low] is None else f"{low} {values[low]:.2f}, below {thresholds[low]:g}"
                dropped.append({**row, "reason": reason, "detail": detail})
        kept = table.filter(pa.array(keep))
        for name, column in columns.items():
            kept = kept.append_column(column, pa.array([v[name] for v in of_rows], pa.float64()).filter(pa.array(keep)))
        return KeptAndDropped(kept, pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA))

    with OutputDirectory(output, RATED, {"thresholds": thresholds}, parents) as out:
        return out.manifest or drop_documents(out, shards, source, divide, DROPPED_SCHEMA, "Keeping rated instructions")


def _ratings(scores: Manifest) -> Iterator[tuple[str, dict[str, float | None]]]:
    """The id of each instruction and its scores by criterion; null if all votes on it failed."""
    rows = read_rows_of(scores, ["document_id", "criterion", "score"])
    for triple_id, of_triple in groupby(rows, itemgetter("document_id")):
        yield triple_id, {row["criterion"]: row["score"] for row in of_triple}
