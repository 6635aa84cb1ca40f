"""Locations: one way to handle local paths and URLs, so that a URL never becomes a path."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_filter.errors import InputError
from ml_filter.location import Location
from tests.unreachable import URL as UNREACHABLE


def test_a_location_is_joined_and_split_without_losing_a_slash():
    at_url, local = Location("s3://bucket/runs/") / "head", Location("runs/") / "head"
    assert (str(at_url), str(local)) == ("s3://bucket/runs/head", "runs/head")
    assert (str(at_url.parent), str(local.parent)) == ("s3://bucket/runs", "runs")
    assert at_url.name == local.name == "head"
    assert not at_url.is_local
    assert local.is_local


def test_absolute_locations_name_the_same_place_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Location("runs").absolute == Location(tmp_path / "runs")
    assert Location("s3://bucket/runs/").absolute == Location("s3://bucket/runs")
    assert Location(f"file://{tmp_path}/runs").absolute == Location(tmp_path / "runs")


def test_a_url_that_lost_a_slash_is_refused():
    with pytest.raises(InputError, match=r"^s3:/bucket/head: a URL has two slashes, as in s3://bucket/head$"):
        Location(Path("s3://bucket/head"))
    assert Location("a:/b").is_local  # a directory may have a colon in its name


@pytest.mark.parametrize("root", ["memory://locations", "tmp"])
def test_files_are_written_read_and_found_missing(root, tmp_path):
    directory = Location(tmp_path / "runs" if root == "tmp" else root)
    directory.make_directory()
    file = directory / "a.json"
    assert not file.exists()
    assert file.find_bytes() is None
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        file.read_bytes()
    file.write_bytes(b"1")
    assert file.read_bytes() == b"1"
    (tmp_path / "b").write_bytes(b"2")
    (directory / "below" / "b.json").move_here(tmp_path / "b")
    assert (directory / "below" / "b.json").read_bytes() == b"2"
    assert not (tmp_path / "b").exists()
    assert (directory / "below").exists()


def test_an_unknown_protocol_is_told():
    with pytest.raises(InputError, match=r"^nothing://here: Protocol not known: nothing"):
        Location("nothing://here").exists()


def test_an_unreachable_url_names_the_cause():
    location = Location(UNREACHABLE)
    for call in (location.exists, location.find_bytes, location.make_directory):
        with pytest.raises(InputError, match=r"^unreachable://bucket/runs cannot be reached \(ConnectionError: no rou"):
            call()


@pytest.fixture
def _not_root() -> Iterator[None]:
    """Root may write everywhere, so this is another user for a moment."""
    if os.geteuid():
        yield
        return
    os.seteuid(1000)
    yield
    os.seteuid(0)


@pytest.mark.usefixtures("_not_root")
@pytest.mark.parametrize("below", ["", "/scored-1a2b"])
def test_a_directory_that_is_not_writable_is_named_with_the_user(below):
    message = rf"^/etc is not writable for user {os.geteuid()} \(owner 0\); run `chown {os.geteuid()} /etc`"
    with pytest.raises(InputError, match=message):
        Location(f"/etc{below}").make_directory()


def test_a_name_below_a_file_url_is_on_the_same_path():
    place = Location("file:///tmp/runs") / "out"
    assert (str(place), place.local, place.parent) == (
        "file:///tmp/runs/out",
        Path("/tmp/runs/out"),
        Location("file:///tmp/runs"),
    )


def test_a_local_path_that_cannot_be_read_is_not_said_to_be_on_a_network(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/runs cannot be used \(.*\); check the path and its permissions"):
        Location(tmp_path / "file" / "runs").open("wb")


def test_a_file_from_another_disk_appears_whole(tmp_path, monkeypatch):
    replace, file = os.replace, tmp_path / "new"
    file.write_text("report")

    def on_another_disk(source, target):
        if Path(source) == file:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_another_disk)
    Location(tmp_path / "runs" / "report").move_here(file)
    assert (tmp_path / "runs" / "report").read_text() == "report"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["report"]
    assert not file.exists()
