"""Open the ledger that belongs to a location: the one place that knows all implementations."""

from __future__ import annotations

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.ledger.base import Ledger
from ml_filter.annotation.ledger.mongodb import MongoLedger
from ml_filter.annotation.ledger.segments import SegmentLedger
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.documents.manifest import LEDGER_DIRECTORY, LEDGER_NAME
from ml_filter.location import Location
from ml_filter.mongodb import is_mongodb


def open_ledger(location: str | Location, config: AskConfig) -> Ledger:
    """The ledger at a location; the configuration says how often one at a URL saves answers.

    Raises:
        InputError: another process holds the ledger, or what is there is not a ledger.
    """
    place = Location(location)
    if is_mongodb(str(place)):
        return MongoLedger(str(place))
    return SqliteLedger(place.local) if place.is_local else SegmentLedger(place, config)


def default_ledger(output: Location) -> Location:
    """Where the ledger of an output directory is unless the settings name another."""
    return output / (LEDGER_NAME if output.is_local else LEDGER_DIRECTORY)
