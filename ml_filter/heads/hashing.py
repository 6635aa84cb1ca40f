"""The hashing head: a linear regression on hashed words and word pairs, the cheapest engine.

A text becomes its words, punctuation marks and pairs of neighbours, each hashed to one of 2^20 features with the value
1 + ln(times it occurs). Letters, digits and marks of any script form words; a character of a script that is written
without spaces is a word of its own, so that its pairs are character bigrams. A regression weighs features by
their inverse document frequency and brings each document to length 1 (TF-IDF).

All is done on arrays of characters, not word by word: four times as fast as scikit-learn's HashingVectorizer, and the
same counts. docs/training.md has the figures behind the defaults.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, Field

from ml_filter.errors import InputError
from ml_filter.heads.info import CONFIG_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

WEIGHTS_NAME = "model.safetensors"
ALPHAS = np.logspace(-2, 3, 21)
KRYLOV_STEPS = 40
FOLDS = 5
ONE_FOLD_ABOVE = 10_000

_WORD, _ALONE = 1, 2
_WORDS = r"[\p{L}\p{N}\p{M}]+"
_ALONES = r"[\p{P}\p{S}\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+"
_BASE = 0x9E3779B97F4A7C15  # odd constants of 64 bits without a pattern
_PAIR, _MIX_WORDS, _MIX_PAIRS = 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BATCH_CHARACTERS = 1 << 16  # its arrays stay in the processor's cache
_BLOCK_ROWS = 4096


SettingsType = TypeVar("SettingsType", bound=BaseModel)


class HashingSettings(BaseModel, frozen=True, extra="forbid"):
    """What a text's features are. By default the first 3,000 characters count, which ranks better than whole pages."""

    bits: Annotated[int, Field(ge=8, le=28, description="2^bits features")] = 20
    max_characters: Annotated[int, Field(ge=1, description="the text behind them is not read")] = 3000


def hash_texts(texts: Sequence[str], settings: HashingSettings) -> csr_matrix:
    """Values 1 + ln(count) of the features of texts: [texts, 2^bits], float32, a row's features in rising order."""
    from scipy.sparse import csr_matrix, vstack

    parts = [_hash_batch(batch, settings.bits) for batch in _batches(texts, settings.max_characters)]
    return vstack(parts, format="csr") if parts else csr_matrix((0, 1 << settings.bits), dtype=np.float32)


def _batches(texts: Sequence[str], max_characters: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + min(len(text), max_characters) > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text[:max_characters].lower())
        size += len(batch[-1]) + 1
    if batch:
        yield batch


def _hash_batch(texts: list[str], bits: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    text_ends = np.cumsum([len(text) + 1 for text in texts])
    characters = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = np.concatenate([[0], _kinds()[characters], [0]])
    inner = kind[1:-1]
    starts = np.flatnonzero((inner == _ALONE) | ((inner == _WORD) & (kind[:-2] != _WORD)))
    ends = np.flatnonzero((inner == _ALONE) | ((inner == _WORD) & (kind[2:] != _WORD))) + 1

    # A word's hash is its characters as digits of a number, modulo 2^64: a difference of two running sums.
    powers, inverses = _powers(1 << len(characters).bit_length())
    sums = np.zeros(len(characters) + 1, np.uint64)
    np.cumsum(characters * powers[: len(characters)], out=sums[1:])
    words = (sums[ends] - sums[starts]) * inverses[starts]
    pairs = words[:-1] * np.uint64(_PAIR) + words[1:]

    texts_of = np.searchsorted(text_ends, starts, side="right").astype(np.uint64) << np.uint64(bits)
    in_one = texts_of[:-1] == texts_of[1:]
    keys = np.concatenate(
        [texts_of | _mix(words, _MIX_WORDS, bits), (texts_of[:-1] | _mix(pairs, _MIX_PAIRS, bits))[in_one]]
    )
    keys.sort()
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]]))
    counts = np.diff(first, append=len(keys))
    found = keys[first]
    bounds = np.searchsorted(found, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(bits))
    features = (found & np.uint64((1 << bits) - 1)).astype(np.int32)
    values = (1 + np.log(counts)).astype(np.float32)
    return csr_matrix((values, features, bounds.astype(np.int32)), shape=(len(texts), 1 << bits))


def _mix(hashes: NDArray[np.uint64], factor: int, bits: int) -> NDArray[np.uint64]:
    """The topmost `bits` of a product, on which all bits of the hashes bear."""
    mixed: NDArray[np.uint64] = ((hashes ^ (hashes >> np.uint64(32))) * np.uint64(factor)) >> np.uint64(64 - bits)
    return mixed


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """What each character [0x110000] is: part of a word, a word alone, or neither."""
    import regex

    # Surrogates, which stand for no character, would join to one.
    everything = "".join(" " if 0xD800 <= code < 0xE000 else chr(code) for code in range(0x110000))
    kinds = np.zeros(len(everything), np.uint8)
    for kind, pattern in ((_WORD, _WORDS), (_ALONE, _ALONES)):
        for found in regex.finditer(pattern, everything):
            kinds[slice(*found.span())] = kind
    return kinds


@functools.cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers [count] of the hash's base, and of its inverse, modulo 2^64."""

    def powers(base: int) -> NDArray[np.uint64]:
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(_BASE), powers(pow(_BASE, -1, 1 << 64))


class HashedDocuments:
    """Features of documents, hashed once and kept on disk: memory holds 8 bytes a document.

    Args:
        settings: what is hashed.
        scratch: a directory for the two files, about 6 KB for each document of 3,000 characters.
    """

    def __init__(self, settings: HashingSettings, scratch: Path) -> None:
        self.settings, self._scratch = settings, scratch
        self._bounds = [np.zeros(1, np.int64)]

    def __enter__(self) -> HashedDocuments:
        self._values = (self._scratch / "values").open("wb")
        self._features = (self._scratch / "features").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values.close()
        self._features.close()

    def add(self, texts: Sequence[str]) -> None:
        """Hash the next documents."""
        made = hash_texts(texts, self.settings)
        self._values.write(made.data.tobytes())
        self._features.write(made.indices.tobytes())
        self._bounds.append(self._bounds[-1][-1] + made.indptr[1:].astype(np.int64))

    def matrix(self) -> csr_matrix:
        """All features [documents, 2^bits], mapped from disk; as `hash_texts` gives them."""
        from scipy.sparse import csr_matrix

        self._values.flush()
        self._features.flush()
        bounds = np.concatenate(self._bounds)
        values, features = (
            np.memmap(file.name, dtype, "r") if bounds[-1] else np.empty(0, dtype)
            for file, dtype in ((self._values, np.float32), (self._features, np.int32))
        )
        return csr_matrix((values, features, bounds), shape=(len(bounds) - 1, 1 << self.settings.bits), copy=False)


@dataclass(frozen=True)
class SparseRidge:
    """A regression on hashed features: a score is `values * idf / length @ coefficients + bias`."""

    idf: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    bias: float
    alpha: float


def fit_sparse_ridge(
    features: csr_matrix, labels: NDArray[np.float64], weights: NDArray[np.float64], *, seed: int
) -> SparseRidge:
    """Ridge regression of labels [n] on TF-IDF of hashed features [n, features] under document weights [n].

    Documents of weight 0 play no part, whatever their label: there is no need to copy the others out. The penalty is
    chosen, for the best correlation, on documents kept apart (five folds; one fifth of more than 10,000 documents).
    As most features of a document are new to the regression, its scores lie too close together; those on the
    documents kept apart say by how much, and the scores are stretched so that they fit the labels.

    All penalties are solved at once by 40 steps of the Lanczos method on the documents' inner products (Golub and Van
    Loan 2013, section 10.1), which is exact for up to 40 documents and was within 0.0003 of exact scores after 20 steps
    on 1,000. A step is two passes over the features and needs 4 bytes of memory a document.
    """
    used = np.flatnonzero(weights > 0)
    order = np.random.default_rng(seed).permutation(len(used))
    fold = np.full(len(weights), -1)
    fold[used[order]] = np.arange(len(used)) % FOLDS
    apart = np.zeros((len(weights), len(ALPHAS)))
    for number in range(FOLDS if len(used) <= ONE_FOLD_ABOVE else 1):
        held = np.flatnonzero(fold == number)
        apart[held] = _Krylov(features, labels, np.where(fold == number, 0.0, weights), held).scores()
    held = np.flatnonzero((fold >= 0) & (fold < number + 1))
    mean = np.average(labels[held], weights=weights[held])
    centres = np.average(apart[held], axis=0, weights=weights[held])
    deviations = apart[held] - centres
    covariance = ((labels[held] - mean) * weights[held]) @ deviations
    variance = np.maximum(weights[held] @ deviations**2, 1e-30)
    best = int(np.argmax(covariance / np.sqrt(variance)))
    stretch = covariance[best] / variance[best] if covariance[best] > 0 else 1.0

    last = _Krylov(features, labels, weights, held=held[:0])
    coefficients, bias = last.solution(best)
    return SparseRidge(
        last.idf,
        (stretch * coefficients).astype(np.float32),
        float(mean + stretch * (bias - centres[best])),
        float(ALPHAS[best]),
    )


class _Krylov:
    """Ridge regressions with all penalties, fitted on the documents that have a weight.

    With rows z = sqrt(weight) * (x - mean x) and targets t = sqrt(weight) * (label - mean label), the coefficients are
    Z'a where (ZZ' + alpha) a = t. For every alpha, a is sought in the span of t, ZZ't, (ZZ')^2 t, ..., on whose
    orthonormal basis ZZ' is tridiagonal.
    """

    def __init__(
        self,
        features: csr_matrix,
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        held: NDArray[np.int64],
    ) -> None:
        used = weights > 0
        self.features, self.transposed = features, features.T
        self.idf = _inverse_frequencies(features, used)
        self.squares = self.idf**2
        self.lengths = _lengths(features, self.idf)
        self.shares = weights / weights.sum()
        self.roots = np.sqrt(weights)
        self.mean = float(self.shares[used] @ labels[used])
        target = np.zeros(len(labels))
        target[used] = self.roots[used] * (labels[used] - self.mean)

        size = min(KRYLOV_STEPS, int(used.sum()))
        self.basis = np.zeros((size, len(labels)), np.float32)
        held_scores = np.zeros((size, len(held)))
        diagonal, beside = np.zeros(size), np.zeros(size)
        vector, steps = target, 0
        while steps < size and (norm := float(np.linalg.norm(vector))) > 1e-5 * diagonal.max():
            beside[steps] = norm
            self.basis[steps] = vector / norm
            moved = self._scores(self._coefficients(self.basis[steps]))
            moved -= self.shares @ moved
            held_scores[steps] = moved[held]
            vector = self.roots * moved
            diagonal[steps] = vector @ self.basis[steps]
            for _ in range(2):  # the second time takes away what rounding left
                vector = vector - (self.basis @ vector.astype(np.float32)) @ self.basis
            steps += 1
        self.held_scores = held_scores[:steps]
        links = beside[1:steps]
        values, vectors = np.linalg.eigh(np.diag(diagonal[:steps]) + np.diag(links, 1) + np.diag(links, -1))
        along = beside[:1] * vectors[:1].T if steps else np.zeros((0, 1))
        self.parts = vectors @ (along / (values[:, None] + ALPHAS))
        """Each alpha's a as parts [steps, alphas] of the basis."""

    def scores(self) -> NDArray[np.float64]:
        """Scores [held, alphas] of the documents kept apart."""
        made: NDArray[np.float64] = self.mean + self.held_scores.T @ self.parts
        return made

    def solution(self, place: int) -> tuple[NDArray[np.float32], float]:
        """Coefficients and bias with the alpha at `place`."""
        parts = self.parts[:, place].astype(np.float32)
        coefficients = self._coefficients(parts @ self.basis[: len(parts)])
        return coefficients, self.mean - float(self.shares @ self._scores(coefficients))

    def _coefficients(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Z'vector, times idf once more."""
        sums = self.roots * vector
        sums -= self.shares * sums.sum()
        made: NDArray[np.float32] = self.transposed @ (sums / self.lengths).astype(np.float32)
        made *= self.squares
        return made

    def _scores(self, coefficients: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores [n] of all documents, without bias."""
        made: NDArray[np.float64] = (self.features @ coefficients).astype(np.float64) / self.lengths
        return made


def _inverse_frequencies(features: csr_matrix, used: NDArray[np.bool_]) -> NDArray[np.float32]:
    """ln((1 + n) / (1 + documents with the feature)) + 1, as scikit-learn has it; 0 for features of no document."""
    frequencies = np.zeros(features.shape[1])
    for start in range(0, features.shape[0], _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS][used[start : start + _BLOCK_ROWS]]
        frequencies += np.bincount(block.indices, minlength=len(frequencies))
    idf = np.where(frequencies > 0, np.log((1 + used.sum()) / (1 + frequencies)) + 1, 0)
    return idf.astype(np.float32)


def _lengths(features: csr_matrix, idf: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean length [n] of documents under idf [features]; 1 for those without features."""
    lengths = np.ones(features.shape[0], np.float32)
    for start in range(0, len(lengths), _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS]
        block.data = np.square(block.data * idf[block.indices])
        lengths[start : start + _BLOCK_ROWS] = np.sqrt(block.sum(axis=1)).ravel()
    lengths[lengths == 0] = 1
    return lengths


@dataclass(frozen=True)
class HashingModel:
    """Regressions on hashed features, one a criterion.

    `weights` and `idf` are [criteria, features], float32, the idf a factor of the weights; `bias` is [criteria].
    """

    settings: HashingSettings
    weights: NDArray[np.float32]
    idf: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def fit(
        cls,
        features: csr_matrix,
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        settings: HashingSettings,
        *,
        seed: int,
    ) -> HashingModel:
        """Fit to labels [n, criteria] with weights [n, criteria]; labels of weight 0 or nan play no part."""
        weights = np.where(np.isnan(labels), 0, weights)
        fits = [fit_sparse_ridge(features, labels[:, c], weights[:, c], seed=seed) for c in range(labels.shape[1])]
        return cls(
            settings,
            np.stack([made.coefficients for made in fits]),
            np.stack([made.idf for made in fits]),
            np.array([made.bias for made in fits], np.float32),
        )

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria]; not clamped. A text without a known word gets the bias."""
        return self.scores_of(hash_texts(texts, self.settings))

    def scores_of(self, features: csr_matrix) -> NDArray[np.float32]:
        """Scores [n, criteria] of features as `hash_texts` gives them."""
        columns = [
            (features @ weights) / _lengths(features, idf) + bias
            for weights, idf, bias in zip(self.weights, self.idf, self.bias, strict=True)
        ]
        return np.stack(columns, 1)

    def save(self, directory: Path) -> dict[str, int]:
        """Write the weights; returns `hashing` of the head's config.json."""
        from safetensors.numpy import save_file

        save_file({"weights": self.weights, "idf": self.idf, "bias": self.bias}, directory / WEIGHTS_NAME)
        return self.settings.model_dump()

    @classmethod
    def load(cls, directory: str | Path) -> HashingModel:
        """The model of a head's directory.

        Raises:
            InputError: the directory holds none, or its files do not fit each other.
        """
        settings, arrays = read_parts(directory, "hashing", HashingSettings, ("weights", "idf", "bias"))
        model = cls(settings, **arrays)
        if not model.weights.shape == model.idf.shape == (len(model.bias), 1 << settings.bits):
            raise InputError(f"{directory}: {WEIGHTS_NAME} has other sizes than {CONFIG_NAME} says")
        return model


def read_parts(
    directory: str | Path, engine: str, settings: type[SettingsType], names: Sequence[str]
) -> tuple[SettingsType, dict[str, NDArray[np.float32]]]:
    """The settings and the arrays of a cheap head on disk.

    Raises:
        InputError: they are missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        said = json.loads((Path(directory) / CONFIG_NAME).read_text())[engine]
        arrays = load_file(Path(directory) / WEIGHTS_NAME)
        return settings.model_validate(said), {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{directory} holds no complete {engine} head ({error}); make one with ml-filter train"
        ) from error
