"""Draw a seeded sample in one pass: the documents with the smallest hash of id and seed.

The sample does not depend on the order of shards or rows, is the same on every machine, and contains each id once.
Memory holds the ids and keys of the sample, not its texts: candidates are written to disk as they are read, about `size
* (1 + ln(corpus / size))` rows, and the final selection is filtered from them.
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
    """The `size` smallest keys of one stratum; each id counts once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[int, str]] = []  # negated key and id, so that the greatest key is on top
        self._ids: set[str] = set()

    def offer(self, key: int, document_id: str) -> bool:
        """Whether the document is a candidate so far."""
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

    def remove(self, ids: set[str]) -> None:
        """Remove the documents that another stratum contributes."""
        self._heap = [(key, document_id) for key, document_id in self._heap if document_id not in ids]

    def best(self, count: int) -> list[str]:
        return [document_id for _, document_id in heapq.nlargest(count, self._heap)]

    def __len__(self) -> int:
        return len(self._heap)


def shares(available: dict[str, int], size: int) -> dict[str, int]:
    """How many of `size` documents each stratum contributes: equal shares; larger strata make up for small ones."""
    allotted: dict[str, int] = {}
    left = size
    by_size = sorted(available, key=lambda stratum: (available[stratum], stratum))
    for position, stratum in enumerate(by_size):
        allotted[stratum] = min(available[stratum], -(-left // (len(by_size) - position)))
        left -= allotted[stratum]
    return allotted


def sample_documents(source: SourceConfig, config: SampleConfig, output: str | Path) -> Manifest:
    """Draw a sample from a corpus of any size, in one streaming pass.

    Args:
        output: directory or URL of the sample.

    Raises:
        InputError: no document could be read, or a column to stratify by does not exist.
    """
    shards, parents = list_shards(source)
    settings = {"source": source.model_dump(mode="json"), "sample": config.model_dump(mode="json")}
    with OutputDirectory(output, "documents", settings, parents) as out:
        if out.manifest:
            return out.manifest
        strata: dict[str, _Stratum] = {}
        sampled = read = 0
        with (
            out.new_shard("candidates") as candidates,
            out.new_rejects(_SHARD) as rejects,
            progress("Sampling", known_rows(shards)) as bar,
        ):
            for shard in shards:
                for table in read_shard(shard, source, rejects):
                    candidates.write(table.filter(pa.array(_offer(table, config, strata))))
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
                    keep.append(document_id in chosen)
                    chosen.discard(document_id)  # an id that is read twice is taken once
                writer.write(table.filter(pa.array(keep)))
                sampled += sum(keep)
        candidates.path.unlink()
        result = out.commit(_SHARD, writer, rejects, {"read": read, "sampled": sampled})
        return out.finish([(_SHARD, result)])


def _offer(table: pa.Table, config: SampleConfig, strata: dict[str, _Stratum]) -> list[bool]:
    is_candidate = []
    for document_id, name in zip(table.column("id").to_pylist(), strata_of(table, config.by), strict=True):
        stratum = strata.setdefault(name, _Stratum(config.size))
        is_candidate.append(stratum.offer(sampling_key(document_id, config.seed, "sample"), document_id))
    return is_candidate


def strata_of(table: pa.Table, by: Sequence[str]) -> list[str]:
    """The stratum of each row: its values in the columns `by`, joined.

    Raises:
        InputError: a column does not exist.
    """
    for name in by:
        if name not in table.column_names:
            raise InputError(f"cannot stratify by {name!r}: the documents have {', '.join(table.column_names)}")
    columns = [table.column(name).to_pylist() for name in by]
    return ["/".join(map(str, values)) for values in zip(*columns, strict=True)] if by else [""] * table.num_rows


def sampling_key(name: str, seed: int, purpose: Purpose) -> int:
    """A 64-bit hash of a name and a seed: uniform, and the same on every machine.

    Draws for different purposes are independent. Otherwise a sample of a fifth of a corpus, drawn by the smallest keys,
    would consist of test documents only.
    """
    salt, person = seed.to_bytes(8, "little", signed=True), purpose.encode()
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt, person=person).digest()
    return int.from_bytes(digest, "little")


def _choose(strata: dict[str, _Stratum], size: int) -> set[str]:
    ids: set[str] = set()
    for name in sorted(strata):  # an id in several strata counts in the first
        strata[name].remove(ids)
        ids.update(strata[name].best(size))
    allotted = shares({name: len(stratum) for name, stratum in strata.items()}, size)
    return {document_id for name, stratum in strata.items() for document_id in stratum.best(allotted[name])}
