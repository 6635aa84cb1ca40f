"""Evolve instructions, in depth or in breadth, each by one of several prompts, which the seed chooses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa

from ml_filter.annotation.generate import GenerationPrompt, generate, load_generation_prompt
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.downstream.instruct.checks import Triple
from ml_filter.downstream.instruct.config import CheckConfig, EvolveConfig, WriterConfig
from ml_filter.downstream.instruct.triples import TRIPLE_SCHEMA, collect_triples
from ml_filter.prepare.sampling import sampling_key

_PARENT = {name: f"parent_{name}" for name in Triple._fields}


def evolve_triples(
    triples: Manifest,
    generation: int,
    config: EvolveConfig,
    writer: WriterConfig,
    check: CheckConfig,
    output: str,
    settings: Settings | None = None,
    *,
    ledgers: str | None = None,
) -> Manifest:
    """The next generation of instructions, without those that are unchanged, copies or refusals, or fail a check.

    Each carries the id of its parent and how it was evolved.

    Args:
        output: directory of the directories of this stage.

    Raises:
        TooManyFailures, EndpointError: see `generate`.
    """
    chosen = _choose(triples, generation, config, f"{output}/evolving-{generation}-{{digest}}")
    if not chosen.rows:
        return chosen
    prompts: dict[str, GenerationPrompt | str] = {
        kind: load_generation_prompt(f"instruct_evolve_{kind}") for kind in config.kinds
    }
    evolved = generate(
        SourceConfig(paths=[chosen.root]),
        prompts,
        writer,
        f"{output}/evolved-{generation}-{{digest}}",
        settings,
        by="evolution",
        ledgers=ledgers,
    )
    return collect_triples(evolved, check, f"{output}/triples-{generation}-{{digest}}")


def _choose(triples: Manifest, generation: int, config: EvolveConfig, output: str | Path) -> Manifest:
    """The instructions to evolve, each as a document that shows the passage and the instruction."""
    settings = {"generation": generation, "evolve": config.model_dump(mode="json", exclude={"generations"})}
    parents = [Parent(path=triples.root, digest=triples.digest)]
    with OutputDirectory(output, "evolving", settings, parents) as out:
        if out.manifest:
            return out.manifest
        counts = Counter(read=0, chosen=0)
        with out.new_shard("evolving") as writer, out.new_rejects("evolving") as rejects:
            for path in triples.shard_paths():
                for table in read_tables(path):
                    counts["read"] += table.num_rows
                    chosen = _evolving(table, generation, config)
                    counts["chosen"] += chosen.num_rows
                    counts.update(f"chosen_{kind}" for kind in chosen["evolution"].to_pylist())
                    writer.write(chosen)
        return out.finish([("evolving", out.commit("evolving", writer, rejects, counts))])


def _evolving(table: pa.Table, generation: int, config: EvolveConfig) -> pa.Table:
    kinds = [_kind_of(triple_id, generation, config) for triple_id in table["id"].to_pylist()]
    positions = [position for position, kind in enumerate(kinds) if kind is not None]
    table = table.take(pa.array(positions, pa.int64()))
    rows = table.to_pylist()
    new = {
        "id": [f"{row['id']}+{kinds[position]}" for row, position in zip(rows, positions, strict=True)],
        "text": [f"Passage:\n{row['passage']}\n\nTask:\n{_text(row)}" for row in rows],
        "parent_id": [row["id"] for row in rows],
        "evolution": [kinds[position] for position in positions],
        "generation": [generation] * len(rows),
    }
    for name, values in new.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, TRIPLE_SCHEMA.field(name).type))
    names = [_PARENT.get(name, name) for name in table.column_names]
    return table.rename_columns(names).drop_columns(["grounding", "generated_by"])


def _text(row: dict[str, str]) -> str:
    return Triple(row["instruction"], row["input"], row["output"]).text


def _kind_of(triple_id: str, generation: int, config: EvolveConfig) -> str | None:
    """How an instruction is evolved; None: it is not."""
    key = sampling_key(f"{generation} {triple_id}", config.seed, "evolve")
    share, choice = key >> 32, key & 0xFFFFFFFF
    return config.kinds[choice % len(config.kinds)] if share < config.share * 2**32 else None
