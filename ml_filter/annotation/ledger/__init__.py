"""The ledger: every answer is saved before it counts as done, so that nothing is paid for twice."""

from ml_filter.annotation.ledger.base import Key, Ledger, Paid
from ml_filter.annotation.ledger.opening import default_ledger, open_ledger

__all__ = ["Key", "Ledger", "Paid", "default_ledger", "open_ledger"]
