"""Publish instructions as data sets: messages, Alpaca and preference pairs, split by document, with a card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ml_filter import __version__
from ml_filter.annotation.embedded import MODEL_LICENSE, MODEL_NAME
from ml_filter.documents.finished import ShardResult
from ml_filter.documents.hub import CARD_NAME, hub_api, push_data_set
from ml_filter.documents.lineage import find_source_manifest
from ml_filter.documents.manifest import Manifest, Parent, Shard
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.documents.writer import ShardWriter, file_digest
from ml_filter.downstream.instruct.checks import Triple
from ml_filter.downstream.instruct.config import InstructPublishConfig
from ml_filter.downstream.instruct.prefer import model_of
from ml_filter.downstream.instruct.rate import rating_of
from ml_filter.downstream.instruct.stages import name_of, stages_of
from ml_filter.prepare.sampling import sampling_key
from ml_filter.rendering.html import render_text

INSTRUCTION_DATA = "instruction-data"
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ORIGIN = [(name, pa.string()) for name in ("id", "document_id", "generated_by", "evolution", "parent_id")]
_VIEWS: dict[str, pa.Schema] = {
    "messages": pa.schema([("messages", _MESSAGES), *_ORIGIN, ("generation", pa.int32()), ("rating", pa.float64())]),
    "alpaca": pa.schema([(name, pa.string()) for name in Triple._fields]),
    "preferences": pa.schema(
        [("prompt", _MESSAGES), ("chosen", _MESSAGES), ("rejected", _MESSAGES)]
        + [(name, pa.string()) for name in ("id", "document_id", "chosen_by", "rejected_by", "judged_by")]
    ),
}
"""The data sets and their columns."""
_SPLITS = ("train", "validation")


def publish_instructions(
    triples: Manifest, preferences: Manifest | None, config: InstructPublishConfig, output: str | Path
) -> Manifest:
    """Write the data sets as `data/VIEW/SPLIT.parquet` (or .jsonl) with a card; upload them with `config.push`.

    All instructions of a document are in one split. Without any instruction the directory has only the card.

    Raises:
        ConfigError: no token is set for the upload.
        InputError: the upload fails.
    """
    api = hub_api(config.push) if config.push else None  # first, so that a missing token costs no work
    inputs = [manifest for manifest in (triples, preferences) if manifest is not None]
    settings = config.model_dump(mode="json", exclude={"push", "private"})
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in inputs]
    with OutputDirectory(output, INSTRUCTION_DATA, settings, parents) as out:
        published = out.manifest or _write(out, triples, preferences, config)
    if api and config.push:
        push_data_set(api, published, config.push, private=config.private, message="Instructions")
    return published


def _write(
    out: OutputDirectory, triples: Manifest, preferences: Manifest | None, config: InstructPublishConfig
) -> Manifest:
    authors: Counter[str] = Counter()  # of instructions
    answerers: Counter[str] = Counter()  # of the answers in pairs
    with ExitStack() as files:
        writers = {
            (view, split): files.enter_context(out.new_shard(f"{view}-{split}", schema))
            for view, schema in _VIEWS.items()
            for split in _SPLITS
        }
        for manifest, views in ((triples, ("messages", "alpaca")), (preferences, ("preferences",))):
            for path in manifest.shard_paths() if manifest else ():
                for table in read_tables(path):
                    rows = table.to_pylist()
                    splits = [_split_of(row["document_digest"], config) for row in rows]
                    authors.update(row["generated_by"] for row in rows if "generated_by" in row)
                    answerers.update(row[by] for row in rows for by in ("chosen_by", "rejected_by") if by in row)
                    for view in views:
                        for split in _SPLITS:
                            chosen = [
                                _ROWS[view](row)
                                for row, its_split in zip(rows, splits, strict=True)
                                if its_split == split
                            ]
                            writers[view, split].write(pa.Table.from_pylist(chosen, schema=_VIEWS[view]))
    results = [
        (f"{view}-{split}", _put(out, writer, view, split, config.format))
        for (view, split), writer in writers.items()
        if writer.rows
    ]
    sizes = {key: writer.rows for key, writer in writers.items() if writer.rows}
    out.put_bytes(CARD_NAME, _card(out, sizes, authors, answerers, config).encode())
    return out.finish(results)


def _split_of(document_digest: str, config: InstructPublishConfig) -> str:
    is_validation = sampling_key(document_digest, config.seed, "publish") < config.validation_share * 2**64
    return "validation" if is_validation else "train"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    task = Triple(row["instruction"], row["input"], row["output"]).task
    return {**row, "rating": rating_of(row), "messages": [_message("user", task), _message("assistant", row["output"])]}


def _preference(row: Mapping[str, Any]) -> dict[str, Any]:
    answers = {name: [_message("assistant", row[name])] for name in ("chosen", "rejected")}
    return {**row, "prompt": [_message("user", row["task"])], **answers}


_ROWS: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "messages": _conversation,
    "alpaca": lambda row: row,
    "preferences": _preference,
}


def _put(out: OutputDirectory, writer: ShardWriter, view: str, split: str, form: str) -> ShardResult:
    """Move a finished file to its place, as JSON lines if asked for."""
    file = writer.path
    if form == "jsonl":
        file = writer.path.with_suffix(".jsonl")
        with file.open("w", encoding="utf-8") as lines:
            for batch in pq.ParquetFile(writer.path).iter_batches():
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
    path = f"data/{view}/{split}.{form}"
    shard = Shard(path=path, rows=writer.rows, bytes=file.stat().st_size, digest=file_digest(file))
    out.put_file(file, path)
    return ShardResult(shard=shard, counts={f"{view}_{split}": writer.rows})


def _card(
    out: OutputDirectory,
    sizes: Mapping[tuple[str, str], int],
    authors: Counter[str],
    answerers: Counter[str],
    config: InstructPublishConfig,
) -> str:
    model_license = config.model_license
    if model_license == "unknown" and {*authors, *map(model_of, answerers)} == {MODEL_NAME}:
        model_license = MODEL_LICENSE
    is_one = config.license == model_license
    views = list(dict.fromkeys(view for view, _ in sizes))
    header = {
        "license": config.license if is_one else "other",
        **({} if is_one else {"license_name": f"documents-{config.license}-generated-{model_license}"}),
        "pretty_name": config.title,
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "instruction-tuning"],
        "configs": [
            {
                "config_name": view,
                "data_files": [
                    {"split": split, "path": f"data/{view}/{split}.{config.format}"}
                    for of, split in sizes
                    if of == view
                ],
                **({"default": True} if view == "messages" else {}),
            }
            for view in views
        ],
    }
    stages = [stage for parent in out.parents for stage in stages_of(*_at(parent))]
    return render_text(
        "downstream/instruct/templates/card.md",
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        config=config,
        model_license=model_license,
        sizes=sizes,
        authors=authors,
        answerers=answerers,
        raters=dict.fromkeys(stage.config["annotator"] for stage in stages if stage.kind == "annotations"),
        columns={view: _VIEWS[view].names for view in views},
        stages={stage.root: (name_of(stage), stage) for stage in stages}.values(),
        prompts={p["digest"]: p["name"] for stage in stages for p in stage.config.get("prompts", [])},
        code_version=__version__,
    )


def _at(parent: Parent) -> list[Manifest]:
    manifest = find_source_manifest(parent.path)
    return [] if manifest is None else [manifest]
