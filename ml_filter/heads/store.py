"""Where heads are, and how their files come to this machine and leave it.

A head is named by its directory, its URL, or `hf://OWNER/NAME[@REVISION]`. A directory is used where it is. The files
of a head at a URL are fetched once, to a cache by their digests; what is damaged there is fetched again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from filelock import FileLock
from loguru import logger
from numpy.typing import NDArray
from pydantic import ValidationError

from ml_filter.config import Settings, hub_token
from ml_filter.documents.lock import WriterLock
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.sources import file_state
from ml_filter.documents.writer import file_digest
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.info import CONFIG_NAME, head_origin, read_config
from ml_filter.heads.trained import (
    TRAINED_ON_NAME,
    TRAINING_NAME,
    TrainedHead,
    TrainingResult,
    file_digests,
    head_files,
)
from ml_filter.location import Location, reaching, write_atomically

ZENML = "zenml:"
"""Prefix of a version in ZenML's model store, which only the pipelines can read."""
HUB = "hf:"
HUB_NAME = re.compile(r"^hf://(?P<name>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^@\s]+))?$")
_USED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.tiktoken")
"""Weights, configuration and vocabularies, but no code and no pickles."""
_BLOCK = 2**22


@dataclass(frozen=True)
class LocalHead:
    """A head, or a published classifier, on this machine.

    Attributes:
        directory: with its files.
        location: where another machine finds it.
        origin: its name in lineage.
        digest: of weights and configuration.
    """

    directory: Path
    location: str
    origin: str
    digest: str

    @property
    def parent(self) -> Parent:
        """The head as the input of a later stage."""
        return Parent(path=self.origin, digest=self.digest)


HeadName = str | Path | TrainedHead | LocalHead
"""A directory, a URL, `hf://OWNER/NAME[@REVISION]`, or what was found there."""


# --- Read ------------------------------------------------------------------------------------------------------------


def read_head(name: str | Path) -> TrainedHead:
    """Read what is known of a head, without its weights.

    Raises:
        InputError: the head is missing or incomplete, or cannot be reached.
        ConfigError: the name is in ZenML's model store, or is not a Hub name.
    """
    return _read(*_locate(name, ("*.json",)))


def _read(location: Location, origin: str) -> TrainedHead:
    content = (location / TRAINING_NAME).find_bytes()
    if content is None:
        raise InputError(f"{origin} has no trained head (no {TRAINING_NAME}); train one with ml-filter train")
    try:
        training = TrainingResult.model_validate_json(content)
    except ValidationError as error:
        raise InputError(
            f"{location / TRAINING_NAME} is from another version of ml-filter; train the head again: {error}"
        ) from error
    return TrainedHead(origin=origin, training=training, config=read_config(location))


def read_trained_on(head: TrainedHead) -> NDArray[np.uint64] | None:
    """Sorted `text_keys` of the documents that a head was trained on; None: not recorded."""
    from safetensors.numpy import load

    if TRAINED_ON_NAME not in head.training.files:
        return None
    with open_file(head, TRAINED_ON_NAME) as file:
        return load(file.read())["texts"]


def open_file(head: TrainedHead, name: str) -> BufferedIOBase:
    """Open a file of a head where it is."""
    return head.open_copy(name) or (_locate(head.copy_at or head.origin)[0] / name).open()


def find_head(head: HeadName) -> TrainedHead | LocalHead:
    """A trained head without its weights, or a published classifier with its weights; raises as `fetch_head`."""
    if isinstance(head, TrainedHead | LocalHead):
        return head
    location, origin = _locate(head)
    if (location / TRAINING_NAME).exists() or not _is_published(location):
        return _read(location, origin)
    directory = location.local if location.is_local else _fetch_published(location)
    digests = {path.name: file_digest(path) for path in head_files(directory)}
    return LocalHead(directory, origin, origin, digest_of(digests))


def fetch_head(head: HeadName) -> LocalHead:
    """Bring the files of a head, or of a published classifier, to this machine and check them.

    Raises:
        InputError: the head is missing or incomplete, cannot be reached, or a file was changed after the training.
        ConfigError: as `read_head`.
    """
    found = find_head(head)
    if isinstance(found, LocalHead):
        return found
    return LocalHead(_directory_of(found), found.copy_at or found.origin, found.origin, found.digest)


def _directory_of(head: TrainedHead) -> Path:
    """A directory with the files of a head, as they were when it was trained."""
    files = {name: digest for name, digest in head.training.files.items() if _is_used(name)}
    problem = ""
    for name in (head.origin, head.copy_at):
        if name is None or name.startswith(ZENML):
            continue
        location = _locate(name)[0] if name.startswith(HUB) else Location(name)
        if location.is_local and location.local.is_dir():
            problem = damage(location.local, files)
            if not problem:
                return location.local
    if problem and head.copy_at is None:
        raise InputError(f"{head.origin}: {problem}. Restore the file, or train the head again")
    training = head.training.to_json()
    return _cached(digest_of(files), files, head.origin, lambda name: open_file(head, name), training)


def damage(directory: Path, files: Mapping[str, str]) -> str:
    """What is wrong with the first file that is not as it was; empty: nothing."""
    for name, digest in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if digest and file_digest(path) != digest:
            return f"{name} is not what it was when the head was trained"
    return ""


# --- Find ------------------------------------------------------------------------------------------------------------


def _locate(name: str | Path, patterns: Sequence[str] = _USED) -> tuple[Location, str]:
    """Where the files of a head are, and its origin. Those of a Hub repository that match are downloaded first.

    The Hub's cache is by commit: nothing is downloaded twice, and a cached revision is found without a network.
    """
    text = str(name)
    if text.startswith(HUB):
        match = HUB_NAME.match(text)
        if match is None:
            raise ConfigError(f"{text!r} is not a Hub name; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        directory = from_hub(match["name"], match["revision"], patterns)
        return Location(directory), head_origin(directory)
    if text.startswith(ZENML):
        raise ConfigError(
            f"{text!r} is in ZenML's model store, which only pipelines can read; use its directory or URL, which the "
            "summary of the pipeline shows, or hf://OWNER/NAME"
        )
    location = Location(text)
    if location.is_local and not location.local.is_dir():
        raise InputError(
            f"{text} has no trained head: the directory does not exist; train one with ml-filter train, or use one "
            "from the Hub as hf://OWNER/NAME[@REVISION]"
        )
    return location, text


def from_hub(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """A directory with those files of a Hub repository that match; its last part is the commit.

    Raises:
        InputError: the repository cannot be reached, or the revision does not exist.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    url = f"hf://{name}@{revision}" if revision else f"hf://{name}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), token=hub_token()))
    except Exception as error:  # the Hub client raises about twenty types, some from its HTTP library
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0].rstrip('.')}"
        if isinstance(error, LocalEntryNotFoundError):
            reason = "the Hub cannot be reached, and there is no copy on this machine"
        raise InputError(
            f"{url}: {reason}. Check the name, the revision, the "
            "network and, for a private repository, HF_TOKEN or `hf auth login`"
        ) from error


def _is_used(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _USED)


def _is_published(location: Location) -> bool:
    if not (location / CONFIG_NAME).exists():
        return False
    architectures = read_config(location).get("architectures")
    return isinstance(architectures, list) and str(*architectures[:1]).endswith("ForSequenceClassification")


# --- The cache -------------------------------------------------------------------------------------------------------


def _cached(
    key: str,
    files: Mapping[str, str],
    origin: str,
    open_file: Callable[[str], BufferedIOBase],
    training: bytes | None = None,
) -> Path:
    """The directory of a head in the cache. One process fetches it, others wait.

    Args:
        key: a digest that stands for the files.
        files: their digests; empty: not known yet.
        origin: where they come from, for messages.
        open_file: opens one of them there.
        training: the content of training.json, if it is a trained head.
    """
    entry = _cache() / key[:32]
    with FileLock(f"{entry}.lock"):
        if damage(entry, files):
            partial = entry.with_name(f"{entry.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            logger.info(f"Fetching the head {origin} to {entry}")
            for name in files:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with open_file(name) as source, (partial / name).open("wb") as target, reaching(origin):
                    shutil.copyfileobj(source, target, _BLOCK)
            if problem := damage(partial, files):
                raise InputError(f"{origin}: {problem}. Train the head again")
            if training is not None:
                (partial / TRAINING_NAME).write_bytes(training)
            _replace(partial, entry)
    return entry


def _fetch_published(location: Location) -> Path:
    """The directory of a published classifier at a URL, in the cache by the state of its files."""
    with reaching(location):
        found = location.fs.find(location.path, detail=True)
    names = {path.removeprefix(location.path).lstrip("/"): file_state(found[path]) for path in sorted(found)}
    names = {name: state for name, state in names.items() if _is_used(name) and "/" not in name}
    key = digest_of([str(location), names])
    digests = _cache() / f"{key[:32]}.json"
    with FileLock(f"{digests}.lock"):
        files = json.loads(digests.read_bytes()) if digests.exists() else dict.fromkeys(names, "")
        directory = _cached(key, files, str(location), lambda name: (location / name).open())
        if not digests.exists():
            write_atomically(digests, json.dumps(file_digests(directory)).encode())
    return directory


def _cache() -> Path:
    directory = Settings().cache_dir.expanduser() / "heads"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"ML_FILTER_CACHE_DIR: cannot write to {directory}: {error.strerror}") from error
    return directory


def _replace(directory: Path, entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True)
    os.replace(directory, entry)


# --- Write -----------------------------------------------------------------------------------------------------------


@contextmanager
def new_head(location: Location, digest: str) -> Iterator[Path]:
    """A local directory to make a head in, locked against other processes: the directory itself, or scratch for a URL.

    What a killed process left in scratch is used again for the same settings and input, which `digest` stands for. At
    the end, a head in scratch is uploaded, `training.json` last, and goes into the cache.

    Raises:
        InputError: another process is writing to the directory, or the URL cannot be reached.
    """
    directory = location.local if location.is_local else _cache() / f"new-{digest_of([str(location), digest])[:32]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{location} cannot be a directory: {error}") from error
    lock = WriterLock(directory, str(location), ".parts", part=None)
    lock.begin()
    try:
        yield directory
        if not location.is_local:
            _upload(directory, location)
    finally:
        lock.release()


def _upload(directory: Path, location: Location) -> None:
    training = (directory / TRAINING_NAME).read_bytes()
    files = TrainingResult.model_validate_json(training).files
    location.make_directory()
    for name in files:
        (location / name).copy_here(directory / name)
    (location / TRAINING_NAME).write_bytes(training)
    logger.info(f"Uploaded the head to {location}")
    entry = _cache() / digest_of({name: digest for name, digest in files.items() if _is_used(name)})[:32]
    with FileLock(f"{entry}.lock"):
        _replace(directory, entry)
