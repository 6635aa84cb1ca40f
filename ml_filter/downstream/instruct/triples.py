"""From the answers of a writer to rows of instructions; those that fail a check are listed with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ml_filter.annotation.generate import GENERATED, STATUS_COLUMNS
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.dropping import KeptAndDropped, drop_documents
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.instruct.checks import Checks, Triple, grounding
from ml_filter.downstream.instruct.config import CheckConfig
from ml_filter.prepare.chunks import CHUNK_FIELDS

TRIPLES = "triples"
"""Kind of the directories of instructions."""
_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("text", pa.string()),  # all of it, as a document
    pa.field("instruction", pa.string()),
    pa.field("input", pa.string()),
    pa.field("output", pa.string()),
    pa.field("passage", pa.string()),  # that it was written from
    pa.field("passage_id", pa.string()),
    pa.field("document_id", pa.string()),
    pa.field("document_digest", pa.string()),
    pa.field("parent_id", pa.string()),  # the instruction that it was evolved from; null: it was written
    pa.field("evolution", pa.string()),  # how
    pa.field("generation", pa.int32()),  # how often; 0: it was written
    pa.field("grounding", pa.float64()),  # share of the content words of the output in the passage
    pa.field("generated_by", pa.string()),
]
TRIPLE_SCHEMA = pa.schema(_FIELDS)
"""The columns of an instruction beside those of its document."""
DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("input", pa.string()),
        pa.field("output", pa.string()),
    ]
)
_NOT_CARRIED = {
    *TRIPLE_SCHEMA.names, *(field.name for field in CHUNK_FIELDS), *STATUS_COLUMNS,
    *("triples", "parent_instruction", "parent_input", "parent_output"),
}  # fmt: skip


def collect_triples(generated: Manifest, config: CheckConfig, output: str | Path) -> Manifest:
    """The instructions in what a writer has written or evolved, without those that fail a check.

    `dropped/` has the others with the reason, and a row for each answer that failed.

    Args:
        generated: chunks with `triples`; chunks with an `instruction` whose output they are; or parents with
            `instruction`, `input` and `output` (evolve.py).
    """
    source = SourceConfig(paths=[generated.root])
    shards, _ = list_shards(source)
    checks = Checks(config)
    parents = [Parent(path=generated.root, digest=generated.digest)]

    def divide(shard: InputShard, offset: int, table: pa.Table) -> KeptAndDropped:
        kept, origins, dropped = [], [], []
        for position, row in enumerate(table.to_pylist()):
            if (failure := failure_of(row)) is not None:
                dropped.append(failure)
                continue
            for triple_id, triple in _triples_in(row):
                problem = checks.problem(triple, _passage_of(row), _parent_of(row))
                if problem is None:
                    kept.append(_row(row, triple_id, triple))
                    origins.append(position)
                else:
                    dropped.append({"id": triple_id, **problem._asdict(), **triple._asdict()})
        carried = table.select([name for name in table.column_names if name not in _NOT_CARRIED])
        rows = pa.Table.from_pylist(kept, schema=TRIPLE_SCHEMA)
        for name, column in zip(carried.column_names, carried.take(pa.array(origins, pa.int64())).columns, strict=True):
            rows = rows.append_column(name, column)
        return KeptAndDropped(rows, pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA))

    with OutputDirectory(output, TRIPLES, {"check": config.model_dump(mode="json")}, parents) as out:
        return out.manifest or drop_documents(out, shards, source, divide, DROPPED_SCHEMA, "Checking instructions")


def failure_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of DROPPED_SCHEMA if the answer of an LLM failed."""
    if row["generation_status"] == GENERATED:
        return None
    return {
        "id": row["id"],
        "reason": f"generation_{row['generation_error']}",
        "detail": row["generation_reason"],
    }


def _triples_in(row: dict[str, Any]) -> Iterator[tuple[str, Triple]]:
    """The instructions of an answer, with their ids."""
    if "parent_instruction" in row:
        yield row["id"], _stripped(row)
    elif "triples" in row:
        for number, fields in enumerate(row["triples"]):
            yield f"{row['id']}/{number}", _stripped(fields)
    else:  # only an instruction was written: the passage is its output
        yield row["id"], _stripped({"instruction": row["instruction"], "input": "", "output": row["text"]})


def _stripped(fields: dict[str, Any]) -> Triple:
    return Triple(*(fields[name].strip() for name in Triple._fields))


def _passage_of(row: dict[str, Any]) -> str:
    return str(row["passage"] if "parent_instruction" in row else row["text"])


def _parent_of(row: dict[str, Any]) -> Triple | None:
    if "parent_instruction" not in row:
        return None
    return Triple(row["parent_instruction"], row["parent_input"], row["parent_output"])


def _row(row: dict[str, Any], triple_id: str, triple: Triple) -> dict[str, Any]:
    passage = _passage_of(row)
    return {
        "id": triple_id,
        "text": triple.text,
        **triple._asdict(),
        "passage": passage,
        "passage_id": row.get("passage_id", row["id"]),
        "generation": row.get("generation", 0),
        "grounding": grounding(triple.output, passage),
        **{
            name: row.get(name) for name in ("document_id", "document_digest", "parent_id", "evolution", "generated_by")
        },
    }
