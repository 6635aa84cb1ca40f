"""Fixtures of the annotation tests: HTTP servers on loopback."""

from tests.annotation.conftest import serve  # noqa: F401 - a fixture
