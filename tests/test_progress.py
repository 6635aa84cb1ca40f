"""Progress where there is no terminal."""

from collections.abc import Iterator

import pytest
from loguru import logger

from ml_filter.progress import Progress, progress


@pytest.fixture
def lines() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")
    yield lines
    logger.remove(sink)


def test_remaining_time_is_shown_once_an_item_is_finished(lines):
    bar = Progress("Reading results", 6)
    bar.log()
    bar.advance(2)
    bar.log()
    assert lines[0] == "Reading results: 0 of 6, 0.0/s\n"
    assert lines[1].startswith("Reading results: 2 of 6,")
    assert lines[1].endswith(" s left\n")


def test_skipped_items_leave_the_total_and_a_note_ends_the_line(lines):
    bar = Progress("Annotating", 1000, note=lambda: "1 failed")
    bar.skip(900)
    bar.advance(50)
    bar.log()
    assert lines[0].startswith("Annotating: 50 of 100,")
    assert lines[0].endswith(" s left, 1 failed\n")


def test_the_last_line_states_what_was_done(lines):
    with progress("Sampling") as bar:
        bar.advance(3)
    assert [line.partition(",")[0] for line in lines] == ["Sampling: 3"]
