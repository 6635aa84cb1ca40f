"""Publish scored documents as a labelled data set: Parquet in the Hub's layout, split, with a data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import reduce
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from loguru import logger
from numpy.typing import NDArray

from ml_filter.agreement.agreement import AGREEMENT_NAME, Agreement
from ml_filter.config import names_of
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import annotated_documents, criteria_config, criteria_of, only_criterion
from ml_filter.documents.manifest import Manifest, Parent, Shard, digest_of, read_manifest
from ml_filter.documents.output_directory import OutputDirectory, ShardResult
from ml_filter.documents.readers import read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import cast_table, rename_clashing_columns, union_schema
from ml_filter.documents.writer import file_digest
from ml_filter.errors import InputError
from ml_filter.prepare.deduplicate import CLUSTER_COLUMN
from ml_filter.prepare.minhash import band_keys, rows_per_band, signatures
from ml_filter.prepare.sampling import sampling_key
from ml_filter.prepare.split import assign_splits, group_documents, host_of, name_keys
from ml_filter.progress import progress
from ml_filter.publishing.card import CARD_NAME, write_card
from ml_filter.publishing.config import PublishConfig
from ml_filter.publishing.push import hub_api, push_to_hub

SPLITS = ("train", "validation", "test")
LABEL_COLUMNS = ("score", "votes", "disagreement")
_PERMUTATIONS = 128
_ELSEWHERE = {"push", "private"}  # where the data set goes does not change what it holds


def publish_labels(
    scores: str | Path, config: PublishConfig, output: str | Path, documents: SourceConfig | None = None
) -> Manifest:
    """Join aggregated scores with their documents and write train, validation and test as `data/SPLIT-*.parquet`.

    Every column of the documents, plus `score`, `votes` and `disagreement`; of several criteria `score_<criterion>`,
    `votes_<criterion>` and `disagreement_<criterion>` of each, null where a document has none. Near-duplicates (they
    share a band of their MinHash signatures, or `duplicate_cluster`) and documents of one host are in one split.
    Documents without any score are counted and left out; a document that is there twice under one id counts once.
    `README.md` is the data card. With `config.push` the data set is uploaded to the Hub afterwards.

    Memory holds the scores and about 200 bytes a labelled document; the documents are read twice.

    Args:
        scores: directory of aggregated scores.
        config: shares of the splits, criteria, data card, Hub.
        output: directory or URL.
        documents: the documents of the scores; not given: those that were annotated, by lineage.

    Raises:
        InputError: scores, documents or agreement cannot be read, no document has a score, or the Hub refuses.
        ConfigError: there is to be an upload, but no token.
    """
    api = hub_api(config.push) if config.push else None  # what is missing shows before the work
    manifest = read_manifest(scores, "scores")
    chosen = [only_criterion(manifest, name) for name in names_of(config.criterion)] or criteria_of(manifest)
    criteria = [criterion.name for criterion in chosen]
    documents = documents or annotated_documents(manifest)
    _, parents = list_shards(documents)
    parents.append(Parent(path=manifest.root, digest=manifest.digest))
    agreements = [_read_agreement(path) for path in names_of(config.agreement)]
    parents += [
        Parent(path=path, digest=digest_of(one.model_dump(mode="json")))
        for path, one in zip(names_of(config.agreement), agreements, strict=True)
    ]
    settings = {
        "documents": documents.model_dump(mode="json"),
        "publish": config.model_dump(mode="json", exclude=_ELSEWHERE),
        **criteria_config(chosen),
    }
    with OutputDirectory(output, "labelled", settings, parents) as out:
        published = out.manifest
        if published is None:
            published = _publish(out, _Labelled(manifest, criteria, documents), config, agreements)
    if api and config.push:
        push_to_hub(api, published, config.push, private=config.private)
    return published


def _read_agreement(path: str) -> Agreement:
    name = path if path.endswith(".json") else f"{path.rstrip('/')}/{AGREEMENT_NAME}"
    try:
        with fsspec.open(name, "rb") as file:
            return Agreement.model_validate_json(file.read())
    except (OSError, ValueError) as error:
        raise InputError(f"{name} holds no agreement figures (`ml-filter agreement` writes them): {error}") from error


class _Labelled:
    """Streams the documents that have a score, each once, with the columns of the label."""

    def __init__(self, scores: Manifest, criteria: Sequence[str], documents: SourceConfig) -> None:
        self.scores, self.criteria, self.documents = scores, criteria, documents
        tables = [
            pq.read_table(path, columns=["document_id", "criterion", *LABEL_COLUMNS]) for path in scores.shard_paths()
        ]
        labels = pa.concat_tables(tables)
        # One criterion needs no name beside it; of several each has columns of its own, as in scored documents.
        endings = [""] if len(criteria) == 1 else [f"_{criterion}" for criterion in criteria]
        of_each = [
            labels.filter(pc.equal(labels["criterion"], criterion))
            .drop_columns(["criterion"])
            .rename_columns(["document_id", *(f"{name}{ending}" for name in LABEL_COLUMNS)])
            for criterion, ending in zip(criteria, endings, strict=True)
        ]
        self.labels = reduce(lambda one, other: one.join(other, "document_id", join_type="full outer"), of_each)
        self.columns = [name for name in self.labels.column_names if name != "document_id"]
        self.score_columns = [f"score{ending}" for ending in endings]
        ids = self.labels["document_id"].to_pylist()
        valid = [self.labels[name].is_valid() for name in self.score_columns]
        self._scored = reduce(pc.or_, valid).to_pylist()
        self._row_of = {name: row for row, name in enumerate(ids)}
        self.counts: Counter[str] = Counter()

    def tables(self) -> Iterator[pa.Table]:
        """The labelled documents; `counts` says what the last pass left out."""
        self.counts = Counter(read=0, labelled=0, failed=0, not_annotated=0, repeated=0)
        left = np.ones(len(self._row_of), dtype=np.bool_)
        for shard in list_shards(self.documents)[0]:
            for table in read_shard(shard, self.documents, RejectsLog()):
                kept, rows = [], []
                for number, name in enumerate(table["id"].to_pylist()):
                    row = self._row_of.get(name)
                    if row is None:
                        self.counts["not_annotated"] += 1
                    elif not left[row]:
                        self.counts["repeated"] += 1
                    else:
                        left[row] = False
                        if self._scored[row]:
                            kept.append(number)
                            rows.append(row)
                        else:
                            self.counts["failed"] += 1
                self.counts.update(read=table.num_rows, labelled=len(kept))
                if kept:
                    labelled = rename_clashing_columns(table.take(kept), self.columns)
                    for name in self.columns:
                        labelled = labelled.append_column(name, self.labels[name].take(rows))
                    yield labelled
        self.counts["scores_without_document"] = int(left.sum())


class _Facts:
    """What a split needs to know of the labelled documents, in order."""

    def __init__(self, labelled: _Labelled, config: PublishConfig) -> None:
        self.schema = pa.schema([])
        rows = rows_per_band(config.near_duplicates, _PERMUTATIONS)
        keys, scores, order = [], [], []
        read = 0
        with progress("Grouping documents", len(labelled.labels)) as bar:
            for table in labelled.tables():
                self.schema = union_schema(self.schema, table.schema)
                signed = signatures(table["text"].to_pylist(), _PERMUTATIONS, 0)
                columns = [
                    name_keys([host_of(url) for url in _column(table, "url")], read),
                    name_keys(_column(table, CLUSTER_COLUMN), read),
                ]
                keys.append(np.column_stack([band_keys(signed, rows), *columns]))
                scores.append(np.column_stack([table[name].to_numpy() for name in labelled.score_columns]))
                order += [sampling_key(name, config.seed, "publish") for name in table["id"].to_pylist()]
                read += table.num_rows
                bar.advance(table.num_rows)
        if not read:
            raise InputError(
                f"no document of {', '.join(labelled.documents.paths)} has a score of "
                f"{' or '.join(labelled.criteria)} in {labelled.scores.root}: {dict(labelled.counts)}; "
                "name the documents that were annotated with --documents"
            )
        self.groups = group_documents(np.concatenate(keys))
        self.scores: NDArray[np.float64] = np.concatenate(scores)
        """[documents, criteria], nan: none."""
        self.classes: NDArray[np.float64] = np.floor(self.scores + 0.5)
        self.order = np.array(order, dtype=np.uint64)


def _column(table: pa.Table, name: str) -> list[str | None]:
    if name not in table.column_names:
        return [None] * table.num_rows
    return [value if isinstance(value, str) else None for value in table[name].to_pylist()]


def _publish(
    out: OutputDirectory, labelled: _Labelled, config: PublishConfig, agreements: Sequence[Agreement]
) -> Manifest:
    facts = _Facts(labelled, config)
    shares = [1 - config.validation_share - config.test_share, config.validation_share, config.test_share]
    split = assign_splits(facts.groups, facts.classes, facts.order, shares)
    sizes = np.bincount(split, minlength=len(SPLITS)).tolist()
    written = [name for name, size in zip(SPLITS, sizes, strict=True) if size]
    for name, size, share in zip(SPLITS, sizes, shares, strict=True):
        if share and not size:
            logger.warning(f"{name} is empty: the {len(split):,} documents fall into too few groups")
    with ExitStack() as open_files:
        writers = {name: open_files.enter_context(out.new_shard(name, facts.schema)) for name in written}
        first = 0
        for table in labelled.tables():
            numbers = split[first : first + table.num_rows]
            for name, writer in writers.items():
                writer.write(cast_table(table.filter(pa.array(numbers == SPLITS.index(name))), facts.schema))
            first += table.num_rows
    results = []
    for name, writer in writers.items():
        relative = f"data/{name}-00000-of-00001.parquet"
        digest, size = file_digest(writer.path), writer.path.stat().st_size
        out.put_file(writer.path, relative)
        shard = Shard(path=relative, rows=writer.rows, bytes=size, digest=digest)
        results.append((name, ShardResult(shard=shard, counts={name: writer.rows})))
    _, group_sizes = np.unique(facts.groups, return_counts=True)
    smallest = min(share for share in shares if share) * len(split)
    counts = {
        **labelled.counts,
        "groups": len(group_sizes),
        "documents_in_largest_group": int(group_sizes.max()),
        "groups_larger_than_a_split": int((group_sizes > smallest).sum()),
    }
    if len(labelled.criteria) > 1:
        scored = np.isfinite(facts.scores).sum(axis=0).tolist()
        counts |= {f"labelled_{name}": count for name, count in zip(labelled.criteria, scored, strict=True)}
    by_split = {
        criterion: {
            name: Counter(column[(split == number) & np.isfinite(column)].astype(int).tolist())
            for number, name in enumerate(SPLITS)
            if name in written
        }
        for criterion, column in zip(labelled.criteria, facts.classes.T, strict=True)
    }
    card = write_card(
        config, labelled.criteria, labelled.scores, out.parents, by_split, counts, agreements, facts.schema.names
    )
    out.put_bytes(CARD_NAME, card.encode())
    return out.finish(results, counts)
