"""A location: a local path, or a URL on any file system that fsspec knows (s3://, gs://, az://, memory://).

Never pass a URL to `Path`: it drops a slash, and what was meant for a bucket ends in a local directory named `s3:`.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.utils import get_protocol

from ml_filter.errors import InputError, MlFilterError
from ml_filter.extras import how_to_install

_ONE_SLASH = re.compile(r"^([a-z][a-z0-9+.-]+):/(?!/)")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs"}
"""They have no directories to make. To make one anyway, their drivers would create the bucket of a mistyped URL."""
_DRIVERS = {"hdfs": "hdfs:// needs Java and Hadoop (JAVA_HOME, HADOOP_HOME, CLASSPATH)"}

_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""By protocol: the extra with its driver."""


class Location:
    """A place for a file or directory; `str()` gives it as the user wrote it.

    Every method raises InputError, with the location and the cause, if the file system cannot be reached.

    Raises:
        InputError: the text is a URL that `Path` has cut.
    """

    def __init__(self, text: str | PurePath | Location) -> None:
        self._text = str(text)
        match = _ONE_SLASH.match(self._text)
        if match and match[1] not in ("file", "local") and match[1] in fsspec.available_protocols():
            raise InputError(f"{self._text}: a URL has two slashes, as in {match[1]}://{self._text[match.end() :]}")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Location({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __truediv__(self, name: str) -> Location:
        return Location(PurePosixPath(self._text, name) if self._is_path else f"{self._text.rstrip('/')}/{name}")

    @property
    def _is_path(self) -> bool:
        return "://" not in self._text

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self._text).name

    @property
    def parent(self) -> Location:
        """The directory that it is in."""
        return Location(
            PurePosixPath(self._text).parent if self._is_path else self._text.rstrip("/").rpartition("/")[0]
        )

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, as a path or as file://."""
        return get_protocol(self._text) in ("file", "local")

    @property
    def local(self) -> Path:
        """The path of a local one."""
        assert self.is_local, f"{self} is not local"
        return Path(self._text if self._is_path else self.path)

    @property
    def absolute(self) -> Location:
        """The same place for a process in another working directory."""
        return Location(self.local.absolute()) if self.is_local else Location(self._text.rstrip("/"))

    @property
    def fs(self) -> AbstractFileSystem:
        """The file system."""
        return self._opened[0]

    @property
    def path(self) -> str:
        """The path on the file system."""
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        with reaching(self):
            try:
                fs, path = fsspec.core.url_to_fs(self._text)
            except (ImportError, ValueError) as error:  # an unknown protocol, or one whose driver is not installed
                extra = _EXTRAS.get(get_protocol(self._text)) if isinstance(error, ImportError) else None
                advice = "" if extra is None else f"; {how_to_install(extra)}"
                raise InputError(f"{self}: {error}{advice}") from error
        return fs, path

    def exists(self) -> bool:
        """Whether a file or directory is here."""
        with reaching(self):
            self.fs.invalidate_cache(self.fs._parent(self.path))  # others may have written here
            try:
                self.fs.info(self.path)
            except (FileNotFoundError, NotADirectoryError) as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                    raise cause from None  # the HTTP driver says the same of a server that is down
                return False
        return True

    def require(self) -> None:
        """Raise InputError if nothing is here."""
        if not self.exists():
            raise InputError(f"{self} does not exist")

    def open(self, mode: Literal["rb", "wb"] = "rb") -> io.BufferedIOBase:
        """Open the file; what is written to a URL appears when the file is closed."""
        with reaching(self):
            return cast("io.BufferedIOBase", self.fs.open(self.path, mode))

    def find_bytes(self) -> bytes | None:
        """The content of a file; None: no such file."""
        with reaching(self):
            try:
                content: bytes = self.fs.cat_file(self.path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except IsADirectoryError:
                raise InputError(f"{self} cannot be read: it is a directory") from None
        return content

    def read_bytes(self) -> bytes:
        """The content of a file, which must exist."""
        content = self.find_bytes()
        if content is None:
            raise InputError(f"{self} does not exist")
        return content

    def write_bytes(self, content: bytes) -> None:
        """Write a small file completely or not at all."""
        if self.is_local:
            write_atomically(self.local, content)
            return
        with reaching(self):
            self.fs.pipe_file(self.path, content)

    def copy_here(self, file: Path) -> None:
        """Copy a local file to this place."""
        self.parent.make_directory()
        with reaching(self):
            self.fs.put_file(str(file), self.path)

    def move_here(self, file: Path) -> None:
        """Move a finished local file to this place."""
        if self.is_local:
            self.local.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(file, self.local)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # From another disk, such as /tmp to a volume: copied beside its place first, so that it appears whole.
                temporary = self.local.with_name(f".{self.name}.tmp")
                shutil.copyfile(file, temporary)
                os.replace(temporary, self.local)
                file.unlink()
            return
        self.copy_here(file)
        file.unlink()

    def make_directory(self) -> None:
        """Make the directory and those above it, where the file system has directories."""
        if get_protocol(self._text) in _OBJECT_STORES:
            return
        with reaching(self):
            try:
                self.fs.makedirs(self.path, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise InputError(f"{self} cannot be a directory: {error}") from error
            except PermissionError:
                pass
        if self.is_local:
            _require_writable(self.local)


def _require_writable(directory: Path) -> None:
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        user, owner = os.geteuid(), nearest.stat().st_uid
        raise InputError(
            f"{nearest} is not writable for user {user} (owner {owner}); run `chown {user} {nearest}` (of a volume, on "
            "the machine that it comes from), run as its owner, or choose another --output"
        )


@contextmanager
def local_copy(directory: Location, names: Iterable[str]) -> Iterator[Path]:
    """A local directory with these files of a directory: itself, or a temporary copy of what is at a URL."""
    if directory.is_local:
        yield directory.local
        return
    with tempfile.TemporaryDirectory(prefix="ml_filter-copy-") as scratch:
        for name in names:
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with reaching(directory):
                directory.fs.get_file((directory / name).path, str(target))
        yield Path(scratch)


@contextmanager
def reaching(location: str | Location) -> Iterator[None]:
    """Report what a file system or its client raises as an error that names the location.

    Raises:
        InputError: the location cannot be reached.
    """
    try:
        yield
    except MlFilterError:
        raise
    except Exception as error:  # file systems and their clients have no common base class
        reason = str(error).strip().partition("\n")[0] or "no details"
        advice = _DRIVERS.get(str(location).partition(":")[0], "check the address, the network and your access to it")
        if get_protocol(str(location)) in ("file", "local"):
            raise InputError(f"{location} cannot be used ({reason}); check the path and its permissions") from error
        raise InputError(f"{location} cannot be reached ({type(error).__name__}: {reason}); {advice}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small local file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
