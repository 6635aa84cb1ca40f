"""A Hub for tests of publishing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.publishing.hub_server import Hub, local_hub


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    """A Hub on this machine that commands in this process use, with a token that may write."""
    with local_hub(tmp_path / "hub-cache") as running:
        yield running
