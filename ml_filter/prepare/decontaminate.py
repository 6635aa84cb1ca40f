"""Drop documents that contain texts of an evaluation set: human gold, benchmarks.

A document is dropped if it shares word n-grams with such a text. A text with fewer words than an n-gram counts as one
n-gram, so only a document of the same words matches it. The hashes of the n-grams are held in memory (16 bytes each);
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
from ml_filter.documents.rejects import RejectsLog, nothing_read
from ml_filter.documents.sources import list_shards
from ml_filter.prepare.config import DecontaminateConfig
from ml_filter.prepare.ngrams import ngram_hashes

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("gold_source", pa.string(), nullable=False),
        pa.field("gold_id", pa.string(), nullable=False),  # the text whose share is the greatest
        pa.field("reason", pa.string(), nullable=False),  # "whole_text" (share 1) or "ngrams"
        pa.field("ngrams", pa.int64(), nullable=False),  # distinct n-grams of the text in the document
        pa.field("share", pa.float64(), nullable=False),  # of the text's distinct n-grams
    ]
)


def decontaminate_documents(source: SourceConfig, config: DecontaminateConfig, output: str | Path) -> Manifest:
    """Write a corpus without the documents that overlap the texts of `config.against`; `dropped/` lists the others.

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

        def divide(shard: InputShard, offset: int, table: pa.Table) -> KeptAndDropped:
            matches = [gold.match(hashes) for hashes in ngram_hashes(table["text"].to_pylist(), config.ngram_words)]
            kept, dropped_ids = split_table(table, np.array([match is None for match in matches], dtype=np.bool_))
            reasons = [match for match in matches if match is not None]
            dropped = [{"id": name, **reason} for name, reason in zip(dropped_ids, reasons, strict=True)]
            return KeptAndDropped(kept, pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA))

        return drop_documents(out, shards, source, divide, DROPPED_SCHEMA, "Decontaminating")


class _GoldNgrams:
    """An index from n-grams to the evaluation texts that contain them."""

    def __init__(self, config: DecontaminateConfig) -> None:
        self.min_share = config.min_share
        self.names: list[tuple[str, str]] = []
        """URI of the shard and id of each text."""
        hashes: list[NDArray[np.uint64]] = []
        for against in config.against:
            rejects = RejectsLog()
            before = len(self.names)
            for shard in list_shards(against)[0]:
                for table in read_shard(shard, against, rejects):
                    self.names += [(shard.uri, name) for name in table["id"].to_pylist()]
                    hashes += map(np.unique, ngram_hashes(table["text"].to_pylist(), config.ngram_words))
            if len(self.names) == before:
                raise nothing_read(against.paths, rejects.counts, "--against-column", rejects.first)
        self.sizes = np.array([len(text_hashes) for text_hashes in hashes])
        # Sorted, so that a search for a hash finds all its texts next to each other.
        all_hashes = np.concatenate(hashes)
        order = np.argsort(all_hashes, kind="stable")
        self.hashes = all_hashes[order]
        self.texts = np.repeat(np.arange(len(hashes)), self.sizes)[order]

    def match(self, ngrams: NDArray[np.uint64]) -> dict[str, object] | None:
        """The text of which a document with these n-grams contains the greatest share; None: too small a share."""
        ngrams = np.unique(ngrams)
        starts, ends = np.searchsorted(self.hashes, ngrams), np.searchsorted(self.hashes, ngrams, side="right")
        hits = [self.texts[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
        if not hits:
            return None
        texts, counts = np.unique(np.concatenate(hits), return_counts=True)
        shares = counts / self.sizes[texts]
        best = int(np.argmax(shares))
        if shares[best] < self.min_share:
            return None
        gold_source, gold_id = self.names[texts[best]]
        return {
            "gold_source": gold_source,
            "gold_id": gold_id,
            "reason": "whole_text" if shares[best] == 1 else "ngrams",
            "ngrams": int(counts[best]),
            "share": float(shares[best]),
        }
