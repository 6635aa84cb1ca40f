"""What can be fitted to labels: each engine's features of the labelled documents, its head, and its files.

A member is given the texts once, in order; after that documents go by their places. So it can be fitted on some and
asked about others, as cross-fitting does, without a second look at the texts.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from loguru import logger
from torch import nn

from ml_filter.criterion import Criterion
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.batching import combine_windows, run_in_batches, split_windows
from ml_filter.heads.config import HeadEngine, TrainConfig
from ml_filter.heads.device import choose_device, choose_dtype, usual_batch_tokens
from ml_filter.heads.embeddings import Embeddings, EmbeddingStore
from ml_filter.heads.encoder import load_encoder, quiet_transformers, weights_digest
from ml_filter.heads.fitting import class_weights, fit_head, predict
from ml_filter.heads.hashing import HashedDocuments, HashingModel, HashingSettings
from ml_filter.heads.info import CROSSED, HELD_OUT, HeadInfo, write_config
from ml_filter.heads.model import Head, HeadModel, chosen_layers
from ml_filter.heads.static import StaticSettings, open_static
from ml_filter.heads.tokens import prefix_tokens, set_text_prefix

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray


FOLDS = 5
STACKED: tuple[HeadEngine, ...] = ("encoder", "hashing")
TEXTS_NAME = "texts.parquet"
_CHUNK = 512


def open_member(config: TrainConfig, criteria: Sequence[Criterion], cache: Path, scratch: Path | None = None) -> Member:
    """The member that a configuration asks for.

    Args:
        config: engine and settings.
        criteria: names and score ranges.
        cache: directory of the embedding stores.
        scratch: where checkpoints of a trained encoder are kept until the head is saved.
    """
    if config.finetune is not None:
        if scratch is None:
            raise ConfigError("an encoder that is trained needs a directory for its checkpoints")
        return FinetunedMember(config, criteria, cache, scratch)
    if config.engine == "hashing":
        return HashingMember(config, criteria)
    if config.engine == "static":
        return StaticMember(config, cache)
    if config.engine == "stack":
        return StackMember(config, [EncoderMember(config, criteria, cache), HashingMember(config, criteria)])
    return EncoderMember(config, criteria, cache)


class Member(ABC):
    """An engine in training; open as long as it is in a `with` block."""

    config: TrainConfig
    history: Sequence[dict[str, float]] = ()
    """Of training step by step, where it is."""
    encoder_digest: str | None = None
    """Of the weights of the encoder that it reads, if any."""
    crossed = CROSSED
    """What `cross_fit` scores, for people."""

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._open(opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, value, trace)

    @abstractmethod
    def _open(self, opened: ExitStack) -> None:
        """Enter what has to be closed at the end."""

    @abstractmethod
    def add(self, texts: Sequence[str]) -> None:
        """Take up the next documents."""

    @abstractmethod
    def fit(self, places: NDArray[np.int64], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Fit on the documents at `places` [n] with labels and weights [n, criteria]."""

    @abstractmethod
    def predict(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores [n, criteria] of the documents at `places`, by the last fit; not clamped."""

    @abstractmethod
    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write the last fit, and what it says of itself, as a head's files."""

    def with_settings(self, config: TrainConfig) -> Self:
        """The same documents, which are shared, with other settings of the head; to be used while this one is open.

        Engine, encoder, `max_tokens` and `windows` are those of this member; an encoder's `layers` are among its.
        """
        made = copy(self)
        made.config = config
        return made

    def cross_fit(
        self,
        places: NDArray[np.int64],
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        folds: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Scores [n, criteria] of the documents at `places` [n], each by a fit on those of other folds.

        Raises:
            InputError: all documents are in one fold.
        """
        made = np.empty(labels.shape)
        for fold in np.unique(folds):
            outside = _outside(folds, fold)
            self.fit(places[outside], labels[outside], weights[outside])
            made[~outside] = self.predict(places[~outside])
        return made


def fold_numbers(groups: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The fold [n] of each document by a number of its group, so that a group is in one fold whole."""
    numbers: NDArray[np.int64] = np.unique(groups, return_inverse=True)[1] % FOLDS
    return numbers


def _outside(folds: NDArray[np.int64], fold: int) -> NDArray[np.bool_]:
    outside: NDArray[np.bool_] = folds != fold
    if not outside.any():
        raise InputError("all labelled documents are of one host: a head needs labels of several")
    return outside


class EncoderMember(Member):
    """A frozen encoder with a head on its cached embeddings.

    Args:
        config: encoder, layers, windows, head.
        criteria: names and score ranges.
        cache: directory of the embedding stores.
    """

    def __init__(self, config: TrainConfig, criteria: Sequence[Criterion], cache: Path) -> None:
        self.config, self.criteria = config, list(criteria)
        self._encoder = load_encoder(config.encoder)
        self._tokenizer = self._encoder.tokenizer
        self._prefix = self._encoder.text_prefix if config.text_prefix is None else config.text_prefix
        set_text_prefix(self._tokenizer, self._prefix)
        self._limit = min(config.max_tokens, self._encoder.max_tokens)
        if self._limit < config.max_tokens:
            logger.info(f"{config.encoder} reads {self._limit} tokens, not {config.max_tokens:,}")
        if prefix_tokens(self._tokenizer) + self._tokenizer.num_special_tokens_to_add() >= self._limit:
            raise ConfigError(
                f"text_prefix {self._prefix!r} leaves no room for a text in {self._limit} tokens; set a higher "
                "max_tokens, or another text_prefix"
            )
        device = choose_device("auto")
        dtype = choose_dtype("auto", device)
        embedder = HeadModel.from_encoder(self._encoder, layers=config.layers)
        self.encoder_digest = weights_digest(self._encoder)
        identity = {
            "encoder": self.encoder_digest,
            "pooling": self._encoder.pooling,
            "layers": embedder.config.layers,
            "max_tokens": self._limit,
            "dtype": str(dtype),
            "device": device.type,
        }
        if self._prefix:
            identity["text_prefix"] = self._prefix
        self._embedder = embedder.cast_encoder(dtype)
        nn.Module.to(self._embedder, device)
        self._store = EmbeddingStore(cache, identity, self._embedder.width, self._embed)
        self._rows: list[int] = []
        self._owners: list[int] = []
        self._documents = 0
        self._head: Head | None = None

    def _open(self, opened: ExitStack) -> None:
        opened.enter_context(self._store)

    def add(self, texts: Sequence[str]) -> None:
        """Embed the windows of the next documents that are not in the cache."""
        for start in range(0, len(texts), _CHUNK):
            windows, owners = split_windows(
                texts[start : start + _CHUNK], self._tokenizer, self._limit, self.config.windows
            )
            self._rows += self._rows_of(windows)
            self._owners += [self._documents + owner for owner in owners]
            self._documents += len(texts[start : start + _CHUNK])

    def _rows_of(self, windows: Sequence[str]) -> list[int]:
        return self._store.rows_of(windows)

    def embeddings(self, places: NDArray[np.int64]) -> Embeddings:
        """The embeddings of the windows of the documents at `places`."""
        return self._windows_of(places)[0]

    def fit(self, places: NDArray[np.int64], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Fit the head; each window of a document has its label and a share of its weight."""
        embeddings, owners = self._windows_of(places)
        shares = 1 / np.bincount(owners, minlength=len(places))[owners]
        self._head = fit_head(
            embeddings,
            labels[owners],
            weights[owners] * shares[:, None],
            self.criteria,
            self.config.head,
            seed=self.config.seed,
            owners=owners,
        )
        self.history = self._head.history

    def predict(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of documents, their windows combined."""
        assert self._head is not None
        embeddings, owners = self._windows_of(places)
        return combine_windows(predict(self._head, embeddings), owners, len(places), self.config.combine)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write model.safetensors, config.json and the tokenizer."""
        with quiet_transformers():
            self._built(info).save_pretrained(directory)
            self._tokenizer.save_pretrained(directory)

    def _built(self, info: HeadInfo) -> HeadModel:
        """The encoder with the last fit."""
        assert self._head is not None
        model = HeadModel.from_encoder(
            self._encoder,
            layers=self.config.layers,
            max_tokens=self._limit,
            text_prefix=self._prefix,
            windows=self.config.windows,
            combine=self.config.combine,
            kind=self._head.kind,
            size=self._head.size,
            task=self._head.task,
            head=info.model_dump(mode="json"),
        )
        model.head.load_state_dict(self._head.state_dict())
        return model

    def _embed(self, windows: Sequence[str]) -> NDArray[np.float32]:
        return run_in_batches(
            windows,
            self._tokenizer,
            self._embedder.embed,
            max_tokens=self._limit,
            batch_tokens=usual_batch_tokens(self._embedder.device),
            device=self._embedder.device,
        )

    def _windows_of(self, places: NDArray[np.int64]) -> tuple[Embeddings, NDArray[np.int64]]:
        """The embeddings of all windows of the documents at `places`, and the document [windows] of each, as 0..n."""
        of = self._documents_of(places)
        found = np.flatnonzero(of >= 0)
        return Embeddings(self._store.vectors(), np.array(self._rows)[found], self._columns()), of[found]

    def _columns(self) -> NDArray[np.int64] | None:
        """Where the layers of the head stand in an embedding, which may hold more; None: it holds just these."""
        there = self._embedder.config.layers
        size = self._embedder.width // len(there)
        wanted = chosen_layers(self.config.layers, self._encoder.depth)
        if wanted == there:
            return None
        return np.concatenate([np.arange(size) + there.index(layer) * size for layer in wanted])

    def _documents_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """For every window [windows] where its document stands in `places`; -1: nowhere."""
        position = np.full(self._documents, -1, np.int64)
        position[places] = np.arange(len(places))
        of: NDArray[np.int64] = position[np.array(self._owners)]
        return of


class FinetunedMember(EncoderMember):
    """An encoder that is trained together with its head, which is fitted to the frozen encoder first.

    Training once is dear enough: one fold chooses the checkpoint and is scored, in place of cross-fitting, and that
    model is kept.
    """

    crossed = HELD_OUT

    def __init__(self, config: TrainConfig, criteria: Sequence[Criterion], cache: Path, scratch: Path) -> None:
        super().__init__(config, criteria, cache)
        self._scratch = scratch
        self._model: HeadModel | None = None

    def _open(self, opened: ExitStack) -> None:
        super()._open(opened)
        self._scratch.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([("text", pa.string())])
        self._texts = opened.enter_context(pq.ParquetWriter(self._scratch / TEXTS_NAME, schema))

    def _rows_of(self, windows: Sequence[str]) -> list[int]:
        self._texts.write_table(pa.table({"text": windows}))
        return super()._rows_of(windows)

    def cross_fit(
        self,
        places: NDArray[np.int64],
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        folds: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Train on all folds but the first; scores of the first, nan for the others."""
        from ml_filter.heads.finetune import finetune

        assert self.config.finetune is not None
        self._texts.close()
        outside = _outside(folds, folds.min())
        super().fit(places[outside], labels[outside], weights[outside])
        # Names and ranges are all that training looks at; calibration comes after it.
        self._model = self._built(HeadInfo(engine="encoder", criteria=self.criteria))
        balanced = class_weights(labels, weights, self.config.head.balance)
        files = []
        for name, chosen in (("train", outside), ("validation", ~outside)):
            files.append(self._scratch / f"{name}.parquet")
            self._write(files[-1], places[chosen], labels[chosen], balanced[chosen])
        self.history = finetune(
            self._model,
            self._tokenizer,
            files[0],
            files[1],
            self.config.finetune,
            self._scratch,
            seed=self.config.seed,
        )
        made = np.full(labels.shape, np.nan)
        made[~outside] = self.predict(places[~outside])
        return made

    def fit(self, places: NDArray[np.int64], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Keep what `cross_fit` trained."""

    def predict(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of documents, by the trained model."""
        assert self._model is not None
        parts, documents = [], []
        for texts, of in self._read(places):
            made = run_in_batches(
                texts,
                self._tokenizer,
                self._model,
                max_tokens=self._limit,
                batch_tokens=usual_batch_tokens(self._model.device),
                device=self._model.device,
            )
            parts.append(made.astype(np.float64))
            documents.append(of)
        return combine_windows(np.concatenate(parts), np.concatenate(documents), len(places), self.config.combine)

    def _built(self, info: HeadInfo) -> HeadModel:
        if self._model is None:
            return super()._built(info)
        self._model.config.head = info.model_dump(mode="json")
        return self._model

    def _read(self, places: NDArray[np.int64]) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        """The windows of documents in parts: their texts, and where their documents stand in `places`."""
        of, start = self._documents_of(places), 0
        for batch in pq.ParquetFile(self._scratch / TEXTS_NAME).iter_batches(_CHUNK):
            here = of[start : start + len(batch)]
            start += len(batch)
            chosen = here >= 0
            if chosen.any():
                yield batch.column("text").filter(pa.array(chosen)).to_pylist(), here[chosen]

    def _write(
        self, path: Path, places: NDArray[np.int64], labels: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> None:
        """The windows of some documents, as `finetune` reads them."""
        numbers = pa.list_(pa.float32())
        schema = pa.schema([("text", pa.string()), ("labels", numbers), ("weights", numbers)])
        with pq.ParquetWriter(path, schema) as writer:
            for texts, of in self._read(places):
                columns = {
                    "text": texts,
                    "labels": list(labels[of].astype(np.float32)),
                    "weights": list(weights[of].astype(np.float32)),
                }
                writer.write_table(pa.table(columns, schema=schema))


class HashingMember(Member):
    """A regression on hashed words and word pairs, which lie on disk while it is fitted."""

    def __init__(self, config: TrainConfig, criteria: Sequence[Criterion]) -> None:
        self.config, self.criteria = config, list(criteria)
        self._settings = HashingSettings()
        self._model: HashingModel | None = None

    def _open(self, opened: ExitStack) -> None:
        scratch = opened.enter_context(tempfile.TemporaryDirectory(prefix="ml_filter-hashed-"))
        self._documents = opened.enter_context(HashedDocuments(self._settings, Path(scratch)))

    def add(self, texts: Sequence[str]) -> None:
        """Hash the next documents."""
        self._documents.add(texts)

    def fit(self, places: NDArray[np.int64], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Fit the regressions."""
        features = self._documents.matrix()
        every = np.full((features.shape[0], len(self.criteria)), np.nan)
        shares = np.zeros_like(every)
        every[places], shares[places] = labels, class_weights(labels, weights, self.config.head.balance)
        self._model = HashingModel.fit(features, every, shares, self._settings, seed=self.config.seed)

    def predict(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of documents."""
        assert self._model is not None
        return self._model.scores_of(self._documents.matrix())[places].astype(np.float64)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write model.safetensors and config.json."""
        assert self._model is not None
        write_config(directory, info, hashing=self._model.save(directory))


class StaticMember(Member):
    """A regression on static embeddings, which are cached like an encoder's."""

    def __init__(self, config: TrainConfig, cache: Path) -> None:
        self.config = config
        encoder = load_encoder(config.encoder)
        self._model = open_static(encoder, StaticSettings(), cache)
        self.encoder_digest = weights_digest(encoder)
        identity = {"static": StaticSettings().model_dump(), "encoder": self.encoder_digest}
        self._store = EmbeddingStore(cache, identity, self._model.width, self._model.embed)
        self._rows: list[int] = []

    def _open(self, opened: ExitStack) -> None:
        opened.enter_context(self._store)

    def add(self, texts: Sequence[str]) -> None:
        """Embed the next documents that are not in the cache."""
        for start in range(0, len(texts), _CHUNK):
            self._rows += self._store.rows_of(texts[start : start + _CHUNK])

    def fit(self, places: NDArray[np.int64], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Fit the regressions."""
        balanced = class_weights(labels, weights, self.config.head.balance)
        self._model = self._model.fit(self._embeddings(places), labels, balanced, seed=self.config.seed)

    def predict(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of documents."""
        rows = self._embeddings(places)
        return np.concatenate([self._model.scores_of(rows[part]) for part in rows.blocks()]).astype(np.float64)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write model.safetensors, tokenizer.json and config.json."""
        write_config(directory, info, static=self._model.save(directory))

    def _embeddings(self, places: NDArray[np.int64]) -> Embeddings:
        return Embeddings(self._store.vectors(), np.array(self._rows)[places])


class StackMember(Member):
    """Several members, whose scores are added up with weights that suit documents they were not fitted on.

    The weights are not negative (stacked regression; Breiman 1996). `cross_fit` finds them; `fit` keeps them.
    """

    def __init__(self, config: TrainConfig, members: Sequence[Member]) -> None:
        self.config, self.members = config, list(members)
        self.encoder_digest = next((of.encoder_digest for of in members if of.encoder_digest), None)
        self._weights: NDArray[np.float64] | None = None
        self._bias: NDArray[np.float64] | None = None

    def _open(self, opened: ExitStack) -> None:
        for member in self.members:
            opened.enter_context(member)

    def with_settings(self, config: TrainConfig) -> Self:
        """The same documents, which the members share, with other settings of the heads."""
        made = super().with_settings(config)
        made.members = [member.with_settings(config) for member in self.members]
        return made

    def add(self, texts: Sequence[str]) -> None:
        """Take up the next documents."""
        for member in self.members:
            member.add(texts)

    def cross_fit(
        self,
        places: NDArray[np.int64],
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        folds: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Cross-fit the members, find the weights, and combine."""
        from scipy.optimize import nnls

        made = np.stack([member.cross_fit(places, labels, weights, folds) for member in self.members], 2)
        balanced = class_weights(labels, weights, self.config.head.balance)
        self._weights = np.empty((labels.shape[1], len(self.members)))
        self._bias = np.empty(labels.shape[1])
        for place in range(labels.shape[1]):
            known = ~np.isnan(labels[:, place])
            wanted, scores = labels[known, place], made[known, place]
            root = np.sqrt(balanced[known, place])
            means, mean = np.average(scores, 0, root**2), np.average(wanted, weights=root**2)
            self._weights[place], _ = nnls((scores - means) * root[:, None], (wanted - mean) * root)
            self._bias[place] = mean - means @ self._weights[place]
        return self._combined(made)

    def fit(self, places: NDArray[np.int64], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Fit the members."""
        for member in self.members:
            member.fit(places, labels, weights)
        self.history = [row for member in self.members for row in member.history]

    def predict(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Combined scores of documents."""
        return self._combined(np.stack([member.predict(places) for member in self.members], 2))

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write each member's files in a directory of its own, and config.json with the weights."""
        assert self._weights is not None
        assert self._bias is not None
        plain = [criterion.model_copy(update={"calibration": None}) for criterion in info.criteria]
        for member, engine in zip(self.members, STACKED, strict=True):
            (directory / engine).mkdir()
            member.save(directory / engine, HeadInfo(engine=engine, criteria=plain))
        write_config(
            directory, info, stack={"members": STACKED, "weights": self._weights.tolist(), "bias": self._bias.tolist()}
        )

    def _combined(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores [n, criteria, members] to [n, criteria]."""
        assert self._weights is not None
        made: NDArray[np.float64] = np.einsum("ncm,cm->nc", scores, self._weights) + self._bias
        return made
