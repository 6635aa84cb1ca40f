"""Texts as tokens in memory-mapped files: one file for a corpus, and one for the training data of each model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import known_rows, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.location import write_atomically
from ml_filter.progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

END = "<|endoftext|>"
"""Token 0, before every document."""
TOKENIZER_BYTES = 32 * 2**20
"""Bytes of text that the tokenizer is trained on: memory and time of the training grow with them."""
TOKEN = np.dtype("<u2")
DOCUMENT = np.dtype([("start", "<i8"), ("tokens", "<i8"), ("bytes", "<i8")])
"""Where a document's tokens begin in the file, how many there are with the one before it, and the bytes of its text."""


def texts_of(sources: Iterable[SourceConfig]) -> Iterator[list[str]]:
    """The texts of sources, in batches."""
    for source in sources:
        for shard in list_shards(source)[0]:
            for table in read_shard(shard, source, RejectsLog()):
                yield table["text"].to_pylist()


def _evenly(sources: Iterable[SourceConfig], most: int) -> Iterator[str]:
    """Texts up to a number of bytes: always the next one of the source that has given the fewest."""
    texts = [chain.from_iterable(texts_of([source])) for source in sources]
    taken = dict.fromkeys(range(len(texts)), 0)
    total = 0
    while taken and total < most:
        number = min(taken, key=taken.__getitem__)
        if (text := next(texts[number], None)) is None:
            del taken[number]
            continue
        size = len(text.encode())
        taken[number] += size
        total += size
        yield text


def train_tokenizer(sources: Iterable[SourceConfig], vocabulary: int, path: Path) -> Tokenizer:
    """A byte-level BPE tokenizer of the first `TOKENIZER_BYTES` of the sources, taken evenly; the one in the file if it
    exists."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_evenly(sources, TOKENIZER_BYTES), trainer)
        write_atomically(path, tokenizer.to_str().encode())
    return Tokenizer.from_file(str(path))


@dataclass(frozen=True)
class Corpus:
    """A corpus as tokens on disk, and its documents (DOCUMENT) in memory: 24 bytes each."""

    path: Path
    documents: NDArray[np.void]

    @property
    def bytes(self) -> int:
        """Bytes of all texts."""
        return int(self.documents["bytes"].sum())

    @property
    def tokens(self) -> NDArray[np.uint16]:
        """The tokens of all documents, mapped from the file."""
        mapped: NDArray[np.uint16] = np.memmap(self.path, TOKEN, "r")
        return mapped


def tokenize(source: SourceConfig, tokenizer: Tokenizer, path: Path, title: str) -> Corpus:
    """Write the tokens of a source to a file, END before each document; the corpus in the file if it exists."""
    index = path.with_suffix(".documents")
    if not index.exists():
        shards = list_shards(source)[0]
        temporary = path.with_suffix(".tmp")
        documents: list[NDArray[np.void]] = []
        start = 0
        with temporary.open("wb") as file, progress(title, known_rows(shards)) as bar:
            for texts in texts_of([source]):
                encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                rows = np.zeros(len(texts), DOCUMENT)
                for row, text, encoding in zip(rows, texts, encoded, strict=True):
                    ids = np.array([0, *encoding.ids], TOKEN)
                    file.write(ids.tobytes())
                    row["start"], row["tokens"], row["bytes"] = start, len(ids), len(text.encode())
                    start += len(ids)
                documents.append(rows)
                bar.advance(len(texts))
        os.replace(temporary, path)
        write_atomically(index, b"".join(rows.tobytes() for rows in documents))  # last: it says that both are complete
    return Corpus(path, np.fromfile(index, DOCUMENT))
