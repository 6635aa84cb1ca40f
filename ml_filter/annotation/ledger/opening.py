"""Open the ledger that belongs to a location: the one place that knows all implementations."""

from __future__ import annotations

from ml_filter.annotation.ledger.base import Ledger
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.documents.manifest import LEDGER_NAME
from ml_filter.errors import InputError
from ml_filter.location import Location


def open_ledger(location: str | Location) -> Ledger:
    """The ledger at a location.

    Raises:
        InputError: another process holds the ledger, or what is there is not a ledger.
    """
    place = Location(location)
    if not place.is_local:
        raise InputError(f"{place}: the ledger must be a local file")
    return SqliteLedger(place.local)


def default_ledger(output: Location) -> Location:
    """Where the ledger of an output directory is unless the settings name another."""
    return output / LEDGER_NAME
