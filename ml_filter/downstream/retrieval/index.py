"""Build an index: documents are cleaned and split into passages, which are embedded and put into a store.

Passages are written first, shard by shard as everywhere: one Parquet file for each input shard, made again only if its
input changes. Then the store is brought up to date with them. It knows the digest of the shard of each of its points,
so whatever was killed before, the next run finds what is missing, and what it has need not be embedded again. The
manifest is last; opening an index compares the store with it.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
from loguru import logger

from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import ShardResult, first_reject
from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import Manifest, Shard, read_manifest
from ml_filter.documents.readers import InputShard, known_rows, read_schema, read_shard, read_tables
from ml_filter.documents.rejects import RejectsLog, nothing_read
from ml_filter.documents.sources import list_shards_with_states
from ml_filter.documents.tables import json_text
from ml_filter.downstream.retrieval.config import IndexConfig
from ml_filter.downstream.retrieval.encoding import TextEncoder
from ml_filter.downstream.retrieval.stores import PARENT_OF, SHARD, Point, Store, Words, open_store
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.encoder import encoder_path, shown_name
from ml_filter.location import Location
from ml_filter.prepare.chunks import chunks_of
from ml_filter.prepare.tokens import TokenCounter
from ml_filter.progress import Progress, progress

STORE_DIRECTORY = "qdrant"
COLLECTION = "collection"
"""In `made_with` of the manifest, the name of the collection at a Qdrant server."""
_BATCH_ROWS = 512
_WORDS_PER_TOKEN = 0.5
"""Words of a passage that are not stop words, for each of its tokens, in English."""
_SPACES = re.compile(r"(?:[^\S\n]|[\x00-\x08\x0b-\x1f\x7f\u200b\ufeff])+")
_LINE_ENDS = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{2,}")


@dataclass(frozen=True)
class Index:
    """An opened index."""

    manifest: Manifest
    config: IndexConfig
    store: Store
    encoder: TextEncoder


def build_index(
    source: SourceConfig, config: IndexConfig, output: str | Path, settings: Settings | None = None
) -> Manifest:
    """Index documents. A second call resumes, adds what the source has gained, and repairs the store.

    Raises:
        ConfigError: a package or the encoder is missing, or an embedded store would be at a URL.
        InputError: the source, the output directory or the store is wrong.
    """
    settings = settings or Settings()
    if config.store is None and not Location(str(output)).is_local:
        raise ConfigError(f"the embedded store needs a local directory, not {output}; set store (--store) to a server")
    words = _words(config)
    shards, parents = list_shards_with_states(source)
    encoder = TextEncoder(config)
    identity = {
        "source": source.model_dump(mode="json"),
        "index": config.model_dump(mode="json", exclude=set(EngineConfig.model_fields)),
        "encoder": {
            "name": shown_name(config.encoder),
            "digest": encoder.digest,
            "width": encoder.width,
            "text_prefix": encoder.text_prefix,
            "query_prefix": encoder.query_prefix,
        },
    }
    with GrowingDirectory(output, "index", identity, parents) as out:
        finished = out.manifest
        results: list[tuple[str, ShardResult]] = []
        if finished is None:
            results = _split_shards(out, shards, source, config)
        written = finished.shards if finished else [result.shard for _, result in results if result.shard]
        directory = Path(out.root) / STORE_DIRECTORY
        collection = None
        if config.store is not None:  # drawn before the first write: no other index, of any project, has the name
            made_with = finished.made_with if finished else out.settle({COLLECTION: f"ml_filter-{uuid.uuid4().hex}"})
            collection = made_with[COLLECTION]
        with open_store(directory, config.store, collection, encoder.width, words, settings) as store:
            _fill(store, encoder, out.location, written, config)
        return finished or out.finish(results)


def _words(config: IndexConfig) -> Words:
    return Words(config.word_language, config.chunk_tokens * _WORDS_PER_TOKEN)


# --- Passages --------------------------------------------------------------------------------------------------------


def _split_shards(
    out: GrowingDirectory,
    shards: Sequence[InputShard],
    source: SourceConfig,
    config: IndexConfig,
) -> list[tuple[str, ShardResult]]:
    counter = TokenCounter(encoder_path(config.encoder))
    out.reuse({shard.name: str(shard.state) for shard in shards})
    finished = out.finished_shards(shard.name for shard in shards)
    results = []
    with progress("Splitting", known_rows(shards)) as bar:
        for shard in shards:
            result = finished.get(shard.name)
            if result is None:
                result = _split_shard(out, shard, source, config, counter, bar)
            else:
                bar.advance(result.counts["read"])
            results.append((shard.name, result))
    counts = sum((Counter(result.counts) for _, result in results), Counter())
    if not counts["passages"]:
        raise nothing_read(source.paths, counts, first=first_reject(results))
    known: set[str] = set()
    for _, shard_result in results:
        if not config.columns or known.issuperset(config.columns):
            break
        if shard_result.shard is not None:
            known.update(read_schema(str(out.location / shard_result.shard.path)).names)
    if unknown := [name for name in config.columns if name not in known]:
        raise InputError(f"--column {unknown[0]}: no document has this column; {_columns_of(shards, source)}")
    return results


def _columns_of(shards: Sequence[InputShard], source: SourceConfig) -> str:
    """The columns of the first documents, in words."""
    tables = (table for shard in shards for table in read_shard(shard, source, RejectsLog()))
    return f"there are {', '.join(next(tables).column_names)}"


def _split_shard(
    out: GrowingDirectory,
    shard: InputShard,
    source: SourceConfig,
    config: IndexConfig,
    counter: TokenCounter,
    bar: Progress,
) -> ShardResult:
    counts = Counter(read=0, passages=0, parents=0)
    with out.new_shard(shard.name) as writer, out.new_rejects(shard.name) as rejects:
        for table in read_shard(shard, source, rejects):
            rows: list[dict[str, Any]] = []
            owners: list[int] = []
            for owner, text in enumerate(table["text"].to_pylist()):
                number = counts["read"]
                counts["read"] += 1
                for parent_number, (parent, passages) in enumerate(_passages(clean(text), config, counter)):
                    parent_id = _point_id(shard.name, number, parent_number, parent)
                    counts["parents"] += 1
                    for passage_number, passage in enumerate(passages):
                        id_ = _point_id(shard.name, number, parent_number, passage_number, passage)
                        rows.append({"id": id_, "text": passage, "parent_id": parent_id, "parent": parent})
                        owners.append(owner)
            if rows:
                writer.write(_with_columns(rows, table.take(pa.array(owners)), config.payload_columns))
                counts["passages"] += len(rows)
            bar.advance(table.num_rows)
    return out.commit(shard.name, writer, rejects, counts, shard.state)


def _passages(text: str, config: IndexConfig, counter: TokenCounter) -> Iterator[tuple[str, list[str]]]:
    """The parents of a text, each with its passages."""
    for start, end, _ in chunks_of(text, counter, config.parent_tokens):
        parent = text[start:end]
        passages = chunks_of(parent, counter, config.chunk_tokens, config.overlap_tokens)
        yield parent, [parent[passage.start : passage.end] for passage in passages]


def _with_columns(rows: list[dict[str, Any]], documents: pa.Table, names: Sequence[str]) -> pa.Table:
    """The passages with the id and the chosen columns of their documents."""
    table = pa.Table.from_pylist(rows).append_column("document_id", documents["id"])
    for name in names:
        if name in documents.column_names:
            table = table.append_column(name, documents[name])
    return table


def clean(text: str) -> str:
    """A text in normal form C, without control characters, with single spaces and at most one blank line in a row."""
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text.replace("\r\n", "\n")))
    text = _LINE_ENDS.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def _point_id(*parts: str | int) -> str:
    """The same id for the same text at the same place, as a UUID, which Qdrant asks for."""
    digest = blake2b(digest_size=16, person=b"passages")
    for part in parts:
        digest.update(f"{part}\0".encode("utf-8", "surrogatepass"))
    return str(uuid.UUID(bytes=digest.digest()))


# --- Store -----------------------------------------------------------------------------------------------------------


def _fill(
    store: Store, encoder: TextEncoder, directory: Location, shards: Sequence[Shard], config: IndexConfig
) -> None:
    """Bring the store up to date with the shards; nothing that it has is embedded again."""
    present = store.shards()
    open_shards = [shard for shard in shards if present.get(shard.digest) != shard.rows]
    stale = present.keys() - {shard.digest for shard in shards}
    if not open_shards and not stale:
        return
    embedded = 0
    with progress("Embedding", sum(shard.rows for shard in open_shards)) as bar:
        for shard in open_shards:
            if present.get(shard.digest, 0) > shard.rows:
                store.delete_shard(shard.digest)
            for rows in _batches(directory, shard):
                embedded += _put(store, encoder, shard.digest, rows, config)
                store.flush()  # what is not flushed, a kill loses
                bar.advance(len(rows))
    for digest in stale:
        store.delete_shard(digest)
    store.optimize()
    logger.info(f"{embedded:,} passages were embedded, {bar.done - embedded:,} were in the store already")


def _batches(directory: Location, shard: Shard) -> Iterator[list[dict[str, Any]]]:
    for table in read_tables(str(directory / shard.path), None, shard.rows):
        for batch in table.to_batches(_BATCH_ROWS):
            yield batch.to_pylist()


def _put(store: Store, encoder: TextEncoder, digest: str, rows: list[dict[str, Any]], config: IndexConfig) -> int:
    """Write passages and their parents; returns how many had to be embedded."""
    vectors = store.vectors([row["id"] for row in rows])
    new = [row for row in rows if row["id"] not in vectors]
    if new:
        vectors |= zip((row["id"] for row in new), encoder.passages([row["text"] for row in new]), strict=True)
    parents = {row["parent_id"]: Point(row["parent_id"], {"text": row["parent"], PARENT_OF: digest}) for row in rows}
    # Parents come first: a shard with all its passages then has all its parents.
    store.put(list(parents.values()))
    names = ["text", "document_id", "parent_id", *config.payload_columns]
    store.put(
        [
            Point(
                row["id"],
                {**{name: _plain(row[name]) for name in names if row.get(name) is not None}, SHARD: digest},
                vectors[row["id"]],
            )
            for row in rows
        ]
    )
    return len(new)


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return value if isinstance(value, str | int | float | bool) else json_text(value)


@contextmanager
def open_index(
    directory: str | Path, settings: Settings | None = None, engine: EngineConfig | None = None
) -> Iterator[Index]:
    """Open an index for searching.

    Raises:
        InputError: the directory has no complete index, or its store or encoder is not that of its manifest.
        ConfigError: a package or the encoder is missing.
    """
    manifest = read_manifest(directory, "index")
    config = IndexConfig.model_validate(manifest.config["index"] | (engine.model_dump() if engine else {}))
    encoder = TextEncoder(config)
    if encoder.digest != manifest.config["encoder"]["digest"]:
        raise InputError(f"{config.encoder} is not the encoder that {directory} was indexed with; index again")
    path = Path(directory) / STORE_DIRECTORY
    if config.store is None and not path.is_dir():
        raise InputError(f"{path} is missing; run the same ml-filter index command again to restore it")
    collection = manifest.made_with.get(COLLECTION)
    with open_store(path, config.store, collection, encoder.width, _words(config), settings or Settings()) as store:
        _check(store, manifest)
        yield Index(manifest, config, store, encoder)


def _check(store: Store, manifest: Manifest) -> None:
    expected, present = {shard.digest: shard.rows for shard in manifest.shards}, store.shards()
    if present != expected:
        raise InputError(
            f"the store of {manifest.root} has {sum(present.values()):,} passages in {len(present):,} shards, not the "
            f"{manifest.rows:,} in {len(expected):,} of its manifest: it is damaged, or being updated. Run the same "
            "ml-filter index command again to repair it"
        )
