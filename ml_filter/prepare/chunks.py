"""Cut documents into chunks of a number of tokens, each the start of which may repeat the end of the one before.

A chunk ends with a paragraph if that does not make it too short, else with a line, a sentence or a word. It is a part
of the text of its document, without white space at its ends, and names its document and its place in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import first_reject
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, known_rows, read_shard, text_id
from ml_filter.documents.rejects import RejectsLog, nothing_read
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import rename_clashing_columns
from ml_filter.documents.writer import ShardWriter
from ml_filter.prepare.config import ChunkConfig
from ml_filter.prepare.tokens import TokenCounter
from ml_filter.progress import progress

CHUNK_FIELDS = (
    pa.field("document_id", pa.string()),
    pa.field("document_digest", pa.string()),  # hash of the document's text, as of documents without an id
    pa.field("chunk", pa.int32()),  # its number in the document, from 0
    pa.field("start", pa.int64()),  # in the document's text, in characters
    pa.field("end", pa.int64()),
    pa.field("tokens", pa.int32()),
)
"""The columns of a chunk beside `id`, `text` and those of its document."""
_SENTENCE = r"(?<=[.!?])[\"')\]]?\s+|(?<=[\u3002\uff01\uff1f\u0964])"
_CUTS = [re.compile(p) for p in (r"\n\s*\n", r"\n", _SENTENCE, r"\s+")]
"""Where a text is cut, in order of preference: after a paragraph, a line, a sentence, a word."""
_STARTS = [re.compile(p) for p in (rf"\n\s*|{_SENTENCE}", r"\s+")]
"""Where a chunk may begin: with a line or a sentence, else with a word."""
_TOKEN_CHARS = 8
"""Characters to look at for each token of a chunk: text has 3 to 6; where a part has more, its chunk is shorter."""


class Chunk(NamedTuple):
    """A part of a text: start and end in characters, and its number of tokens."""

    start: int
    end: int
    tokens: int


def best_cut(text: str) -> int:
    """Where to cut a text so that as much of it as possible comes before, but no paragraph, line, sentence or word is
    divided if that would leave less than a quarter."""
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(text)]
        if ends and ends[-1] >= len(text) // 4:  # an earlier cut would leave a tiny piece
            return ends[-1]
    return len(text)


def chunks_of(text: str, counter: TokenCounter, chunk_tokens: int, overlap_tokens: int = 0) -> Iterator[Chunk]:
    """Cut a text into chunks of at most `chunk_tokens` tokens; each repeats at most `overlap_tokens` of the one before.

    Only the text of a chunk and some more is tokenized at a time, so that memory does not grow with the text.
    """
    start = _skip_space(text, 0)
    while start < len(text):
        window = text[start : start + _TOKEN_CHARS * chunk_tokens]
        offsets = counter.offsets(window)
        is_last = len(offsets) <= chunk_tokens and start + len(window) == len(text)
        if len(offsets) > chunk_tokens:
            window = window[: offsets[chunk_tokens][0]]
        end = start + (len(window) if is_last else best_cut(window))
        length = len(text[start:end].rstrip())
        offsets = [offset for offset in offsets if offset[0] < length]
        if not (is_last or text[end - 1].isspace()):
            # A cut inside a word can change how the text before it is tokenized, so count the tokens of the chunk.
            while len(offsets := counter.offsets(text[start : start + length])) > chunk_tokens:
                length = max(offsets[chunk_tokens][0], 1)
            end = start + length
        if offsets:
            yield Chunk(start, start + length, len(offsets))
        if is_last:
            return
        repeated = min(overlap_tokens, len(offsets) // 2)  # at most half, so that every chunk gets further
        next_start = start + offsets[len(offsets) - repeated][0] if repeated else end
        start = _skip_space(text, _best_start(text, next_start, end))


def _best_start(text: str, earliest: int, end: int) -> int:
    """The first beginning of a line or sentence in a part of a text, else that of a word."""
    before = text[max(earliest - _TOKEN_CHARS, 0) : earliest]
    space = earliest - len(before) + len(before.rstrip())  # so that the earliest place may be a beginning itself
    for pattern in _STARTS:
        for match in pattern.finditer(text, space, end):
            if earliest <= match.end() < end:
                return match.end()
    return earliest


def _skip_space(text: str, start: int) -> int:
    match = re.compile(r"\s*").match(text, start)
    assert match is not None
    return match.end()


def chunk_documents(source: SourceConfig, config: ChunkConfig, output: str | Path) -> Manifest:
    """Cut every document into chunks, and write them with the columns of their documents and `CHUNK_FIELDS`.

    The id of a chunk is that of its document with its number, as in `d17#0`; an input column with the name of a new one
    becomes `input_<name>`. Every input shard becomes one of the output, so that a killed run continues.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
        InputError: no document could be read.
    """
    shards, parents = list_shards(source)
    counter = TokenCounter(config.tokenizer)
    settings = {"source": source.model_dump(mode="json"), "chunk": config.model_dump(mode="json")}
    with OutputDirectory(output, "chunks", {**settings, "tokenizer_digest": counter.digest}, parents) as out:
        if out.manifest:
            return out.manifest
        results, total = [], Counter[str]()
        with progress("Chunking", known_rows(shards)) as bar:
            for shard in shards:
                result = out.finished_shard(shard.name)
                if result is None:
                    counts = Counter(documents=0, chunks=0, tokens=0, too_short=0)
                    with out.new_shard(shard.name) as writer, out.new_rejects(shard.name) as rejects:
                        for table in read_shard(shard, source, rejects):
                            _write_chunks(table, counter, config, writer, counts, rejects, shard)
                            bar.advance(table.num_rows)
                    result = out.commit(shard.name, writer, rejects, counts)
                else:
                    bar.advance(result.counts["documents"])
                results.append((shard.name, result))
                total.update(result.counts)
        if not total["documents"]:
            raise nothing_read(source.paths, total, first=first_reject(results))
        return out.finish(results)


def _write_chunks(
    table: pa.Table,
    counter: TokenCounter,
    config: ChunkConfig,
    writer: ShardWriter,
    counts: Counter[str],
    rejects: RejectsLog,
    shard: InputShard,
) -> None:
    rows, parents = [], []
    for position, (document_id, text) in enumerate(
        zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    ):
        chunks = list(chunks_of(text, counter, config.chunk_tokens, config.overlap_tokens))
        if not chunks:
            rejects.add(shard.uri, document_id, "no_tokens", "the tokenizer finds no token in the text")
        long = [(number, chunk) for number, chunk in enumerate(chunks) if chunk.tokens >= config.min_chunk_tokens]
        counts.update(documents=1, chunks=len(long), too_short=len(chunks) - len(long))
        digest = text_id(text)
        for number, (start, end, tokens) in long:
            counts["tokens"] += tokens
            row = (document_id, digest, number, start, end, tokens)
            rows.append((f"{document_id}#{number}", text[start:end], *row))
            parents.append(position)
    if not rows:
        return
    schema = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.string()), *CHUNK_FIELDS])
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
    others = rename_clashing_columns(table.drop_columns(["id", "text"]), schema.names).take(pa.array(parents))
    chunks_table = pa.table(columns, schema=schema)
    for name in others.column_names:
        chunks_table = chunks_table.append_column(others.schema.field(name), others[name])
    writer.write(chunks_table)
