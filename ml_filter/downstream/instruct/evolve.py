"""Evolve instructions, in depth or in breadth, each by one of several prompts, which the seed chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ml_filter.annotation.generate import GenerationPrompt, generate, load_generation_prompt, require_same_columns
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.downstream.instruct.checks import Triple
from ml_filter.downstream.instruct.config import CheckConfig, EvolveConfig, WriterConfig
from ml_filter.downstream.instruct.triples import TRIPLE_SCHEMA, collect_triples
from ml_filter.errors import ConfigError
from ml_filter.prepare.sampling import sampling_key

_SHIPPED = "instruct_evolve_"
"""Begins the names of the shipped prompts."""
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
    prompts = load_evolutions(config)
    chosen = _choose(triples, generation, config, list(prompts), f"{output}/evolving-{generation}-{{digest}}")
    if not chosen.rows:
        return chosen
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


def load_evolutions(config: EvolveConfig) -> dict[str, GenerationPrompt]:
    """The prompts that evolve, by the names of the evolutions, such as `deepen`.

    Raises:
        ConfigError: a prompt does not exist or does not write an instruction, two have the same name, or their columns
            differ.
    """
    prompts: dict[str, GenerationPrompt] = {}
    for name_or_file in config.prompts:
        prompt = load_generation_prompt(name_or_file, like=[f"{_SHIPPED}breadth"])
        name = prompt.name.removeprefix(_SHIPPED)
        if name in prompts:
            raise ConfigError(f"evolve.prompts: two prompts have the name {prompt.name}")
        prompts[name] = prompt
    require_same_columns(list(prompts.values()))
    return prompts


def _choose(
    triples: Manifest, generation: int, config: EvolveConfig, evolutions: Sequence[str], output: str | Path
) -> Manifest:
    """The instructions to evolve, each as a document that shows the passage and the instruction."""
    choice = {"share": config.share, "seed": config.seed, "evolutions": list(evolutions)}
    settings = {"generation": generation, "evolve": choice}
    parents = [Parent(path=triples.root, digest=triples.digest)]
    with OutputDirectory(output, "evolving", settings, parents) as out:
        if out.manifest:
            return out.manifest
        counts = Counter(read=0, chosen=0)
        with out.new_shard("evolving") as writer, out.new_rejects("evolving") as rejects:
            for path in triples.shard_paths():
                for table in read_tables(path):
                    counts["read"] += table.num_rows
                    chosen = _evolving(table, generation, config, evolutions)
                    counts["chosen"] += chosen.num_rows
                    counts.update(f"chosen_{kind}" for kind in chosen["evolution"].to_pylist())
                    writer.write(chosen)
        return out.finish([("evolving", out.commit("evolving", writer, rejects, counts))])


def _evolving(table: pa.Table, generation: int, config: EvolveConfig, evolutions: Sequence[str]) -> pa.Table:
    kinds = [_evolution_of(triple_id, generation, config, evolutions) for triple_id in table["id"].to_pylist()]
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


def _evolution_of(triple_id: str, generation: int, config: EvolveConfig, evolutions: Sequence[str]) -> str | None:
    """How an instruction is evolved; None: it is not."""
    key = sampling_key(f"{generation} {triple_id}", config.seed, "evolve")
    share, choice = key >> 32, key & 0xFFFFFFFF
    return evolutions[choice % len(evolutions)] if share < config.share * 2**32 else None
