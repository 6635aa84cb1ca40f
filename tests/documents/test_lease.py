"""Of several processes that want to write to a URL, one at a time may."""

from __future__ import annotations

import json
import threading
import time
import uuid

import pytest

from ml_filter.documents.lease import Lease, create_file
from ml_filter.errors import InputError
from ml_filter.location import Location

TTL_S = 0.4


@pytest.fixture(params=["memory", "s3"])
def directory(request):
    if request.param == "memory":
        return Location(f"memory://{uuid.uuid4().hex}/lease")
    return Location(f"{request.getfixturevalue('bucket').url}/lease")


def take(directory, **options):
    return Lease(directory, "the ledger", ttl_s=TTL_S, **options)


def killed(directory):
    """A lease whose holder does nothing any more."""
    lease = take(directory)
    lease._over.set()
    lease._thread.join()
    return lease


def test_a_lease_that_was_released_is_free_at_once(directory):
    first = take(directory)
    first.release()
    began = time.monotonic()
    second = take(directory)
    assert time.monotonic() - began < TTL_S
    assert (first.generation, second.generation) == (1, 2)
    second.release()


def test_a_live_holder_is_named(directory):
    holder = take(directory)
    time.sleep(TTL_S)  # it goes on living, so it is not its age that counts
    with pytest.raises(InputError, match=r"the ledger is in use by another run \(process \d+ on \S+ since 20\d\d-"):
        take(directory)
    holder.check()
    holder.release()


def test_a_killed_holder_is_followed_after_the_time_to_live(directory, caplog):
    killed(directory)
    began = time.monotonic()
    second = take(directory)
    assert time.monotonic() - began >= TTL_S
    assert second.generation == 2
    second.release()


def test_a_holder_that_was_only_slow_notices_that_it_was_followed(directory):
    slow = killed(directory)
    second = take(directory)
    slow._over.clear()
    keeper = threading.Thread(target=slow._keep)
    keeper.start()
    keeper.join()
    with pytest.raises(InputError, match="was taken over by another run"):
        slow.check()
    slow.release()
    assert not json.loads((directory / "000002.json").read_bytes())["is_released"]
    second.check()
    second.release()


def test_of_many_that_wait_one_follows(directory):
    killed(directory)
    leases, errors = [], []

    def wait():
        try:
            leases.append(take(directory))
        except InputError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(leases), len(errors)) == (1, 3)
    leases[0].release()


def test_generations_that_were_used_are_not_used_again(directory):
    lease = take(directory, above=7)
    assert lease.generation == 8
    lease.release()


def test_a_lease_that_cannot_be_read_is_taken_after_the_time_to_live(directory):
    (directory / "000003.json").write_bytes(b"{")
    lease = take(directory)
    assert lease.generation == 4
    lease.release()


def test_a_file_is_created_once_and_creating_it_again_with_its_own_content_is_no_error(directory):
    file = directory / "file"
    assert create_file(file, b"mine")
    assert create_file(file, b"mine")
    assert not create_file(file, b"another")
    assert file.read_bytes() == b"mine"
