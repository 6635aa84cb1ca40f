"""What is said about long work where there is no terminal."""

from loguru import logger

from ml_filter.progress import Progress


def test_time_left_is_told_once_something_is_done():
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")
    try:
        made = Progress("Reading results", 6, None)
        made.log()
        made.advance(2)
        made.log()
    finally:
        logger.remove(sink)
    assert lines[0] == "Reading results: 0 of 6, 0.0/s\n"
    assert lines[1].startswith("Reading results: 2 of 6,")
    assert lines[1].endswith(" s left\n")


def test_what_was_finished_before_is_no_work_and_a_note_is_told():
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")
    try:
        made = Progress("Annotating", 1000, None, lambda: "1 failed")
        made.skip(900)
        made.advance(50)
        made.log()
    finally:
        logger.remove(sink)
    assert lines[0].startswith("Annotating: 50 of 100,")
    assert lines[0].endswith(" s left, 1 failed\n")
