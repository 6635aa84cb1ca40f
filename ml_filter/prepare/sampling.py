"""Draw a seeded sample in one pass: the documents with the smallest hash of id, start of the text, and seed.

The sample does not depend on the order of shards or rows, is the same on every machine, and has each document once.
Memory holds the ids and keys of the sample, not its texts: candidates are written to disk as they are read, about `size
* (1 + ln(corpus / size))` rows, and the final selection is filtered from them.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, known_rows, read_shard, read_tables, text_id
from ml_filter.documents.rejects import nothing_read
from ml_filter.documents.sources import list_shards
from ml_filter.documents.unique import UniqueIds
from ml_filter.errors import InputError
from ml_filter.prepare.config import SampleConfig
from ml_filter.progress import progress

_SHARD = "sample"
_KEY_CHARACTERS = 200
Purpose = Literal["sample", "publish", "test", "bounds", "audit", "example", "evolve"]


class _Stratum:
    """The `size` smallest keys of one stratum; each document counts once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[int, str]] = []  # negated key and identity, so that the greatest key is on top
        self._documents: set[str] = set()

    def offer(self, document_id: str, text: str, seed: int) -> bool:
        """Whether the document is a candidate so far."""
        # The start of the text belongs to the key, because in some corpora each shard counts its ids from 0.
        key = sampling_key(f"{document_id}\n{text[:_KEY_CHARACTERS]}", seed, "sample")
        if len(self._heap) == self.size and -self._heap[0][0] < key:
            return False
        document = _identity(document_id, text)
        if document in self._documents:
            return False
        self._documents.add(document)
        heapq.heappush(self._heap, (-key, document))
        if len(self._heap) > self.size:
            self._documents.discard(heapq.heappop(self._heap)[1])
        return document in self._documents

    def remove(self, documents: set[str]) -> None:
        """Remove the documents that another stratum contributes."""
        self._heap = [(key, document) for key, document in self._heap if document not in documents]

    def best(self, count: int) -> list[str]:
        return [document for _, document in heapq.nlargest(count, self._heap)]

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
    return sample_shards(*list_shards(source), source, config, output)


def sample_shards(
    shards: Sequence[InputShard],
    parents: Sequence[Parent],
    source: SourceConfig,
    config: SampleConfig,
    output: str | Path,
    earlier: Sequence[Manifest] = (),
) -> Manifest:
    """As `sample_documents`, from some shards of the source, without the documents of earlier samples.

    A document with the id of another one in an earlier sample gets a new id.
    """
    parents = [*parents, *(Parent(path=sample.root, digest=sample.digest) for sample in earlier)]
    settings = {"source": source.model_dump(mode="json"), "sample": config.model_dump(mode="json")}
    with OutputDirectory(output, "documents", settings, parents) as out:
        if out.manifest:
            return out.manifest
        strata: dict[str, _Stratum] = {}
        shard_names = [shard.name for shard in shards]
        shard_ends: list[int] = []
        read = 0
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
                shard_ends.append(candidates.rows)
        if read == 0:
            raise nothing_read(source.paths, rejects.counts, first=rejects.first)
        chosen = _choose(strata, config.size)
        with out.new_shard(_SHARD) as writer, UniqueIds() as ids:
            for path in (path for sample in earlier for path in sample.shard_paths()):
                for table in read_tables(path, ["id", "text"]):
                    ids.resolve(table, repeat(_SHARD))
            file = pq.ParquetFile(candidates.path)
            row = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                keep = [i for i, document in enumerate(_identities(table)) if document in chosen]
                names = [shard_names[bisect_right(shard_ends, row + i)] for i in keep]
                row += table.num_rows
                resolved, is_new = ids.resolve(table.take(keep), names)
                writer.write(resolved.filter(pa.array(is_new, pa.bool_())))
            rejects.renamed_ids = ids.renamed
        candidates.path.unlink()
        result = out.commit(_SHARD, writer, rejects, {"read": read, "sampled": writer.rows})
        return out.finish([(_SHARD, result)])


def _offer(table: pa.Table, config: SampleConfig, strata: dict[str, _Stratum]) -> list[bool]:
    is_candidate = []
    rows = zip(
        table.column("id").to_pylist(), table.column("text").to_pylist(), strata_of(table, config.by), strict=True
    )
    for document_id, text, name in rows:
        stratum = strata.setdefault(name, _Stratum(config.size))
        is_candidate.append(stratum.offer(document_id, text, config.seed))
    return is_candidate


def _identities(table: pa.Table) -> list[str]:
    return [_identity(*row) for row in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)]


def _identity(document_id: str, text: str) -> str:
    """What makes a document the same as another one: its id and its text."""
    return f"{text_id(text)} {document_id}"


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
    documents: set[str] = set()
    for name in sorted(strata):  # a document in several strata counts in the first
        strata[name].remove(documents)
        documents.update(strata[name].best(size))
    allotted = shares({name: len(stratum) for name, stratum in strata.items()}, size)
    return {document for name, stratum in strata.items() for document in stratum.best(allotted[name])}
