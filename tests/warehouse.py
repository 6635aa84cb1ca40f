"""A MongoDB database for a test."""

from __future__ import annotations

from typing import Any, NamedTuple

from pymongo.database import Database


class Warehouse(NamedTuple):
    """A database, and its location without the name of a collection."""

    database: Database[dict[str, Any]]
    url: str

    def location(self, name: str) -> str:
        """The location of a collection."""
        return f"{self.url}.{name}"
