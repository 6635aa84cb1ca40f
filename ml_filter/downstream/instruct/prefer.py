"""Preference pairs: several answers to an instruction, of which a judge prefers one whatever their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.generate import generate
from ml_filter.annotation.pairwise import judge_pairs
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.derived import derive_documents, read_rows_of
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.downstream.instruct.checks import Triple
from ml_filter.downstream.instruct.config import PreferConfig
from ml_filter.downstream.instruct.stages import SharedBudget

PREFERENCES = "preferences"
_PREFERRED = ("first", "second")
_CARRIED = ("document_id", "document_digest")
PREFERENCE_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("id", "task", "chosen", "rejected", "chosen_by", "rejected_by", "reason", "judged_by", *_CARRIED)
    ]
)
_PAIR_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "first", "second", "first_by", "second_by", *_CARRIED)]
)


def prefer_answers(
    triples: Manifest,
    config: PreferConfig,
    output: str,
    settings: Settings | None = None,
    *,
    budget: SharedBudget | None = None,
    ledgers: str | None = None,
) -> Manifest:
    """The pairs of answers of which the judge prefers the same one in both orders.

    Ties, inconsistent verdicts and failures are counted and are in the directory of verdicts. With one answerer, its
    answer is compared with the output of the instruction.

    Args:
        output: directory of the directories of this stage.

    Raises:
        TooManyFailures, EndpointError: see `generate`.
    """
    verdicts = _verdicts(triples, config, output, settings or Settings(), budget or SharedBudget(None), ledgers)
    judged = verdicts or triples
    parents = [Parent(path=judged.root, digest=judged.digest)]
    with OutputDirectory(f"{output}/preferences-{{digest}}", PREFERENCES, {}, parents) as out:
        if out.manifest:
            return out.manifest
        counts = Counter(read=0, kept=0, dropped=0)
        with out.new_shard("preferences", PREFERENCE_SCHEMA) as writer, out.new_rejects("preferences") as rejects:
            for rows in _batches(verdicts) if verdicts else ():
                kept = [_preference(row) for row in rows if row["verdict"] in _PREFERRED]
                counts.update(read=len(rows), kept=len(kept), dropped=len(rows) - len(kept))
                counts.update(f"dropped_{row['verdict']}" for row in rows if row["verdict"] not in _PREFERRED)
                writer.write(pa.Table.from_pylist(kept, schema=PREFERENCE_SCHEMA))
        return out.finish([("preferences", out.commit("preferences", writer, rejects, counts))])


def _verdicts(
    triples: Manifest,
    config: PreferConfig,
    output: str,
    settings: Settings,
    budget: SharedBudget,
    ledgers: str | None,
) -> Manifest | None:
    """The verdicts on all pairs of answers; None: without pairs."""
    if not triples.rows:
        return None
    tasks = derive_documents(triples, ("id", "instruction", "input"), _task, f"{output}/tasks-{{digest}}")
    source = SourceConfig(paths=[tasks.root])
    answers: list[Manifest] = []
    for answerer in config.answerers:
        limited = budget.share(answerer, triples, *answers)
        directory = f"{output}/answers-{{digest}}"
        answers.append(generate(source, "instruct_answer", limited, directory, settings, ledgers=ledgers))
    names = [_name(answerer, settings) for answerer in config.answerers]
    pairs = _pairs(triples, answers, names, f"{output}/pairs-{{digest}}")
    if not pairs.rows:
        return None
    judge = budget.share(config.judge, pairs)
    return judge_pairs(pairs, config.prompt, judge, output, settings, ledgers=ledgers)


def _name(answerer: AskConfig, settings: Settings) -> str:
    return f"{annotator_name(answerer, settings)} at temperature {answerer.temperature:g}"


def _task(triple: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """An instruction without its output, as a document to answer."""
    yield triple["id"], Triple(triple["instruction"], triple["input"], "").task


def _pairs(triples: Manifest, answers: Sequence[Manifest], names: Sequence[str], output: str) -> Manifest:
    """All pairs of different answers to each instruction."""
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in (triples, *answers)]
    with OutputDirectory(output, "pairs", {"answerers": list(names)}, parents) as out:
        if out.manifest:
            return out.manifest
        counts = Counter(instructions=0, pairs=0, same=0)
        streams = [read_rows_of(manifest, ["answer"]) for manifest in answers]
        with out.new_shard("pairs", _PAIR_SCHEMA) as writer, out.new_rejects("pairs") as rejects:
            for rows in _batches(triples, ["id", *Triple._fields, "generated_by", *_CARRIED]):
                pairs = []
                for row in rows:
                    candidates = [
                        (name, str(answer))
                        for name, answer in zip(names, _next_answers(streams), strict=True)
                        if answer
                    ]
                    if len(answers) == 1:
                        candidates.append((f"{row['generated_by']}, as written", row["output"]))
                    different = [(a, b) for a, b in combinations(candidates, 2) if a[1].strip() != b[1].strip()]
                    counts.update(instructions=1, pairs=len(different))
                    counts["same"] += len(list(combinations(candidates, 2))) - len(different)
                    pairs += [_pair(row, number, a, b) for number, (a, b) in enumerate(different)]
                writer.write(pa.Table.from_pylist(pairs, schema=_PAIR_SCHEMA))
        return out.finish([("pairs", out.commit("pairs", writer, rejects, counts))])


def _next_answers(streams: Sequence[Iterator[dict[str, Any]]]) -> list[str | None]:
    return [next(stream)["answer"] for stream in streams]


def _pair(row: dict[str, Any], number: int, first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    return {
        "id": f"{row['id']} pair {number}",
        "task": Triple(row["instruction"], row["input"], "").task,
        "first": first[1],
        "second": second[1],
        "first_by": first[0],
        "second_by": second[0],
        **{name: row[name] for name in _CARRIED},
    }


def _preference(row: dict[str, Any]) -> dict[str, Any]:
    better, worse = ("first", "second") if row["verdict"] == "first" else ("second", "first")
    return {
        **{name: row[name] for name in ("id", "task", "judged_by", *_CARRIED)},
        "chosen": row[better],
        "rejected": row[worse],
        "chosen_by": row[f"{better}_by"],
        "rejected_by": row[f"{worse}_by"],
        "reason": row["verdict_reason"],
    }


def _batches(manifest: Manifest, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    for path in manifest.shard_paths():
        for table in read_tables(path, None if columns is None else list(columns)):
            yield table.to_pylist()
