"""What all kinds of head have in common: a trainer that fits one to labelled documents, and a head that scores texts.

A trainer is given the texts once, in order; from then on documents are named by their indices. So a head can be fitted
on some documents and score others, as cross-fitting does, without reading the texts again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from ml_filter.config import flat_settings
from ml_filter.criterion import Criterion
from ml_filter.heads.config import EngineConfig, HeadSettings, TrainConfig
from ml_filter.heads.device import choose_device, choose_dtype
from ml_filter.heads.info import CROSS_FITTED, HeadInfo, read_config
from ml_filter.heads.store import fetch_head
from ml_filter.prepare.ngrams import words
from ml_filter.statistics.intervals import Array

FOLDS = 5
ENCODER_DIRECTORY = "encoder"
"""Where a head of several heads has the one with an encoder."""
OF_ENCODERS = frozenset(("layers", "max_tokens", "text_prefix", "windows", "combine", "finetune")).union(
    f"head.{name}" for name in HeadSettings.model_fields if name != "balance"
)
"""Training settings that only affect heads with an encoder."""
_WITH_OWN_SETTINGS = ("hashing", "static", "stack", "cascade")
"""The kinds whose name is a key in the config.json of their heads."""
_OF_GRADIENTS = {f"head.{name}" for name in ("learning_rate", "weight_decay", "epochs", "patience")}

Strata = Mapping[str, Sequence[str | None]]
Unit = Literal["tokens", "words"]


class ScoredTexts(NamedTuple):
    """Clamped scores [texts, criteria]; the model behind each, if there are several; counts for the manifest."""

    scores: NDArray[np.float32]
    scored_by: Sequence[str] | None = None
    counts: Mapping[str, int] = {}


class Head(ABC):
    """A loaded head of one kind: texts to scores."""

    kind: ClassVar[str]
    description: ClassVar[str]
    """For model cards, after "It is"."""
    has_encoder: ClassVar[bool] = False
    unused_settings: ClassVar[frozenset[str]] = frozenset()
    """Training settings, such as `head.size`, that have no effect on this kind."""
    unit: Unit = "words"
    """What `lengths` counts."""
    info: HeadInfo

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, content: dict[str, Any], config: EngineConfig) -> Head:
        """Read a head's files; `content` is its config.json. Raises as `load_head`."""

    @classmethod
    def device_and_dtype(cls, config: EngineConfig) -> tuple[str, str]:
        """What the head would run on.

        Raises:
            ConfigError: this machine does not have the device.
        """
        if not cls.has_encoder:
            return "cpu", "float32"
        device = choose_device(config.device)
        return str(device), str(choose_dtype(config.dtype, device)).removeprefix("torch.")

    @classmethod
    def text_limit(cls, directory: Path, content: dict[str, Any]) -> str | None:
        """How much of a text the head reads, for people; None if it is not stated."""
        characters = content[cls.kind].get("max_characters")
        return f"the first {characters:,} characters of a text" if characters else None

    @classmethod
    def used_settings(cls, training: Mapping[str, Any]) -> dict[str, Any]:
        """The training settings that have an effect on this kind of head, with names such as `head.size`."""
        settings = flat_settings(training)
        unused = set(cls.unused_settings)
        if settings.get("head.task") == "regression" and settings.get("head.model") != "mlp":
            unused |= _OF_GRADIENTS
        if settings.get("head.model") == "linear":
            unused.add("head.size")
        return {name: value for name, value in settings.items() if name not in unused}

    @abstractmethod
    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, not clamped; nan if the head gave no number."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], clamped to the range of each criterion."""
        low, high = np.array([criterion.bounds for criterion in self.info.criteria]).T
        scores: NDArray[np.float32] = np.clip(self.predict(texts), low, high).astype(np.float32)
        return scores

    def score_with_details(self, texts: Sequence[str], strata: Strata | None = None) -> ScoredTexts:
        """Clamped scores and details; `strata` has the languages and sources [texts], if known."""
        return ScoredTexts(self.score(texts))

    def lengths(self, texts: Sequence[str]) -> Sequence[int]:
        """Lengths of whole texts, in `unit`."""
        return [len(words(text)) for text in texts]


def head_class(kind: str) -> type[Head]:
    """The class of a kind of head: `HashingHead` of the module `hashing`, and so on."""
    return cast(type[Head], class_of(kind, "Head"))


def class_of(kind: str, role: Literal["Head", "Trainer"]) -> Any:
    """A class of a kind, whose module is imported only now: those with an encoder take seconds, a hashing head none."""
    return getattr(import_module(f"{__package__}.{kind}"), f"{kind.title()}{role}")


def _class_in(content: dict[str, Any]) -> type[Head]:
    """The class of a head with this config.json; a published classifier counts as an encoder head."""
    return head_class(next((kind for kind in _WITH_OWN_SETTINGS if kind in content), "encoder"))


def load_head(name: str | Path, config: EngineConfig) -> Head:
    """Load a head, or a published sequence classifier, to score with.

    Args:
        name: a directory, which is not checked for damage, or any other name of a head, as in `fetch_head`.
        config: engine, device and number type.

    Raises:
        InputError: the head does not exist, or a file of it is missing or damaged.
        ConfigError: this machine does not have the device, or the encoder cannot be loaded.
    """
    directory = Path(name) if Path(name).is_dir() else fetch_head(name).directory
    content = read_config(directory)
    return _class_in(content).load(directory, content, config)


def encoder_directory(directory: Path) -> Path | None:
    """The directory of the encoder inside a head; None if the head has no encoder."""
    if (directory / ENCODER_DIRECTORY).is_dir():
        return encoder_directory(directory / ENCODER_DIRECTORY)
    return directory if _class_in(read_config(directory)).has_encoder else None


class Trainer(ABC):
    """Fits heads of one kind; open inside a `with` block.

    Args:
        config: settings of the head.
        criteria: in the order of the labels' columns.
        cache: directory of the embedding stores.
        scratch: directory for the checkpoints of a fine-tuned encoder.

    Attributes:
        history: rows of the training curve, if the head is trained step by step.
        encoder_digest: digest of the encoder's weights, if there is an encoder.
        calibrated_on: for people, the documents whose scores `cross_fit` returns.
    """

    history: Sequence[dict[str, float]] = ()
    encoder_digest: str | None = None
    calibrated_on = CROSS_FITTED

    def __init__(
        self, config: TrainConfig, criteria: Sequence[Criterion], cache: Path, scratch: Path | None = None
    ) -> None:
        self.config, self.criteria, self._cache, self._scratch = config, list(criteria), cache, scratch

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._open(opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @abstractmethod
    def _open(self, opened: ExitStack) -> None:
        """Load what the head needs, and enter the resources that are closed at the end."""

    @abstractmethod
    def add(self, texts: Sequence[str]) -> None:
        """Add the next documents."""

    @abstractmethod
    def fit(self, indices: NDArray[np.int64], labels: Array, weights: Array) -> None:
        """Fit on the documents at `indices` [n] with labels and weights [n, criteria]; a label of nan is missing."""

    @abstractmethod
    def predict(self, indices: NDArray[np.int64]) -> Array:
        """Scores [n, criteria] of the documents at `indices` by the last fit, not clamped."""

    @abstractmethod
    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write the last fit as the files of a head."""

    def with_settings(self, config: TrainConfig) -> Self:
        """A trainer with other settings that shares these documents; use it while this one is open.

        Kind, encoder, `max_tokens` and `windows` stay; the `layers` must be among those of this trainer.
        """
        trainer = copy(self)
        trainer.config = config
        return trainer

    def cross_fit(self, indices: NDArray[np.int64], labels: Array, weights: Array, folds: NDArray[np.int64]) -> Array:
        """Scores [n, criteria] of the documents at `indices` [n], each by a fit on the other folds [n]."""
        scores = np.empty(labels.shape)
        for fold in np.unique(folds):
            others = folds != fold
            self.fit(indices[others], labels[others], weights[others])
            scores[~others] = self.predict(indices[~others])
        return scores


def fold_numbers(groups: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The fold [n] of each document, from the number of its group; a group is never divided."""
    numbers: NDArray[np.int64] = np.unique(groups, return_inverse=True)[1] % FOLDS
    return numbers
