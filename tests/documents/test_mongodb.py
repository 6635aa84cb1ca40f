"""MongoDB collections as sources, over the wire."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import bson
import pytest
from bson import Binary, Decimal128, ObjectId, Regex
from bson.datetime_ms import DatetimeMS

from ml_filter.documents.config import MongoConfig, SourceConfig
from ml_filter.documents.readers import mongodb, read_rows, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards, shard_state
from ml_filter.documents.tables import concat_tables
from ml_filter.errors import ConfigError, InputError
from ml_filter.mongodb import codec_options

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def source_of(location: str, **mongodb) -> SourceConfig:
    return SourceConfig(paths=[location], mongodb=MongoConfig(**mongodb))


def read(source: SourceConfig, rejects: RejectsLog | None = None) -> list[dict]:
    tables = [t for shard in list_shards(source)[0] for t in read_shard(shard, source, rejects or RejectsLog())]
    return concat_tables(tables).to_pylist() if tables else []


def test_documents_have_the_id_of_the_collection_unless_they_have_their_own(warehouse):
    key = ObjectId()
    warehouse.database.pages.insert_many([{"_id": key, "text": "one", "url": "u"}, {"id": 7, "text": "two"}])
    first, second = read(source_of(warehouse.location("pages")))
    assert first == {"id": str(key), "text": "one", "url": "u", "_id": None}
    assert (second["id"], second["text"], len(second["_id"])) == ("7", "two", 24)


def test_values_of_all_types_are_carried_through(warehouse):
    document = {
        "_id": 1,
        "text": "t",
        "when": NOON,
        "nested": {"a": [1, 2], "b": {"key": ObjectId("6b0b55f25b5e52998fa155ed")}},
        "binary": b"\x00\xff",
        "uuid": Binary.from_uuid(uuid.UUID(int=5)),
        "price": Decimal128(Decimal("1.10")),
        "long": 2**40,
        "pattern": Regex("^a"),
    }
    warehouse.database.pages.insert_one(document)
    assert read(source_of(warehouse.location("pages"))) == [
        {
            "id": "1",
            "text": "t",
            "when": NOON,
            "nested": {"a": [1, 2], "b": {"key": "6b0b55f25b5e52998fa155ed"}},
            "binary": b"\x00\xff",
            "uuid": "00000000-0000-0000-0000-000000000005",
            "price": "1.10",
            "long": 2**40,
            "pattern": '{"$regularExpression": {"pattern": "^a", "options": ""}}',
        }
    ]


def test_values_that_python_cannot_read_do_not_end_the_reading():
    """The server of the tests refuses them, unlike MongoDB."""
    far = bson.decode(bson.encode({"_id": 1, "far": DatetimeMS(2**53)}), codec_options())
    assert mongodb._record(far) == ("_id 1", {"id": 1, "far": str(2**53)})
    invalid = bson.decode(bson.encode({"_id": 1, "title": "abc"}).replace(b"abc", b"a\xffc"), codec_options())
    assert mongodb._record(invalid)[1].reason == "invalid_utf8"


def test_documents_without_a_text_are_rejected_with_their_location(warehouse):
    warehouse.database.pages.insert_many([{"_id": 1, "text": None}, {"_id": 2, "text": " "}, {"_id": 3, "text": "x"}])
    rejects = RejectsLog()
    assert [row["id"] for row in read(source_of(warehouse.location("pages")), rejects)] == ["3"]
    assert rejects.counts == {"missing_text": 1, "empty_text": 1}


def test_shards_of_ids_of_several_types_have_every_document_once(warehouse, monkeypatch):
    monkeypatch.setattr(mongodb, "_BATCH", 3)
    ids = [
        None,
        *range(11),
        2.5,
        *(f"k{n}" for n in range(9)),
        b"x",
        ObjectId(),
        *([NOON + timedelta(n) for n in range(4)]),
    ]
    warehouse.database.pages.insert_many([{"_id": key, "text": f"text {key}"} for key in ids])
    source = source_of(warehouse.location("pages"), shard_rows=4)
    shards, _ = list_shards(source)
    assert [shard.rows for shard in shards] == [4] * 7
    assert sorted(row["text"] for row in read(source)) == sorted(f"text {key}" for key in ids)


def test_full_shards_stay_as_they_are_when_a_collection_grows(warehouse):
    pages = warehouse.database.pages
    pages.create_index("updated_at")
    pages.insert_many([{"_id": n, "text": "t", "updated_at": NOON} for n in range(10)])
    source = source_of(warehouse.location("pages"), shard_rows=4)
    before, [parent] = list_shards(source)
    states = [shard_state(shard) for shard in before]
    pages.insert_one({"_id": 10, "text": "t", "updated_at": NOON})
    after, [grown] = list_shards(source)
    assert before[:2] == after[:2]
    assert [shard_state(shard) for shard in after[:2]] == states[:2]
    assert (parent.latest, parent.digest != grown.digest) == (NOON, True)
    pages.update_one({"_id": 5}, {"$set": {"updated_at": NOON + timedelta(1)}})
    assert shard_state(after[0]) == states[0]
    assert shard_state(after[1]) != states[1]


def test_only_documents_changed_since_a_time_are_read(warehouse):
    pages = warehouse.database.pages
    pages.insert_many([{"_id": n, "text": f"t{n}", "updated_at": NOON + timedelta(hours=n)} for n in range(6)])
    source = source_of(warehouse.location("pages"), since=NOON + timedelta(hours=3), shard_rows=2)
    with pytest.raises(InputError, match=r"createIndex\(\{updated_at: 1, _id: 1\}\)"):
        read(source)
    pages.create_index([("updated_at", 1), ("_id", 1)])
    assert [row["text"] for row in read(source)] == ["t3", "t4", "t5"]
    assert [shard.rows for shard in list_shards(source)[0]] == [2, 1]


def test_a_query_and_fields_limit_what_is_read(warehouse):
    warehouse.database.pages.insert_many(
        [{"_id": n, "text": "t", "language": "de" if n % 2 else "en", "html": "x", "note": n} for n in range(4)]
    )
    source = source_of(warehouse.location("pages"), query='{"language": "de"}', fields=["note"])
    assert read(source) == [{"id": "1", "text": "t", "note": 1}, {"id": "3", "text": "t", "note": 3}]
    with pytest.raises(ConfigError, match="not extended JSON"):
        list_shards(source_of(warehouse.location("pages"), query="{language: de}"))


def test_a_collection_is_a_table_of_labels_too(warehouse):
    warehouse.database.gold.insert_one({"_id": 1, "human_score": 3})
    [shard], _ = list_shards(source_of(warehouse.location("gold")))
    assert [row for _, row in read_rows(shard)] == [{"id": 1, "human_score": 3}]


def test_an_empty_collection_has_no_documents(warehouse):
    assert read(source_of(warehouse.location("absent"))) == []


@pytest.mark.parametrize("location", ["mongodb://anna:secret@host/db.pages", "mongodb+srv://a:secret@host/db.pages"])
def test_a_password_in_a_location_is_refused_before_it_is_recorded(location):
    with pytest.raises(ValueError, match="holds no user or password") as refused:
        SourceConfig(paths=[location])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("location", ["mongodb://host/db", "mongodb://host", "mongodb://host/db.c?tls=true"])
def test_a_location_of_another_form_is_refused(location):
    with pytest.raises(ValueError, match=r"mongodb://HOST/DATABASE\.COLLECTION"):
        SourceConfig(paths=[location])


def test_a_server_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setenv("ML_FILTER_MONGODB_TIMEOUT_S", "0.2")
    with pytest.raises(
        InputError, match=r"^mongodb://127.0.0.1:9/db.pages: no server answers .*check the host"
    ) as error:
        list_shards(source_of("mongodb://127.0.0.1:9/db.pages"))
    assert "\n" not in str(error.value) and "Topology" not in str(error.value)
