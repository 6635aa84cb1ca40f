"""MongoDB collections: shards are ranges of an index, read in bounded batches that each begin after the last document.

The index is that of `_id`, so that new documents with ascending ids (ObjectIds) leave all full shards as they are, or
the one of (`updated_at`, `_id`) if only documents since a time are read. Ranges are given to the index and not as a
condition, because a condition compares only values of one type, and ids may be of several.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.readers.base import InputShard, Problem, Record, Row
from ml_filter.errors import ConfigError, InputError
from ml_filter.mongodb import opened_collection

if TYPE_CHECKING:
    from pymongo.collection import Collection
    from pymongo.cursor import Cursor

_BATCH = 500
_ATTEMPTS = 3
_OVERLAP = timedelta(minutes=5)
"""Documents get their time before they can be seen: what was written this long before `since` is read again."""


class _Slice(BaseModel):
    """Documents of a collection: a query, its fields, and a range of keys of an index, as extended JSON."""

    query: str = "{}"
    fields: list[str] = []
    marker: str
    by_marker: bool = False
    start: str | None = None
    end: str | None = None

    @property
    def index(self) -> list[tuple[str, int]]:
        names = [self.marker, "_id"] if self.by_marker else ["_id"]
        return [(name, 1) for name in names]

    def find(self, collection: Collection[Row], start: Row | None, fields: list[str]) -> Cursor[Row]:
        """The documents from a key on, in the order of the index."""
        cursor = collection.find(_parsed(self.query), fields or None).hint(self.index).sort(self.index)
        if start is not None:
            cursor = cursor.min(list(start.items()))
        if self.end is not None:
            cursor = cursor.max(list(_parsed(self.end).items()))
        return cursor

    def key_of(self, document: Row) -> Row:
        return {name: document[name] for name, _ in self.index}


class Changes(NamedTuple):
    """The documents of a collection: their shards, a digest of their state, and the time of the latest change."""

    shards: list[InputShard]
    digest: str
    latest: datetime | None


def list_changes(location: str, source: SourceConfig) -> Changes:
    """The shards of a collection, which is read for their bounds only.

    Raises:
        InputError: the server cannot be reached or refuses, or `since` is set and the collection has no index for it.
        ConfigError: the location, the query or the connection's settings are wrong.
    """
    config = source.mongodb
    columns = [source.text_column, source.id_column or "id", config.marker, *config.fields] if config.fields else []
    whole = _Slice(query=config.query or "{}", fields=columns, marker=config.marker, by_marker=config.since is not None)
    _parsed(whole.query)
    with opened_collection(location) as collection:
        latest = _latest(collection, whole)
        if config.since is not None:
            _require_index(collection, whole, location)
            whole.start, whole.end = _bounds_since(whole, config.since, latest)
        bounds, rows = [whole.start], []
        while True:
            keys = whole.find(
                collection, None if bounds[-1] is None else _parsed(bounds[-1]), [name for name, _ in whole.index]
            )
            following = next(keys.clone().skip(config.shard_rows).limit(1), None)
            if following is None:
                rows.append(sum(1 for _ in keys))
                break
            rows.append(config.shard_rows)
            bounds.append(_text(whole.key_of(following)))
    bounds.append(whole.end)
    shards = [
        InputShard(
            f"{location}#{number}",
            "mongodb",
            rows=count,
            part=(number, len(rows)),
            slice=whole.model_copy(update={"start": bounds[number], "end": bounds[number + 1]}).model_dump_json(),
        )
        for number, count in enumerate(rows)
    ]
    return Changes(shards, digest_of([location, whole.model_dump(), bounds, rows, latest]), latest)


def state_of(shard: InputShard) -> str:
    """A digest that changes with the documents of a shard: their number, and the time of the latest change.

    Raises:
        InputError: the collection cannot be read.
    """
    part = _Slice.model_validate_json(shard.slice)
    conditions = [
        {operator: [f"${name}", {"$literal": value}]}
        for bound, operator in ((part.start, "$gte"), (part.end, "$lt"))
        for name, value in ({} if bound is None else _parsed(bound)).items()
    ]
    if part.by_marker:  # a range of times is precise enough for a state
        conditions = [{"$gte": [f"${part.marker}", {"$literal": _parsed(part.start or "{}").get(part.marker)}]}]
    latest = {"$group": {"_id": None, "documents": {"$sum": 1}, "latest": {"$max": f"${part.marker}"}}}
    with opened_collection(shard.uri.partition("#")[0]) as collection:
        states = list(collection.aggregate([{"$match": {"$expr": {"$and": conditions}}}, latest]))
    return digest_of([shard.slice, states])


def read_records(shard: InputShard) -> Iterator[Record]:
    """The documents of a shard; one without an `id` has its `_id` as `id`.

    Raises:
        InputError: the collection cannot be read.
    """
    from pymongo.errors import AutoReconnect

    part = _Slice.model_validate_json(shard.slice)
    key, last = None if part.start is None else _parsed(part.start), None
    failures = 0
    with opened_collection(shard.uri.partition("#")[0]) as collection:
        while True:
            try:
                documents = list(part.find(collection, key, part.fields).limit(_BATCH))
            except AutoReconnect:  # the client has tried twice; another server may become the primary
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                continue
            failures = 0
            if last is not None and documents and part.key_of(documents[0]) == last:
                del documents[0]  # a range begins with its start, which is the last document of the batch before
            if not documents:
                return
            key = last = part.key_of(documents[-1])
            for document in documents:
                yield _record(document)


def _record(document: Row) -> Record:
    location = f"_id {document['_id']}"
    try:
        row = {_plain(name): _plain(value) for name, value in document.items()}
    except UnicodeEncodeError:
        return location, Problem("invalid_utf8", "a string is not UTF-8")
    if row.get("id") is None:
        row = {"id": row.pop("_id")} | {name: value for name, value in row.items() if name != "id"}
    return location, row


def _plain(value: Any) -> Any:
    """A BSON value as a type that Arrow stores. Types of MongoDB's own become text."""
    from bson import DatetimeMS, Decimal128, Int64, ObjectId, json_util

    if value is None or isinstance(value, bool | float | datetime):
        return value
    if type(value) is str:
        value.encode()
        return value
    if isinstance(value, int | Int64):
        return int(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, ObjectId | Decimal128 | uuid.UUID):
        return str(value)
    if isinstance(value, DatetimeMS):  # before the year 1 or after the year 9999
        return str(int(value))
    return json_util.dumps(value)


def _latest(collection: Collection[Row], whole: _Slice) -> datetime | None:
    """The time of the latest change, if an index tells it."""
    if not any(next(iter(index["key"])) == whole.marker for index in collection.list_indexes()):
        return None
    newest = collection.find_one({}, [whole.marker], sort=[(whole.marker, -1)])
    time = (newest or {}).get(whole.marker)
    return time if isinstance(time, datetime) else None


def _require_index(collection: Collection[Row], whole: _Slice, location: str) -> None:
    if not any(list(index["key"].items()) == whole.index for index in collection.list_indexes()):
        raise InputError(
            f"{location}: reading what is new (since) requires an index, or it would read all of the collection; "
            f"create it: db.{collection.name}.createIndex({{{whole.marker}: 1, _id: 1}})"
        )


def _bounds_since(whole: _Slice, since: datetime, latest: datetime | None) -> tuple[str, str]:
    """From some time before `since` to the latest change, so that what is written from now on is for the next run."""
    from bson import MaxKey, MinKey

    first, last = since - _OVERLAP, latest or since
    start = {whole.marker: first, "_id": MinKey()}
    return _text(start), _text({whole.marker: max(first, last), "_id": MaxKey()})


def _parsed(text: str) -> Row:
    """A query or a key from extended JSON.

    Raises:
        ConfigError: the text is not extended JSON.
    """
    from bson import json_util

    options = json_util.CANONICAL_JSON_OPTIONS.with_options(tz_aware=True, tzinfo=UTC)
    try:
        value = json_util.loads(text, json_options=options)
    except Exception as error:  # a value of a wrong form raises whatever its parser does
        raise ConfigError(f"the MongoDB query {text!r} is not extended JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'the MongoDB query {text!r} is not an object such as {{"language": "de"}}')
    return value


def _text(key: Row) -> str:
    from bson import json_util

    return json_util.dumps(key, json_options=json_util.CANONICAL_JSON_OPTIONS)
