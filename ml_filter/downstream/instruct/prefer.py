"""Preference pairs: several answers to an instruction, of which a judge prefers one whatever their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa

from ml_filter.annotation.budget import SharedBudget
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.generate import STATUS_COLUMNS, generate
from ml_filter.annotation.pairwise import VERDICTS, judge_pairs
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.derived import Beside, derive_documents, read_rows_of
from ml_filter.documents.dropping import KeptAndDropped, drop_documents
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, read_tables
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.instruct.checks import Checks, Triple
from ml_filter.downstream.instruct.config import AnswererConfig, CheckConfig, InstructConfig, PreferConfig
from ml_filter.downstream.instruct.stages import stages_of
from ml_filter.downstream.instruct.triples import DROPPED_SCHEMA, failure_of
from ml_filter.errors import InputError
from ml_filter.prepare.decontaminate import decontaminate_documents

PREFERENCES = "preferences"
_AT, _AS_WRITTEN = " at temperature ", ", as written"
"""What follows the name of the model in the name of who wrote an answer."""
_PREFERRED = ("first", "second")
_CARRIED = ("document_id", "document_digest")
PREFERENCE_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("id", "task", "chosen", "rejected", "chosen_by", "rejected_by", "reason", "judged_by", *_CARRIED)
    ]
)
_ANSWER_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", *Triple._fields, *_CARRIED)])
_PAIR_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "first", "second", "first_by", "second_by", *_CARRIED)]
)


def prefer_answers(
    triples: Manifest,
    config: InstructConfig,
    output: str,
    settings: Settings | None = None,
    *,
    ledgers: str | None = None,
) -> Manifest:
    """The pairs of answers of which the judge prefers the same one in both orders, as `config.prefer` says.

    Answers that fail a check of outputs or contain evaluation texts are dropped before anything is paid for a verdict.
    Ties, inconsistent verdicts and failures are counted and are in the directory of verdicts. With one answerer, its
    answer is compared with the output of the instruction.

    Args:
        output: directory of the directories of this stage.

    Raises:
        TooManyFailures, EndpointError: see `generate`.
    """
    assert config.prefer is not None
    judged = triples
    if triples.rows:
        judged = _Contest(config, config.prefer, output, settings or Settings(), ledgers).judge(triples)
    parents = [Parent(path=judged.root, digest=judged.digest)]
    with OutputDirectory(f"{output}/preferences-{{digest}}", PREFERENCES, {}, parents) as out:
        if out.manifest:
            return out.manifest
        counts = Counter(read=0, kept=0, dropped=0)
        with out.new_shard("preferences", PREFERENCE_SCHEMA) as writer, out.new_rejects("preferences") as rejects:
            for rows in _batches(judged) if judged.kind == VERDICTS else ():
                kept = [_preference(row) for row in rows if row["verdict"] in _PREFERRED]
                counts.update(read=len(rows), kept=len(kept), dropped=len(rows) - len(kept))
                counts.update(f"dropped_{row['verdict']}" for row in rows if row["verdict"] not in _PREFERRED)
                writer.write(pa.Table.from_pylist(kept, schema=PREFERENCE_SCHEMA))
        return out.finish([("preferences", out.commit("preferences", writer, rejects, counts))])


@dataclass(frozen=True)
class _Contest:
    """Has instructions answered, and the answers compared."""

    config: InstructConfig
    prefer: PreferConfig
    output: str
    settings: Settings
    ledgers: str | None

    def judge(self, triples: Manifest) -> Manifest:
        """The verdicts on all pairs of answers; without pairs, the pairs."""
        budget = SharedBudget(self.config.budget_tokens)
        tasks = derive_documents(triples, ("id", "instruction", "input"), _task, f"{self.output}/tasks-{{digest}}")
        answers: list[Manifest] = []
        for answerer in self.prefer.answerers:
            answers.append(self._answers(triples, tasks, budget.share(answerer, *stages_of(triples, *answers))))
        names = [_name(answerer, self.settings) for answerer in self.prefer.answerers]
        pairs = _pairs(triples, answers, names, f"{self.output}/pairs-{{digest}}")
        if not pairs.rows:
            return pairs
        judge = budget.share(self.prefer.judge, *stages_of(pairs))
        return judge_pairs(pairs, self.prefer.prompt, judge, self.output, self.settings, ledgers=self.ledgers)

    def _answers(self, triples: Manifest, tasks: Manifest, answerer: AnswererConfig) -> Manifest:
        """The instructions with the answers of an answerer as their outputs, without those that are dropped."""
        source, directory = SourceConfig(paths=[tasks.root]), f"{self.output}/answers-{{digest}}"
        answers = generate(source, answerer.prompt, answerer, directory, self.settings, ledgers=self.ledgers)
        checked = _check_answers(triples, answers, self.config.check, f"{self.output}/checked-answers-{{digest}}")
        if self.config.decontaminate is None or not checked.rows:
            return checked
        source, directory = SourceConfig(paths=[checked.root]), f"{self.output}/decontaminated-answers-{{digest}}"
        return decontaminate_documents(source, self.config.decontaminate, directory)


def _name(answerer: AskConfig, settings: Settings) -> str:
    return f"{annotator_name(answerer, settings)}{_AT}{answerer.temperature:g}"


def model_of(writer: str) -> str:
    """The model in `chosen_by` or `rejected_by`."""
    return writer.removesuffix(_AS_WRITTEN).partition(_AT)[0]


def _task(triple: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """An instruction without its output, as a document to answer."""
    yield triple["id"], Triple(triple["instruction"], triple["input"], "").task


def _check_answers(triples: Manifest, answers: Manifest, config: CheckConfig, output: str) -> Manifest:
    """The instructions with their answers as outputs; `dropped/` has those that failed, or fail a check of outputs."""
    source = SourceConfig(paths=[triples.root])
    shards, _ = list_shards(source)
    columns = ["id", "answer", *STATUS_COLUMNS]
    beside = Beside(((row["id"], row) for row in read_rows_of(answers, columns)), shards, answers.root)
    checks = Checks(config)

    def divide(shard: InputShard, offset: int, table: pa.Table) -> KeptAndDropped:
        kept, dropped = [], []
        rows = table.select(["id", "instruction", "input", *_CARRIED]).to_pylist()
        for row, answer in zip(rows, beside.read(shard, offset, table["id"].to_pylist()), strict=True):
            if (failure := failure_of(answer)) is not None:
                dropped.append(failure)
                continue
            triple = Triple(row["instruction"], row["input"], answer["answer"].strip())
            problem = checks.output_problem(triple)
            if problem is None:
                kept.append({**row, "text": triple.text, "output": triple.output})
            else:
                dropped.append({"id": row["id"], **problem._asdict(), **triple._asdict()})
        return KeptAndDropped(
            pa.Table.from_pylist(kept, schema=_ANSWER_SCHEMA), pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA)
        )

    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in (triples, answers)]
    with OutputDirectory(output, "answers", {"check": config.model_dump(mode="json")}, parents) as out:
        return out.manifest or drop_documents(out, shards, source, divide, DROPPED_SCHEMA, "Checking answers")


def _pairs(triples: Manifest, answers: Sequence[Manifest], names: Sequence[str], output: str) -> Manifest:
    """All pairs of different answers to each instruction."""
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in (triples, *answers)]
    with OutputDirectory(output, "pairs", {"answerers": list(names)}, parents) as out:
        if out.manifest:
            return out.manifest
        counts = Counter(instructions=0, pairs=0, same=0)
        streams = [_AnswersInOrder(manifest) for manifest in answers]
        with out.new_shard("pairs", _PAIR_SCHEMA) as writer, out.new_rejects("pairs") as rejects:
            for rows in _batches(triples, ["id", *Triple._fields, "generated_by", *_CARRIED]):
                pairs = []
                for row in rows:
                    found = [(name, stream.take(row["id"])) for name, stream in zip(names, streams, strict=True)]
                    candidates = [(name, answer) for name, answer in found if answer is not None]
                    if len(answers) == 1:
                        candidates.append((f"{row['generated_by']}{_AS_WRITTEN}", row["output"]))
                    different = [(a, b) for a, b in combinations(candidates, 2) if a[1].strip() != b[1].strip()]
                    counts.update(instructions=1, pairs=len(different))
                    counts["same"] += len(list(combinations(candidates, 2))) - len(different)
                    pairs += [_pair(row, number, a, b) for number, (a, b) in enumerate(different)]
                writer.write(pa.Table.from_pylist(pairs, schema=_PAIR_SCHEMA))
        for stream, manifest in zip(streams, answers, strict=True):
            if stream.following is not None:
                raise InputError(f"the answers in {manifest.root} are not in the order of the instructions")
        return out.finish([("pairs", out.commit("pairs", writer, rejects, counts))])


class _AnswersInOrder:
    """The answers to some of the instructions, in the order of the instructions."""

    def __init__(self, answers: Manifest) -> None:
        self._rows = read_rows_of(answers, ["id", "output"])
        self.following = next(self._rows, None)

    def take(self, triple_id: str) -> str | None:
        """The answer to the instruction; None: it was dropped."""
        row = self.following
        if row is None or row["id"] != triple_id:
            return None
        self.following = next(self._rows, None)
        return str(row["output"])


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
