from pathlib import Path

import pytest

from ml_filter.documents.lock import WriterLock
from ml_filter.errors import InputError


def lock(root: Path, part: str | None = None) -> WriterLock:
    (root / "parts").mkdir(exist_ok=True)
    return WriterLock(root, "runs/out", "parts", part)


def test_a_single_writer_keeps_everyone_out(tmp_path, monkeypatch):
    monkeypatch.setattr("ml_filter.documents.lock._BRIEF_WAIT_S", 0)
    first = lock(tmp_path)
    first.begin()
    for part in (None, "rank-0"):
        with pytest.raises(InputError, match="runs/out is being written by another process"):
            lock(tmp_path, part).begin()
    first.release()
    lock(tmp_path).begin()


def test_parts_write_at_the_same_time_and_keep_a_single_writer_out(tmp_path):
    parts = [lock(tmp_path, f"rank-{number}") for number in range(2)]
    for part in parts:
        part.begin()
        part.share()
    same_part = lock(tmp_path, "rank-1")
    same_part.begin()
    with pytest.raises(InputError, match="is being written by another process"):
        same_part.share()
    same_part.release()
    single = lock(tmp_path)
    with pytest.raises(InputError, match="is being written by another process"):
        single.begin()
    single.release()
    for part in parts:
        part.release()
    lock(tmp_path).begin()


def test_parts_are_exclusive_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr("ml_filter.documents.lock._BRIEF_WAIT_S", 0)
    first, second = lock(tmp_path, "rank-0"), lock(tmp_path, "rank-1")
    with first.exclusive(), pytest.raises(InputError, match="is being written"), second.exclusive():
        pass
    with second.exclusive():
        pass


def test_nothing_is_locked_at_a_url():
    first, second = (WriterLock(None, "s3://bucket/out", "parts", None) for _ in range(2))
    first.begin()
    second.begin()
