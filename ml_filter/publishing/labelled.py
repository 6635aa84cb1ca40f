"""Publish scored documents as a labelled data set: Parquet in the Hub's layout, split, with a data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger
from numpy.typing import NDArray

from ml_filter.agreement.agreement import AGREEMENT_NAME, Agreement
from ml_filter.config import names_of
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import ShardResult
from ml_filter.documents.hub import CARD_NAME, hub_api, push_data_set
from ml_filter.documents.lineage import annotated_documents, criteria_config, criteria_of, only_criterion
from ml_filter.documents.manifest import Manifest, Parent, Shard, digest_of, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import cast_table, rename_clashing_columns, union_schema
from ml_filter.documents.unique import find_documents
from ml_filter.documents.writer import file_digest
from ml_filter.errors import InputError
from ml_filter.location import Location
from ml_filter.prepare.deduplicate import CLUSTER_COLUMN
from ml_filter.prepare.minhash import band_keys, rows_per_band, signatures
from ml_filter.prepare.sampling import sampling_key
from ml_filter.prepare.split import assign_splits, group_documents, host_of, name_keys
from ml_filter.progress import progress
from ml_filter.publishing.cards import write_card
from ml_filter.publishing.config import PublishConfig
from ml_filter.statistics.rounding import round_scores

SPLITS = ("train", "validation", "test")
LABEL_COLUMNS = ("score", "votes", "disagreement")
_PERMUTATIONS = 128
_DESTINATION = {"push", "private"}
"""Settings that do not change the content of the data set."""


def publish_labels(
    scores: str | Path, config: PublishConfig, output: str | Path, documents: SourceConfig | None = None
) -> Manifest:
    """Join aggregated scores with their documents and write train, validation and test as `data/SPLIT-*.parquet`.

    The rows have every column of the documents, plus `score`, `votes` and `disagreement`; with several criteria
    `score_<criterion>` and so on, null if a document has no score. Near-duplicates (a common MinHash band, or the same
    `duplicate_cluster`) and documents of one host are in the same split. Documents without any score and repetitions of
    an id are counted and left out. `README.md` is the data card. With `config.push`, the data set is then uploaded.

    Holds the scores and about 200 bytes per labelled document in memory, and reads the documents twice. `documents`
    are by default those that were annotated, by lineage.

    Raises:
        InputError: scores, documents or agreement cannot be read, no document has a score, or the upload fails.
        ConfigError: no token is set for the upload.
    """
    api = hub_api(config.push) if config.push else None  # first, so that a missing token costs no work
    manifest = read_manifest(scores, "scores")
    criteria = [only_criterion(manifest, name) for name in names_of(config.criterion)] or criteria_of(manifest)
    documents = documents or annotated_documents(manifest)
    _, parents = list_shards(documents)
    parents.append(Parent(path=manifest.root, digest=manifest.digest))
    agreements = []
    for path in names_of(config.agreement):
        agreements.append(_read_agreement(path))
        parents.append(Parent(path=path, digest=digest_of(agreements[-1].model_dump(mode="json"))))
    settings = {
        "documents": documents.model_dump(mode="json"),
        "publish": config.model_dump(mode="json", exclude=_DESTINATION),
        **criteria_config(criteria),
    }
    with OutputDirectory(output, "labelled", settings, parents) as out:
        published = out.manifest
        if published is None:
            labelled = _Labelled(manifest, [criterion.name for criterion in criteria], documents)
            published = _publish(out, labelled, config, agreements)
    if api and config.push:
        push_data_set(api, published, config.push, private=config.private, message="Labelled data set")
    return published


def _read_agreement(path: str) -> Agreement:
    name = Location(path) if path.endswith(".json") else Location(path) / AGREEMENT_NAME
    try:
        return Agreement.model_validate_json(name.read_bytes())
    except (InputError, ValueError) as error:
        raise InputError(
            f"{name} is not the result of an agreement measurement; write one with `ml-filter agreement`: {error}"
        ) from error


class _Labelled:
    """Streams the documents that have a score, each once, with the label columns.

    Attributes:
        labels: one row per document id, the label columns of all criteria side by side.
        columns: names of the label columns.
        score_columns: those that hold scores, one per criterion.
        counts: what the last pass over the documents left out.
    """

    def __init__(self, scores: Manifest, criteria: Sequence[str], documents: SourceConfig) -> None:
        self.scores, self.criteria, self.documents = scores, criteria, documents
        columns = ["document_id", "criterion", *LABEL_COLUMNS]
        votes = pa.concat_tables(table for path in scores.shard_paths() for table in read_tables(path, columns))
        # A single criterion needs no suffix; several get one set of columns each, as in scored documents.
        suffixes = [""] if len(criteria) == 1 else [f"_{criterion}" for criterion in criteria]
        by_criterion = [
            votes.filter(pc.equal(votes["criterion"], criterion))
            .drop_columns(["criterion"])
            .rename_columns(["document_id", *(f"{name}{suffix}" for name in LABEL_COLUMNS)])
            for criterion, suffix in zip(criteria, suffixes, strict=True)
        ]
        self.labels = reduce(lambda left, right: left.join(right, "document_id", join_type="full outer"), by_criterion)
        self.columns = [name for name in self.labels.column_names if name != "document_id"]
        self.score_columns = [f"score{suffix}" for suffix in suffixes]
        has_score = reduce(pc.or_, (self.labels[name].is_valid() for name in self.score_columns)).to_numpy()
        self._has_score = np.append(has_score, False)  # the last entry is for documents that were not annotated
        self._row_of = {name: row for row, name in enumerate(self.labels["document_id"].to_pylist())}
        self.counts: Counter[str] = Counter()

    def tables(self) -> Iterator[pa.Table]:
        """Read the documents once."""
        self.counts = Counter(read=0, labelled=0, failed=0, not_annotated=0, repeated=0)
        is_unseen = np.append(np.ones(len(self._row_of), np.bool_), False)
        for table in find_documents(list_shards(self.documents)[0], self.documents, self._row_of):
            rows = np.array([self._row_of.get(name, -1) for name in table["id"].to_pylist()], np.int64)
            is_first = np.zeros(len(rows), np.bool_)
            is_first[np.unique(rows, return_index=True)[1]] = True
            is_new = is_first & is_unseen[rows]
            is_unseen[rows[is_new]] = False
            kept = is_new & self._has_score[rows]
            unknown, labelled, failed = (int(mask.sum()) for mask in (rows < 0, kept, is_new & ~kept))
            self.counts.update(read=len(rows), labelled=labelled, failed=failed, not_annotated=unknown)
            self.counts["repeated"] += len(rows) - unknown - labelled - failed
            if kept.any():
                result = rename_clashing_columns(table.filter(pa.array(kept)), self.columns)
                for name in self.columns:
                    result = result.append_column(name, self.labels[name].take(pa.array(rows[kept])))
                yield result
        self.counts["scores_without_document"] = int(is_unseen.sum())


def _group(
    labelled: _Labelled, config: PublishConfig
) -> tuple[pa.Schema, NDArray[np.int64], NDArray[np.float64], NDArray[np.uint64]]:
    """What the split depends on, by labelled document in the order of reading.

    Returns the schema of all documents, their groups (a group stays together), their scores [documents, criteria] (NaN:
    none) and seeded random keys.
    """
    schema = pa.schema([])
    rows = rows_per_band(config.near_duplicates, _PERMUTATIONS)
    keys, scores = [], []
    order: list[int] = []
    with progress("Grouping documents", len(labelled.labels)) as bar:
        for table in labelled.tables():
            schema = union_schema(schema, table.schema)
            minhashes = signatures(table["text"].to_pylist(), _PERMUTATIONS, 0)
            hosts = name_keys([host_of(url) for url in _strings(table, "url")], len(order))
            clusters = name_keys(_strings(table, CLUSTER_COLUMN), len(order))
            keys.append(np.column_stack([band_keys(minhashes, rows), hosts, clusters]))
            scores.append(np.column_stack([table[name].to_numpy() for name in labelled.score_columns]))
            order += [sampling_key(name, config.seed, "publish") for name in table["id"].to_pylist()]
            bar.advance(table.num_rows)
    if not order:
        raise InputError(
            f"no document of {', '.join(labelled.documents.paths)} has a score of "
            f"{' or '.join(labelled.criteria)} in {labelled.scores.root}: {dict(labelled.counts)}; "
            "pass the documents that were annotated with --documents"
        )
    return schema, group_documents(np.concatenate(keys)), np.concatenate(scores), np.array(order, dtype=np.uint64)


def _strings(table: pa.Table, name: str) -> list[str | None]:
    """A column's values; None for values that are not strings and if the column is missing."""
    if name not in table.column_names:
        return [None] * table.num_rows
    return [value if isinstance(value, str) else None for value in table[name].to_pylist()]


def _publish(
    out: OutputDirectory, labelled: _Labelled, config: PublishConfig, agreements: Sequence[Agreement]
) -> Manifest:
    schema, groups, scores, order = _group(labelled, config)
    all_classes = round_scores(scores)
    shares = [1 - config.validation_share - config.test_share, config.validation_share, config.test_share]
    split_of_row = assign_splits(groups, all_classes, order, shares)
    sizes = np.bincount(split_of_row, minlength=len(SPLITS)).tolist()
    splits = {name: number for number, name in enumerate(SPLITS) if sizes[number]}
    for name, share in zip(SPLITS, shares, strict=True):
        if share and name not in splits:
            logger.warning(f"{name} is empty: the {len(split_of_row):,} documents form too few groups")
    results = _write_splits(out, labelled, schema, split_of_row, splits)
    _, group_sizes = np.unique(groups, return_counts=True)
    smallest_split = min(share for share in shares if share) * len(split_of_row)
    counts = {
        **labelled.counts,
        "groups": len(group_sizes),
        "documents_in_largest_group": int(group_sizes.max()),
        "groups_larger_than_a_split": int((group_sizes > smallest_split).sum()),
    }
    if len(labelled.criteria) > 1:
        scored = np.isfinite(scores).sum(axis=0).tolist()
        counts |= {f"labelled_{name}": count for name, count in zip(labelled.criteria, scored, strict=True)}
    by_split = {
        criterion: {
            name: Counter(classes[(split_of_row == number) & np.isfinite(classes)].astype(int).tolist())
            for name, number in splits.items()
        }
        for criterion, classes in zip(labelled.criteria, all_classes.T, strict=True)
    }
    card = write_card(
        config, labelled.criteria, labelled.scores, out.parents, by_split, counts, agreements, schema.names
    )
    out.put_bytes(CARD_NAME, card.encode())
    return out.finish(results, counts)


def _write_splits(
    out: OutputDirectory,
    labelled: _Labelled,
    schema: pa.Schema,
    split_of_row: NDArray[np.int_],
    splits: dict[str, int],
) -> list[tuple[str, ShardResult]]:
    """Write each split that is not empty to a file, in a second pass over the documents."""
    with ExitStack() as open_files:
        writers = {name: open_files.enter_context(out.new_shard(name, schema)) for name in splits}
        first_row = 0
        for table in labelled.tables():
            numbers = split_of_row[first_row : first_row + table.num_rows]
            for name, writer in writers.items():
                writer.write(cast_table(table.filter(pa.array(numbers == splits[name])), schema))
            first_row += table.num_rows
    results = []
    for name, writer in writers.items():
        path = f"data/{name}-00000-of-00001.parquet"
        digest, size = file_digest(writer.path), writer.path.stat().st_size
        out.put_file(writer.path, path)
        shard = Shard(path=path, rows=writer.rows, bytes=size, digest=digest)
        results.append((name, ShardResult(shard=shard, counts={name: writer.rows})))
    return results
