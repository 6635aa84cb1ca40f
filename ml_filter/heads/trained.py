"""A trained head as metadata: where it is, the result of its training, and its config.json.

Reading it takes two small files. Its weights stay where they are until `store.fetch_head` is asked for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, PrivateAttr

from ml_filter import __version__
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.writer import file_digest
from ml_filter.heads.info import CONFIG_NAME, HeadInfo, info_in
from ml_filter.statistics.evaluation import Evaluation

TRAINING_NAME = "training.json"
TRAINED_ON_NAME = "trained_on.safetensors"
"""`text_keys` of the training documents, sorted: hashes, from which no text can be recovered."""


def inside(name: str) -> str:
    """The name of a file; a ValueError if it leads out of its directory."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is not inside the head's directory")
    return name


class TrainingResult(BaseModel):
    """The content of `training.json`, which is written last: a head without it is incomplete.

    `test` has the figures on the test documents by criterion, `cross_validated` those on the training documents, each
    scored by a head that was fitted on others (with a trained encoder: on the fold that chose its checkpoint). `files`
    has the SHA-256 of every other file of the head.
    """

    config_digest: str
    engine: str
    documents: int
    unlabelled: int
    train_documents: int
    test_documents: int
    test: dict[str, Evaluation]
    cross_validated: dict[str, Evaluation]
    history: list[dict[str, float]] = []
    parents: list[Parent]
    lineage: list[dict[str, object]]
    files: dict[Annotated[str, AfterValidator(inside)], str]
    code_version: str = __version__
    commit: str = ""

    def to_json(self) -> bytes:
        """The content of the file."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()

    @property
    def evaluation(self) -> Evaluation:
        """Figures of the first criterion on the test documents."""
        return next(iter(self.test.values()))


class TrainedHead(BaseModel):
    """A trained head, without its weights.

    Attributes:
        origin: its name in lineage: a directory, a URL, `hf://OWNER/NAME@COMMIT` or `zenml:MODEL@VERSION`.
        config: the content of its config.json.
        copy_at: directory or URL of a copy of its files, which is used if they are not at the origin.
    """

    origin: str
    training: TrainingResult
    config: dict[str, Any]
    copy_at: str | None = None
    _open_copy: Callable[[str], BufferedIOBase] | None = PrivateAttr(None)

    def opens_copy_with(self, opener: Callable[[str], BufferedIOBase]) -> None:
        """Open the files of the copy with this function, for a store with separate credentials."""
        self._open_copy = opener

    def open_copy(self, name: str) -> BufferedIOBase | None:
        """Open a file of the copy; None: no function is set."""
        return None if self._open_copy is None else self._open_copy(name)

    @property
    def digest(self) -> str:
        """Digest of weights and configuration."""
        files = self.training.files.items()
        return digest_of({name: digest for name, digest in files if name.endswith(".safetensors") or _is_config(name)})

    @property
    def parent(self) -> Parent:
        """The head as the input of a later stage."""
        return Parent(path=self.origin, digest=self.digest)

    @property
    def info(self) -> HeadInfo:
        """Criteria and provenance."""
        return info_in(self.config, self.origin)


def _is_config(name: str) -> bool:
    return PurePosixPath(name).name == CONFIG_NAME


def head_files(directory: str | Path) -> list[Path]:
    """The files of a head, with those of a stack's members, sorted by name."""
    root = Path(directory)
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts))


def file_digests(directory: Path) -> dict[str, str]:
    """The SHA-256 of each file of a head except `training.json`, by its name."""
    names = {path.relative_to(directory).as_posix(): path for path in head_files(directory)}
    return {name: file_digest(path) for name, path in names.items() if name != TRAINING_NAME}
