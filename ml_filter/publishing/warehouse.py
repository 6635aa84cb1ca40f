"""Export directories to MongoDB collections: every row once, however often a run is killed and repeated.

A row is found by its key, which a unique index guards, and replaced only if its content changed: the server compares
the digest of the content and sets `updated_at` from its own clock, in one operation. `updated_at` therefore shows what
is new, and readers of the collection need not read the rest again. Finished shards are recorded in the collection
`ml_filter_exports` of the same database, so that any machine can resume.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import repeat
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from loguru import logger

from ml_filter.documents.manifest import Manifest, Shard, digest_of, read_manifest
from ml_filter.documents.readers import read_tables
from ml_filter.documents.tables import rename_clashing_columns
from ml_filter.documents.unique import UniqueIds
from ml_filter.errors import InputError
from ml_filter.mongodb import opened_collection
from ml_filter.progress import progress

if TYPE_CHECKING:
    from pymongo.collection import Collection

EXPORTS = "ml_filter_exports"
MARKER = "updated_at"
_DIGEST = "digest"
_RESERVED = ("_id", MARKER, _DIGEST)
_KEYS = {
    "annotations": ("document_id", "annotator", "prompt_digest", "criterion", "vote"),
    "labels": ("document_id", "annotator", "prompt_digest", "facet", "vote"),
    "scores": ("document_id", "criterion"),
    "predictions": ("id",),
}
"""What identifies a row, by kind of directory; documents are identified by their id."""
_DOCUMENT_KEY = ("id",)
_BATCH_ROWS = 1000
_BATCH_BYTES = 8 * 2**20
_ROOM = 1024
"""Bytes of a document that the server adds to."""
_DUPLICATE_KEY = 11000
_LISTED = 100


def export_directory(directory: str, location: str) -> dict[str, int]:
    """Write the rows of a finished directory to a collection.

    Resumable: a second call writes the shards that are unfinished. Rows that are already there are replaced if they
    changed; other rows of the collection stay. A row over the size limit of MongoDB (16 MB) is left out and counted.

    Args:
        directory: of documents, annotations, aggregated scores, scored or filtered documents.
        location: `mongodb://HOST/DATABASE.COLLECTION`.

    Returns:
        The counts `rows`, `inserted`, `replaced`, `unchanged` and `rejected_too_large`.

    Raises:
        InputError: the directory is not finished, the server cannot be reached or refuses, or another unique index of
            the collection does not admit a row.
    """
    manifest = read_manifest(directory)
    key = _KEYS.get(manifest.kind, _DOCUMENT_KEY)
    with ExitStack() as context:
        collection = context.enter_context(opened_collection(location))
        bar = context.enter_context(progress("Exporting", manifest.rows))
        exports = collection.database[EXPORTS]
        name = {"_id": digest_of([collection.name, manifest.digest])}
        record = exports.find_one(name) or {}
        finished = {shard["path"]: Counter(shard["counts"]) for shard in record.get("shards", [])}
        if not record:
            _create_indexes(collection, key)
            record = {"collection": collection.name, "kind": manifest.kind, "manifest": manifest.digest}
            exports.update_one(name, {"$setOnInsert": {**record, "shards": []}}, upsert=True)
        ids = context.enter_context(UniqueIds()) if key == _DOCUMENT_KEY else None
        for shard in manifest.shards:
            tables = _tables(manifest, shard, ids)
            if shard.path in finished:
                deque(tables if ids else (), maxlen=0)  # the ids of later shards depend on those before
            else:
                counts, too_large = _export_tables(collection, tables, key)
                finished[shard.path] = counts
                done = {"path": shard.path, "counts": dict(counts)}
                exports.update_one(
                    name,
                    {
                        "$push": {"shards": done, "too_large": {"$each": too_large, "$slice": _LISTED}},
                        "$currentDate": {MARKER: True},
                    },
                )
            bar.advance(shard.rows)
    total = sum(finished.values(), Counter(dict.fromkeys(("rows", "inserted", "replaced", "unchanged"), 0)))
    return {name: total[name] for name in ("rows", "inserted", "replaced", "unchanged", "rejected_too_large")}


def _create_indexes(collection: Collection[Any], key: Sequence[str]) -> None:
    from pymongo.errors import DuplicateKeyError

    try:
        collection.create_index([(name, 1) for name in key], unique=True)
    except DuplicateKeyError as error:
        raise InputError(
            f"{collection.full_name} has several documents with the same {', '.join(key)}; export to another collection"
        ) from error
    collection.create_index([(MARKER, 1), ("_id", 1)])


def _export_tables(
    collection: Collection[Any], tables: Iterator[pa.Table], key: Sequence[str]
) -> tuple[Counter[str], list[str]]:
    """Write a shard; returns its counts and the keys of rows that are too large."""
    limit = collection.database.command("hello")["maxBsonObjectSize"] - _ROOM
    counts: Counter[str] = Counter()
    too_large: list[str] = []
    batch: list[Any] = []
    size = 0
    for row in _rows(tables):
        counts["rows"] += 1
        operation, bytes_ = _upsert(row, key)
        if bytes_ > limit:
            counts["rejected_too_large"] += 1
            too_large.append(", ".join(str(row[name]) for name in key))
            logger.warning(f"{too_large[-1]} has {bytes_:,} bytes, more than MongoDB stores; it is left out")
            continue
        batch.append(operation)
        size += bytes_
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            counts.update(_write(collection, batch))
            batch, size = [], 0
    if batch:
        counts.update(_write(collection, batch))
    return counts, too_large


def _tables(manifest: Manifest, shard: Shard, ids: UniqueIds | None) -> Iterator[pa.Table]:
    """The rows of a shard. Documents have unique ids; a duplicate with the same text is dropped."""
    for table in read_tables(manifest.path_of(shard.path), expected_rows=shard.rows):
        if ids is None or "text" not in table.column_names:
            yield table
        else:
            unique, is_new = ids.resolve(table, repeat(PurePosixPath(shard.path).stem))
            yield unique.filter(pa.array(is_new))


def _rows(tables: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
    """The rows without their nulls."""
    for table in tables:
        for row in rename_clashing_columns(table, _RESERVED).to_pylist():
            yield {name: _storable(value) for name, value in row.items() if value is not None}


def _upsert(row: Mapping[str, Any], key: Sequence[str]) -> tuple[Any, int]:
    """The operation that inserts or replaces a row unless it is there already, and the size of the row."""
    import bson
    from pymongo import UpdateOne

    content = bson.encode(row)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    fields = {"_id": "$_id", _DIGEST: digest, MARKER: "$$NOW"}
    replaced = {"$mergeObjects": [{"$literal": row}, fields]}
    is_same = {"$eq": [f"${_DIGEST}", digest]}
    found = {name: {"$eq": row[name]} for name in key}
    update = [{"$replaceWith": {"$cond": [is_same, "$$ROOT", replaced]}}]
    return UpdateOne(found, update, upsert=True), len(content)


def _write(collection: Collection[Any], operations: Sequence[Any]) -> Counter[str]:
    """Write a batch. An insert may find that another export was faster; it is then repeated as a replacement.

    Raises:
        InputError: a row violates another unique index.
    """
    from pymongo.errors import BulkWriteError

    try:
        return _counted(collection.bulk_write(operations, ordered=False).bulk_api_result)
    except BulkWriteError as error:
        problems = error.details["writeErrors"]
        other = [problem for problem in problems if problem["code"] != _DUPLICATE_KEY]
        if not problems or other:
            raise
        counts = _counted(error.details)
    try:
        again = collection.bulk_write([operations[problem["index"]] for problem in problems], ordered=False)
    except BulkWriteError as error:
        problem = error.details["writeErrors"][0]
        raise InputError(
            f"{collection.full_name} does not admit {len(problems):,} rows (duplicate key: {problem['errmsg'][:200]}); "
            "drop that unique index or export to another collection"
        ) from error
    return counts + _counted(again.bulk_api_result)


def _counted(result: Mapping[str, Any]) -> Counter[str]:
    matched, replaced = result["nMatched"], result["nModified"]
    return Counter(inserted=result["nUpserted"], replaced=replaced, unchanged=matched - replaced)


def _storable(value: Any) -> Any:
    """A value of a table as BSON stores it; a number or date without a BSON type becomes text."""
    from bson.decimal128 import Decimal128

    match value:
        case bool() | str() | float() | bytes() | None | datetime():
            return value
        case int():
            return value if -(2**63) <= value < 2**63 else str(value)
        case Decimal():
            return Decimal128(value) if len(value.as_tuple().digits) <= 34 else str(value)
        case date():
            return datetime.combine(value, time(), UTC)
        case dict():
            return {str(name): _storable(item) for name, item in value.items()}
        case list() | tuple():
            return [_storable(item) for item in value]
        case _:
            return str(value)
