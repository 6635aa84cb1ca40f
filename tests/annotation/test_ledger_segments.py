"""A ledger at a URL equals one in a local file, whatever happens to processes, uploads and segments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.ledger import Key, open_ledger
from ml_filter.annotation.ledger.segments import SegmentLedger
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.annotation.run import answers_of
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError
from ml_filter.location import Location
from tests.annotation.ledgers import KEY, row
from tests.annotation.misbehaving import MisbehavingServer, Reply, chat

GOOD = chat("It explains. Score: 3")
SETTINGS = Settings(_env_file=None, endpoint=None, model=None)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch):
    monkeypatch.setenv("ML_FILTER_LEASE_S", "0.4")


@pytest.fixture
def location() -> Location:
    return Location(f"memory://{uuid.uuid4().hex}/ledger")


def opened(location: Location, **settings: Any) -> SegmentLedger:
    ledger = open_ledger(location, AskConfig(**settings))
    assert isinstance(ledger, SegmentLedger)
    return ledger


def segments(location: Location) -> list[str]:
    return sorted(path for path in location.fs.ls(location.path, detail=False) if path.endswith(".zst"))


def written(location: Location, answers: int, per_segment: int = 2) -> None:
    with opened(location) as ledger:
        for number in range(answers):
            ledger.record(KEY._replace(document_id=f"d{number}"), 0, row("scored"))
            if number % per_segment == per_segment - 1:
                ledger.flush()


def kill(ledger: SegmentLedger) -> None:
    """End everything that the process of a ledger does, without a word to the others."""
    ledger._lease._over.set()
    ledger._lease._thread.join()
    with ledger._changed:
        ledger._pending, ledger._closing = [], True
        ledger._changed.notify_all()
    ledger._thread.join()
    ledger._local.close()


KEYS = st.builds(Key, st.sampled_from("ab"), st.just("text"), st.sampled_from("qr"), st.integers(0, 1))
TOKENS = st.none() | st.integers(0, 9)
ROWS = st.builds(
    lambda status, prompt, completion, raw: row(status, prompt, completion_tokens=completion, windows=2, raw=raw),
    st.sampled_from(["scored", "failed"]), TOKENS, TOKENS, st.text(max_size=3),
)  # fmt: skip
CHANGES = st.one_of(
    st.tuples(st.just("record"), KEYS, st.integers(0, 1), ROWS, st.tuples(st.integers(0, 9), st.integers(0, 9))),
    st.tuples(st.just("forget"), KEYS),
    st.tuples(st.sampled_from(["reopen", "kill", "flush", "replay"])),
)


@settings(max_examples=25)
@given(st.lists(CHANGES, max_size=12))
def test_any_sequence_of_changes_kills_and_replays_equals_the_local_ledger(changes):
    location = Location(f"memory://{uuid.uuid4().hex}")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as directory,
        SqliteLedger(Path(directory) / "ledger.sqlite") as expected,
    ):
        patch.setenv("ML_FILTER_LEASE_S", "0.02")
        ledger = opened(location, ledger_answers=3)
        for name, *arguments in changes:
            if name in ("record", "forget"):
                for each in (ledger, expected):
                    getattr(each, name)(*arguments)
            elif name == "kill":
                ledger.flush()
                kill(ledger)
                ledger = opened(location)
            elif name == "reopen":
                ledger.close()
                ledger = opened(location)
            else:
                getattr(ledger, name)()
        ledger.close()
        with opened(location) as ledger:
            for key in (Key(d, "text", q, v) for d in "ab" for q in "qr" for v in (0, 1)):
                assert ledger.answers(key) == expected.answers(key)
                assert ledger.statuses(key) == expected.statuses(key)
            for questions in (["q"], ["r"], ["q", "r"]):
                assert ledger.tokens_used(questions) == expected.tokens_used(questions)
            assert ledger.is_worthless() == expected.is_worthless()


# --- Segments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"ledger_answers": 4}, {"ledger_seconds": 0.05}], ids=["answers", "seconds"])
def test_answers_are_saved_when_they_are_many_or_old(location, settings):
    with opened(location, **settings) as ledger:
        for number in range(2):
            ledger.record(KEY._replace(vote=number), 0, row("scored"))
        with ledger._changed:
            assert ledger._changed.wait_for(lambda: not ledger._unsaved, 10)
        assert len(segments(location)) >= 1
        ledger.record(KEY._replace(vote=9), 0, row("scored"))
    with opened(location) as ledger:
        assert ledger.tokens_used(["question"]) == (30, 0)


@pytest.mark.parametrize("damage", ["truncated", "changed", "no zstandard", "other lines"])
def test_a_damaged_segment_is_named_and_once_it_is_deleted_its_answers_are_asked_again(location, damage):
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING")
    written(location, 6)
    path = segments(location)[1]
    content = bytearray(location.fs.cat_file(path))
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "changed":
        content[len(content) // 2] ^= 255
    elif damage == "no zstandard":
        content = bytearray(b"Not found")
    else:
        import zstandard

        content = bytearray(zstandard.compress(b'{"key": ["d1"]}\n'))
    location.fs.pipe_file(path, bytes(content))
    with pytest.raises(InputError, match=rf"{path}, a segment of the ledger {location}, is damaged .*\. Restore it"):
        opened(location)
    location.fs.rm_file(path)
    with opened(location) as ledger:
        answered = [ledger.statuses(KEY._replace(document_id=f"d{number}")) for number in range(6)]
    assert [bool(statuses) for statuses in answered] == [True, True, False, False, True, True]
    logger.remove(sink)
    assert any("1 segments before 000001-000002.jsonl.zst are missing" in warning for warning in warnings)


def test_a_location_with_other_files_is_left_alone(location):
    (location / "corpus.jsonl").write_bytes(b"{}\n")
    with pytest.raises(InputError, match="is not a ledger of annotations: it holds other files"):
        opened(location)
    assert location.fs.ls(location.path, detail=False) == [(location / "corpus.jsonl").path]


def test_answers_of_a_run_that_was_followed_while_it_slept_are_kept(location):
    slow = opened(location)
    slow.record(KEY, 0, row("scored"))
    slow._lease._over.set()
    slow._lease._thread.join()
    with opened(location) as following:
        following.record(KEY._replace(vote=1), 0, row("scored"))
        slow._lease._over.clear()
        slow._lease._keep()  # it wakes up
        with pytest.raises(InputError, match="was taken over by another run"):
            slow.has_room()
        slow.close()
    with opened(location) as ledger:
        assert ledger.tokens_used(["question"]) == (20, 0)


# --- Uploads that fail -----------------------------------------------------------------------------------------------


class Failing(MemoryFileSystem):
    """Segments cannot be written while `fails` is set."""

    protocol = "failing"
    fails = False

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if self.fails and path.endswith(".zst"):
            raise ConnectionError("no route to host")
        super().pipe_file(path, value, mode=mode, **kwargs)


fsspec.register_implementation("failing", Failing, clobber=True)


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setattr(Failing, "fails", True)
    return Location(f"failing://{uuid.uuid4().hex}")


def test_a_run_whose_answers_cannot_be_saved_ends_and_loses_no_more_than_the_bound(
    failing, serve, pages, asking, monkeypatch
):
    server, source = serve(lambda request: Reply(GOOD, delay_s=0.002)), pages(100)
    config = asking(server, ledger=str(failing / "ledger"), ledger_answers=8, max_outage_s=0.6, timeout_s=30)
    output = str(failing / "out")
    with pytest.raises(InputError, match=r"answers cannot be saved to the ledger.*ConnectionError: no route to host"):
        annotate_documents(source, config, output, SETTINGS)
    lost = len(server.requests)
    assert 8 <= lost <= 8 + config.max_concurrency
    monkeypatch.setattr(Failing, "fails", False)
    manifest = annotate_documents(source, config, output, SETTINGS)
    assert manifest.counts["scored"] == 100
    assert len(server.requests) == 100 + lost


def test_a_short_outage_of_the_storage_is_waited_for(failing, monkeypatch):
    ledger = opened(failing, ledger_answers=2)
    for vote in range(2):
        ledger.record(KEY._replace(vote=vote), 0, row("scored"))
    assert not ledger.has_room()
    monkeypatch.setattr(Failing, "fails", False)
    ledger.wait_for_room()
    ledger.close()
    with opened(failing) as ledger:
        assert ledger.tokens_used(["question"]) == (20, 0)


def test_a_ledger_that_is_closed_during_an_outage_pauses_between_tries(failing, monkeypatch):
    monkeypatch.setattr("ml_filter.annotation.ledger.segments._LONGEST_PAUSE_S", 0.2)
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING")
    ledger = opened(failing, max_outage_s=1)
    ledger.record(KEY, 0, row("scored"))
    with pytest.raises(InputError, match="answers cannot be saved to the ledger"):
        ledger.close()
    logger.remove(sink)
    assert 1 <= sum("tried again in" in warning for warning in warnings) <= 5


# --- Real processes, a real S3 API -----------------------------------------------------------------------------------


@pytest.fixture
def start(bucket, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Start ml-filter in a box of its own: only the bucket and the endpoint are shared."""

    def run(*arguments: str) -> subprocess.Popen[str]:
        box = Path(tempfile.mkdtemp(dir=tmp_path, prefix="box-"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ML_FILTER")}
        environment |= {**bucket.environment, "HOME": str(box), "TMPDIR": str(box), "PYTHONPATH": str(ROOT)}
        environment["ML_FILTER_LEASE_S"] = "1"
        line = [sys.executable, "-m", "ml_filter.cli", "-v", *arguments]
        return subprocess.Popen(
            line, cwd=box, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    return run


def annotate(server: MisbehavingServer, bucket: Any, prompt: str, *options: str) -> list[str]:
    line = ["annotate", f"{bucket.url}/pages.jsonl.gz", "--prompt", prompt, "--endpoint", server.url, "--model", "m"]
    return [*line, "--max-concurrency", "4", "--output", f"{bucket.url}/out", "--ledger-answers", "10", *options]


def upload(bucket: Any, source: SourceConfig) -> None:
    import gzip

    [path] = source.paths
    (Location(bucket.url) / "pages.jsonl.gz").write_bytes(gzip.compress(Path(path).read_bytes()))


@pytest.mark.slow
def test_after_a_kill_a_run_in_an_empty_box_asks_no_more_than_the_bound_again(start, bucket, serve, pages, prompt_file):
    upload(bucket, pages(120))
    delay = random.Random(3)
    server = serve(lambda request: Reply(GOOD, delay_s=delay.uniform(0.005, 0.03)))
    line = annotate(server, bucket, prompt_file())
    killed = start(*line)
    while len(server.requests) < 60:
        assert killed.poll() is None
        time.sleep(0.005)
    with pytest.raises(InputError, match=r"the ledger s3://\S+/out/ledger is in use by another run \(process \d+ on"):
        open_ledger(f"{bucket.url}/out/ledger", AskConfig())
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = len(server.requests)
    assert before < 120
    with start(*line) as second:
        _, told = second.communicate()
    assert second.returncode == 0, told
    assert f"is held by process {killed.pid} on" in told
    asked_again = len(server.requests) - 120
    assert 0 <= asked_again <= 10 + 4
    manifest = find_manifest(f"{bucket.url}/out")
    assert manifest is not None
    assert manifest.counts["scored"] == manifest.rows == 120
    assert answers_of(manifest) == {
        "answers_asked": len(server.requests) - before, "answers_from_ledger": 120 - len(server.requests) + before
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_saves_all_answers_and_lets_the_next_one_in(
    start, bucket, serve, pages, prompt_file
):
    upload(bucket, pages(40))
    server = serve(lambda request: Reply(GOOD, fault="hang" if int(request.document[1:]) >= 30 else None))
    line = annotate(server, bucket, prompt_file(), "--ledger-answers", "1000")
    with start(*line) as ended:
        while len(server.requests) < 34:
            assert ended.poll() is None
            time.sleep(0.005)
        os.kill(ended.pid, signal.SIGTERM)
        _, told = ended.communicate()
    assert "every answer so far is kept" in told
    server.answer = lambda request: Reply(GOOD)
    with start(*line) as second:
        _, told = second.communicate()
    assert second.returncode == 0, told
    assert "is held by process" not in told
    assert {document for document, times in server.asked.items() if times > 1} == {f"d{i}" for i in range(30, 34)}
