"""Drop documents that hold texts which something is evaluated on: human gold, benchmarks.

A document is dropped where it shares word n-grams with such a text. A text of fewer words than an n-gram counts as
one n-gram, so it matches only a document of the same words. The n-grams' hashes are held in memory (16 bytes each),
the documents are streamed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.dropping import KeptAndDropped, drop_documents, split_table
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.prepare.config import DecontaminateConfig
from ml_filter.prepare.ngrams import ngram_hashes

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("gold_source", pa.string(), nullable=False),
        pa.field("gold_id", pa.string(), nullable=False),  # the text with the greatest share found in the document
        pa.field("reason", pa.string(), nullable=False),  # "whole_text" (share 1) or "ngrams"
        pa.field("ngrams", pa.int64(), nullable=False),  # different n-grams of the text found in the document
        pa.field("share", pa.float64(), nullable=False),  # of the text's different n-grams
    ]
)


def decontaminate_documents(source: SourceConfig, config: DecontaminateConfig, output: str | Path) -> Manifest:
    """Write a corpus without the documents that overlap the texts of `config.against`; `dropped/` says which and why.

    Raises:
        InputError: no document, or no text to compare with, could be read.
    """
    shards, parents = list_shards(source)
    gold_parents = [parent for against in config.against for parent in list_shards(against)[1]]
    settings = {"source": source.model_dump(mode="json"), "decontaminate": config.model_dump(mode="json")}
    with OutputDirectory(output, "documents", settings, [*parents, *gold_parents]) as out:
        if out.manifest:
            return out.manifest
        gold = _GoldNgrams(config)

        def judge(shard: InputShard, offset: int, table: pa.Table) -> KeptAndDropped:
            rows = [gold.match(hashes) for hashes in ngram_hashes(table["text"].to_pylist(), config.ngram_words)]
            kept, dropped_ids = split_table(table, np.array([row is None for row in rows], dtype=np.bool_))
            found = [row for row in rows if row is not None]
            dropped = [{"id": name, **row} for name, row in zip(dropped_ids, found, strict=True)]
            return KeptAndDropped(kept, pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA))

        return drop_documents(out, shards, source, judge, DROPPED_SCHEMA, "Decontaminating")


class _GoldNgrams:
    """Which n-gram stands in which of the texts to keep out."""

    def __init__(self, config: DecontaminateConfig) -> None:
        self.min_share = config.min_share
        self.names: list[tuple[str, str]] = []
        hashes: list[NDArray[np.uint64]] = []
        for against in config.against:
            rejects = RejectsLog()
            before = len(self.names)
            for shard in list_shards(against)[0]:
                for table in read_shard(shard, against, rejects):
                    texts, ids = table["text"].to_pylist(), table["id"].to_pylist()
                    self.names += [(shard.uri, name) for name in ids]
                    hashes += [np.unique(found) for found in ngram_hashes(texts, config.ngram_words)]
            if len(self.names) == before:
                raise InputError(f"no text to keep out could be read from {', '.join(against.paths)}: {rejects.counts}")
        self.sizes = np.array([len(found) for found in hashes])
        together = np.concatenate(hashes)
        order = np.argsort(together, kind="stable")
        self.hashes = together[order]
        self.texts = np.repeat(np.arange(len(hashes)), self.sizes)[order]

    def match(self, ngrams: NDArray[np.uint64]) -> dict[str, object] | None:
        """The text that a document with these n-grams holds most of, where that is enough to drop it."""
        ngrams = np.unique(ngrams)
        starts, ends = np.searchsorted(self.hashes, ngrams), np.searchsorted(self.hashes, ngrams, side="right")
        hits = [self.texts[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
        if not hits:
            return None
        texts, found = np.unique(np.concatenate(hits), return_counts=True)
        shares = found / self.sizes[texts]
        best = int(np.argmax(shares))
        if shares[best] < self.min_share:
            return None
        where, name = self.names[texts[best]]
        return {
            "gold_source": where,
            "gold_id": name,
            "reason": "whole_text" if shares[best] == 1 else "ngrams",
            "ngrams": int(found[best]),
            "share": float(shares[best]),
        }
