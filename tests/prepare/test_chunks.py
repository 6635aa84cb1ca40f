"""Chunks by tokens: where texts are cut, what is repeated, and that the place of every chunk is right."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import text_id
from ml_filter.errors import InputError
from ml_filter.prepare.chunks import CHUNK_FIELDS, chunk_documents, chunks_of
from ml_filter.prepare.config import ChunkConfig
from ml_filter.prepare.tokens import TokenCounter


@pytest.fixture(scope="module")
def counter():
    return TokenCounter()


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer that has no words, so that every cut may change the tokens before it."""
    directory = tmp_path_factory.mktemp("bytes")
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġa": 4}, [("a", "b"), ("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(directory / "tokenizer.json"))
    return TokenCounter(str(directory))


def pieces(text: str, counter: TokenCounter, size: int, overlap: int = 0) -> list[str]:
    return [text[chunk.start : chunk.end] for chunk in chunks_of(text, counter, size, overlap)]


def test_a_chunk_ends_with_a_paragraph_else_a_sentence_else_a_word(counter):
    assert pieces("One two three.\n\nFour. Five six seven eight nine.", counter, 8) == [
        "One two three.",
        "Four. Five six seven eight nine.",
    ]
    assert pieces("One two. Three four five six seven.", counter, 7) == ["One two.", "Three four five six seven."]
    assert pieces("one two three four five six", counter, 4) == ["one two three four", "five six"]
    assert pieces("a short text", counter, 512) == ["a short text"]


def test_a_chunk_repeats_the_last_sentence_that_fits_else_the_last_words(counter):
    text = "The fern grows in the shade. It likes rain. Moss grows too. The fox sleeps there."
    assert pieces(text, counter, 12, 6) == [
        "The fern grows in the shade. It likes rain.",
        "It likes rain. Moss grows too.",
        "Moss grows too. The fox sleeps there.",
    ]
    assert pieces("one two three four five six seven", counter, 4, 2) == [
        "one two three four",
        "three four five six",
        "five six seven",
    ]


def test_a_text_without_spaces_is_cut_within_the_limit(counter):
    cells = "\u7d30\u80de\u306f\u751f\u547d\u306e\u5358\u4f4d\u3067\u3059\u3002\u690d\u7269"
    assert pieces(cells, counter, 8) == [cells[:8], cells[8:]]
    assert pieces(cells, counter, 12) == [cells[:11], cells[11:]]
    long = "supercalifragilistic" * 30
    assert "".join(pieces(long, counter, 10)) == long
    assert pieces(" \n\x00\n " * 9, counter, 8) == []


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab. \n\u3002"), max_size=200), st.integers(2, 12), st.integers(0, 6))
def test_no_chunk_is_too_long_and_together_they_cover_the_text(counter, byte_level, text, size, overlap):
    for tokenizer in (counter, byte_level):
        chunks = list(chunks_of(text, tokenizer, size, min(overlap, size // 2)))
        covered = set()
        for chunk in chunks:
            piece = text[chunk.start : chunk.end]
            assert piece == piece.strip()
            assert 0 < chunk.tokens == tokenizer.count([piece])[0] <= size
            covered.update(range(chunk.start, chunk.end))
        assert [chunk.start for chunk in chunks] == sorted({chunk.start for chunk in chunks})
        missing = "".join(character for place, character in enumerate(text) if place not in covered)
        assert tokenizer.count(["".join(missing.split())])[0] == 0


def test_chunks_carry_their_document_and_their_place_in_it(tmp_path, documents):
    rows = [{**row, "chunk": "mine"} for row in documents[:40]] + [{"id": "blank", "text": " "}]
    for name, part in (("a", rows[:20]), ("b", rows[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    source = SourceConfig(paths=[str(tmp_path / "*.jsonl")])
    config = ChunkConfig(chunk_tokens=64, overlap_tokens=16, min_chunk_tokens=8)
    manifest = chunk_documents(source, config, tmp_path / "out")
    assert len(manifest.shards) == 2
    tables = [pq.read_table(path) for path in manifest.shard_paths()]
    chunks = pa.concat_tables(tables, promote_options="default").to_pylist()
    assert {field.name for field in CHUNK_FIELDS} < set(tables[0].column_names)
    texts = {row["id"]: row["text"] for row in rows}
    for chunk in chunks:
        assert chunk["text"] == texts[chunk["document_id"]][chunk["start"] : chunk["end"]]
        assert chunk["document_digest"] == text_id(texts[chunk["document_id"]])
        assert chunk["id"] == f"{chunk['document_id']}#{chunk['chunk']}"
        assert 8 <= chunk["tokens"] <= 64
        assert chunk["input_chunk"] == "mine"
    assert manifest.counts["documents"] == 40
    assert manifest.counts["chunks"] == len(chunks) > 40
    assert manifest.counts["tokens"] == sum(chunk["tokens"] for chunk in chunks)
    assert manifest.counts["rejected_empty_text"] == 1
    assert chunk_documents(source, config, tmp_path / "out").digest == manifest.digest


def test_an_overlap_that_is_too_long_and_an_empty_source_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    source = SourceConfig(paths=[str(tmp_path / "a.jsonl")])
    with pytest.raises(InputError, match="empty_text"):
        chunk_documents(source, ChunkConfig(), tmp_path / "out")
    with pytest.raises(ValidationError, match="at most half"):
        ChunkConfig(chunk_tokens=64, overlap_tokens=33)
