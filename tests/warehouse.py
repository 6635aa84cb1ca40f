"""MongoDB databases for tests: on SecantusDB, and on a real server if ML_FILTER_TEST_MONGODB names one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from pymongo import MongoClient
from pymongo.database import Database

WAREHOUSES = ("secantusdb", "mongodb") if os.environ.get("ML_FILTER_TEST_MONGODB") else ("secantusdb",)
"""The servers that a test is run on."""


class Warehouse(NamedTuple):
    """A database, and its location without the name of a collection."""

    database: Database[dict[str, Any]]
    url: str

    def location(self, name: str) -> str:
        """The location of a collection."""
        return f"{self.url}.{name}"


@contextmanager
def new_warehouse(request: pytest.FixtureRequest, server: str) -> Iterator[Warehouse]:
    """An empty database on one of WAREHOUSES, which is dropped at the end."""
    if server == "mongodb":
        uri, host = os.environ["ML_FILTER_TEST_MONGODB"], ""
        request.getfixturevalue("monkeypatch").setenv("ML_FILTER_MONGODB_URI", uri)
    else:
        host = request.getfixturevalue("mongodb_server")
        uri = f"mongodb://{host}"
    with MongoClient(uri, tz_aware=True) as client:
        database = client[f"test_{uuid.uuid4().hex}"]
        yield Warehouse(database, f"mongodb://{host}/{database.name}")
        client.drop_database(database)
