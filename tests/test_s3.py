"""What the code relies on: S3 and its driver create an object only if there is none."""

import pytest

from ml_filter.location import Location


def test_of_two_exclusive_writes_the_second_fails(bucket):
    place = Location(bucket.url) / "lease"
    place.fs.pipe_file(place.path, b"first", mode="create")
    with pytest.raises(FileExistsError):
        place.fs.pipe_file(place.path, b"second", mode="create")
    assert place.read_bytes() == b"first"
    assert bucket.keys() == ["lease"]
