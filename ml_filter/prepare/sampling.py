"""A seeded sample in one pass: the documents whose hash with the seed is smallest.

The sample does not depend on the order of shards or rows, is the same on every machine, and a document that is
there twice under one id is taken once. Memory holds ids and keys of the sample, not its texts: candidates are
written to disk as they come and the final choice is filtered from them, about `size * (1 + ln(corpus / size))`
rows.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import known_rows, read_shard
from ml_filter.documents.rejects import nothing_read
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.prepare.config import SampleConfig
from ml_filter.progress import progress

_SHARD = "sample"
Purpose = Literal["sample", "publish", "test", "bounds", "audit", "example"]


class _Stratum:
    """The `size` smallest keys of one stratum; duplicates of an id count once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self._heap: list[tuple[int, str]] = []  # negated key, id: the largest key on top
        self._ids: set[str] = set()

    def offer(self, key: int, document_id: str) -> bool:
        self.seen += 1
        if document_id in self._ids:
            return False
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (-key, document_id))
        elif -self._heap[0][0] <= key:
            return False
        else:
            self._ids.discard(heapq.heapreplace(self._heap, (-key, document_id))[1])
        self._ids.add(document_id)
        return True

    def leave_out(self, others: set[str]) -> None:
        """Forget the documents that another stratum gives."""
        self._heap = [(key, document_id) for key, document_id in self._heap if document_id not in others]
        self._ids -= others

    def best(self, count: int) -> list[str]:
        return [document_id for _, document_id in heapq.nlargest(count, self._heap)]

    def __len__(self) -> int:
        return len(self._heap)


def shares(available: dict[str, int], size: int) -> dict[str, int]:
    """How many of `size` each stratum gives: equal parts; what a small stratum lacks, the others give."""
    given: dict[str, int] = {}
    left = size
    by_size = sorted(available, key=lambda stratum: (available[stratum], stratum))
    for position, stratum in enumerate(by_size):
        given[stratum] = min(available[stratum], -(-left // (len(by_size) - position)))
        left -= given[stratum]
    return given


def sample_documents(source: SourceConfig, config: SampleConfig, output: str | Path) -> Manifest:
    """Draw a sample of a corpus of any size to `output`, in one streaming pass.

    Args:
        source: where the documents are.
        config: size, seed and the columns to stratify by.
        output: directory or URL of the sample.

    Raises:
        InputError: no document could be read, or a stratification column does not exist.
    """
    shards, parents = list_shards(source)
    settings = {"source": source.model_dump(mode="json"), "sample": config.model_dump(mode="json")}
    with OutputDirectory(output, "documents", settings, parents) as out:
        if out.manifest:
            return out.manifest
        strata: dict[str, _Stratum] = {}
        taken = read = 0
        with (
            out.new_shard("candidates") as candidates,
            out.new_rejects(_SHARD) as rejects,
            progress("Sampling", known_rows(shards)) as bar,
        ):
            for shard in shards:
                for table in read_shard(shard, source, rejects):
                    keep = _offer(table, config, strata)
                    candidates.write(table.filter(pa.array(keep)))
                    read += table.num_rows
                    bar.advance(table.num_rows)
        if read == 0:
            raise nothing_read(source.paths, rejects.counts)
        chosen = _choose(strata, config.size)
        with out.new_shard(_SHARD) as writer:
            file = pq.ParquetFile(candidates.path)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                keep = []
                for document_id in table.column("id").to_pylist():
                    first = document_id in chosen
                    chosen.discard(document_id)
                    keep.append(first)
                writer.write(table.filter(pa.array(keep)))
                taken += sum(keep)
        candidates.path.unlink()
        result = out.commit(_SHARD, writer, rejects, {"read": read, "sampled": taken})
        return out.finish([(_SHARD, result)])


def _offer(table: pa.Table, config: SampleConfig, strata: dict[str, _Stratum]) -> list[bool]:
    names = strata_of(table, config.by)
    keep = []
    for document_id, name in zip(table.column("id").to_pylist(), names, strict=True):
        stratum = strata.setdefault(name, _Stratum(config.size))
        keep.append(stratum.offer(sampling_key(document_id, config.seed, "sample"), document_id))
    return keep


def strata_of(table: pa.Table, by: Sequence[str]) -> list[str]:
    """The stratum of each row: its values in the columns `by`, joined.

    Raises:
        InputError: the table lacks one of the columns.
    """
    for name in by:
        if name not in table.column_names:
            raise InputError(f"cannot stratify by {name!r}: the documents have {', '.join(table.column_names)}")
    columns = [table.column(name).to_pylist() for name in by]
    return ["/".join(map(str, values)) for values in zip(*columns, strict=True)] if by else [""] * table.num_rows


def sampling_key(name: str, seed: int, purpose: Purpose) -> int:
    """A 64-bit hash of a name and a seed: uniform, and the same on every machine.

    Draws for different purposes have nothing to do with each other. If they had, a sample of a fifth of a corpus, drawn
    by the smallest keys, would be test documents only.
    """
    salt, person = seed.to_bytes(8, "little", signed=True), purpose.encode()
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt, person=person).digest()
    return int.from_bytes(digest, "little")


def _choose(strata: dict[str, _Stratum], size: int) -> set[str]:
    ids: set[str] = set()
    for name in sorted(strata):  # an id that stands in several strata counts in the first
        strata[name].leave_out(ids)
        ids.update(strata[name].best(size))
    given = shares({name: len(stratum) for name, stratum in strata.items()}, size)
    return {document_id for name, stratum in strata.items() for document_id in stratum.best(given[name])}
