"""Fixtures of other tests: HTTP servers on loopback, and a tiny base."""

from tests.annotation.conftest import serve  # noqa: F401
from tests.downstream.tuning.conftest import tiny_base  # noqa: F401
