"""The report of a run: what every stage read, kept and dropped and why, what it cost, and examples of both."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ml_filter.annotation.budget import total_if_known
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.dropping import DROPPED_DIRECTORY
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.documents.result import read_result
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.instruct.publish import INSTRUCTION_DATA
from ml_filter.downstream.instruct.rate import rating_of
from ml_filter.downstream.instruct.stages import name_of, stages_of
from ml_filter.downstream.instruct.triples import DROPPED_SCHEMA
from ml_filter.location import Location
from ml_filter.metrics import FIGURES
from ml_filter.prepare.sampling import sampling_key
from ml_filter.rendering.html import render
from ml_filter.tracking import RunRecord

REPORT_NAME, PAGE_NAME = "report.json", "report.html"
_REASON = re.compile(r"^(?:dropped|failed|rejected)_(.+)$|^(too_short)$")
_SHOWN_CHARS = 600


class StageReport(BaseModel):
    """One directory of the chain. `dropped` has the number of each reason; `usd` is None where no prices are set."""

    name: str
    path: str
    kind: str
    rows: int
    dropped: dict[str, int] = {}
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None


class Example(BaseModel):
    """An instruction that was kept, or dropped in a stage for a reason. `reasons` are those of the judges."""

    id: str
    instruction: str
    input: str = ""
    output: str
    stage: str = ""
    reason: str = ""
    detail: str = ""
    rating: float | None = None
    grounding: float | None = None
    evolution: str | None = None
    reasons: list[str] = []


class InstructReport(BaseModel):
    """The content of report.json."""

    stages: list[StageReport]
    instructions: int
    preferences: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    kept: list[Example]
    dropped: list[Example]


def report_instructions(
    published: Manifest, triples: Manifest, preferences: Manifest | None, examples: int, output: str | Path
) -> Manifest:
    """Write `report.json` and the page `report.html`."""
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in (published, triples)]
    with OutputDirectory(output, "instruct-report", {"examples": examples}, parents) as out:
        if out.manifest:
            return out.manifest
        report = _report(published, triples, preferences, examples)
        out.put_bytes(REPORT_NAME, (report.model_dump_json(indent=1) + "\n").encode())
        page = render("downstream/instruct/templates/report.html", report=report, shown=_SHOWN_CHARS)
        out.put_bytes(PAGE_NAME, page.encode())
        return out.finish([], {"instructions": report.instructions, "preferences": report.preferences})


def read_report(manifest: Manifest) -> InstructReport:
    """The report in a directory that `report_instructions` wrote.

    Raises:
        InputError: another version wrote it.
    """
    return read_result(manifest, REPORT_NAME, InstructReport, "ml-filter instruct")


def read_page(manifest: Manifest) -> str:
    """The page in a directory that `report_instructions` wrote."""
    return Location(manifest.path_of(PAGE_NAME)).read_bytes().decode()


def instruct_record(manifest: Manifest) -> RunRecord:
    """What the experiment tracker keeps: rows and dropped instructions of each stage, tokens and the page."""
    report = read_report(manifest)
    record = RunRecord(parameters={"report_digest": manifest.digest}, pages={PAGE_NAME: read_page(manifest)})
    for stage in report.stages:
        record.metrics[f"{stage.name}_rows"] = float(stage.rows)
        record.metrics |= {f"{stage.name}_{reason}": float(count) for reason, count in stage.dropped.items()}
    for name in ("instructions", "preferences", "prompt_tokens", "completion_tokens", "usd"):
        if (value := getattr(report, name)) is not None:
            record.metrics[name] = float(value)
    return record


def _report(published: Manifest, triples: Manifest, preferences: Manifest | None, examples: int) -> InstructReport:
    stages = stages_of(*(manifest for manifest in (triples, preferences, published) if manifest is not None))
    reports = [_stage(stage) for stage in stages]
    prices = [stage.usd for stage in reports if stage.prompt_tokens or stage.completion_tokens]
    return InstructReport(
        stages=reports,
        instructions=sum(shard.rows for shard in published.shards if shard.path.startswith("data/messages/")),
        preferences=sum(shard.rows for shard in published.shards if shard.path.startswith("data/preferences/")),
        prompt_tokens=sum(stage.prompt_tokens for stage in reports),
        completion_tokens=sum(stage.completion_tokens for stage in reports),
        usd=total_if_known(prices),
        kept=_kept(triples, stages, examples),
        dropped=[example for stage in stages for example in _dropped(stage)],
    )


def _stage(stage: Manifest) -> StageReport:
    dropped = {
        match[1] or match[2]: count for name, count in stage.counts.items() if count and (match := _REASON.match(name))
    }
    return StageReport(
        name=name_of(stage),
        path=stage.root,
        kind=stage.kind,
        rows=stage.rows,
        dropped=dropped,
        prompt_tokens=stage.counts.get("prompt_tokens", 0),
        completion_tokens=stage.counts.get("completion_tokens", 0),
        usd=stage.made_with.get(FIGURES, {}).get("usd"),
    )


def _kept(triples: Manifest, stages: Sequence[Manifest], examples: int) -> list[Example]:
    """A seeded sample of the instructions, with what the judges said about them."""
    rows = (row for path in triples.shard_paths() for table in read_tables(path) for row in table.to_pylist())
    chosen = heapq.nsmallest(examples, rows, key=lambda row: sampling_key(row["id"], 0, "example"))
    reasons = _reasons(stages, {row["id"] for row in chosen})
    names = ("id", "instruction", "input", "output", "grounding", "evolution")
    return [
        Example(**{name: row.get(name) for name in names}, rating=rating_of(row), reasons=reasons.get(row["id"], []))
        for row in chosen
    ]


def _reasons(stages: Sequence[Manifest], ids: set[str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for stage in stages:
        for path in stage.shard_paths() if stage.kind == "annotations" else ():
            for table in read_tables(path, ["document_id", "annotator", "score", "reason"]):
                for row in table.to_pylist():
                    if row["document_id"] in ids and row["reason"]:
                        text = f"{row['annotator']}: {row['score']:g}. {row['reason']}"
                        reasons.setdefault(row["document_id"], []).append(text)
    return reasons


def _dropped(stage: Manifest) -> list[Example]:
    """The first instruction that a stage dropped for each reason."""
    if stage.kind == INSTRUCTION_DATA or not (Location(stage.root) / DROPPED_DIRECTORY).exists():
        return []
    first: dict[str, dict[str, Any]] = {}
    for shard in list_shards(SourceConfig(paths=[f"{stage.root}/{DROPPED_DIRECTORY}"]))[0]:
        for table in read_tables(shard.uri):
            if table.schema.names != DROPPED_SCHEMA.names and "instruction" not in table.column_names:
                continue  # duplicates and contaminated instructions: only their ids are listed
            for row in table.to_pylist():
                if row["output"] is not None:
                    first.setdefault(row["reason"], row)
    names = ("id", "instruction", "input", "output", "reason", "detail")
    return [Example(**{name: row[name] or "" for name in names}, stage=name_of(stage)) for row in first.values()]
