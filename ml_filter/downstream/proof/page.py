"""One page about the whole loop: what was kept, whether it helps, what was made of it, what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.downstream.ablation.result import Ablation
from ml_filter.downstream.instruct.report import InstructReport
from ml_filter.downstream.judging.result import Judgement
from ml_filter.downstream.tuning.result import TunedModel
from ml_filter.metrics import FIGURES
from ml_filter.rendering.html import render
from ml_filter.tracking import RunRecord

PROOF_NAME, PAGE_NAME = "proof.json", "proof.html"


class Cost(BaseModel):
    """What a stage used; None: not measured, or without prices."""

    stage: str
    tokens: int | None = None
    usd: float | None = None
    processor_minutes: float | None = None


class Proof(BaseModel):
    """The results of a whole loop; the directories have the details."""

    documents: int
    kept: int
    ablation: Ablation
    instructions: InstructReport
    tuned: TunedModel
    judgement: Judgement
    costs: list[Cost]
    directories: dict[str, str]

    @property
    def summary(self) -> list[tuple[str, str]]:
        """Each question with its answer in a sentence."""
        judgement, ablation = self.judgement, self.ablation
        made = f"{self.instructions.instructions:,} instructions, {self.instructions.preferences:,} preference pairs"
        change = self.tuned.result.figures.get("loss_change")
        loss = f"; held-out loss changes by {change.text}" if change is not None else ""
        return [
            ("What was kept?", f"{self.kept:,} of {self.documents:,} documents"),
            ("Does the filter help?", f"{ablation.verdict}: {ablation.reason}"),
            ("What did it make?", f"{made}, and a tuned model"),
            ("Is the tuned model better?", f"{judgement.verdict}: {judgement.reason}{loss}"),
            ("What did it cost?", self._total()),
        ]

    def _total(self) -> str:
        tokens = sum(cost.tokens or 0 for cost in self.costs)
        prices = [cost.usd for cost in self.costs if cost.usd is not None]
        minutes = sum(cost.processor_minutes or 0 for cost in self.costs)
        usd = f", {sum(prices):.2f} USD" if prices else ""
        return f"{tokens:,} tokens of LLMs{usd}, {minutes:.1f} processor minutes of the ablation"


def write_proof(
    annotations: Manifest,
    filtered: Manifest,
    ablation: tuple[Ablation, Manifest],
    instructions: tuple[InstructReport, Manifest],
    tuned: TunedModel,
    judgement: tuple[Judgement, Manifest],
    output: str | Path,
) -> tuple[Proof, Manifest]:
    """Write `proof.json` and the page `proof.html`.

    Args:
        annotations: those that the filter's head was trained on.
        filtered: the corpus that the filter kept.
        ablation, instructions, judgement: results and their directories.
    """
    directories = {
        "annotations": annotations,
        "filtered": filtered,
        "ablation": ablation[1],
        "instructions": instructions[1],
        "judgement": judgement[1],
    }
    proof = Proof(
        documents=filtered.counts["read"],
        kept=filtered.counts["kept"],
        ablation=ablation[0],
        instructions=instructions[0],
        tuned=tuned,
        judgement=judgement[0],
        costs=list(_costs(annotations, ablation[0], instructions[0], judgement[0])),
        directories={name: manifest.root for name, manifest in directories.items()} | {"tuned": tuned.root},
    )
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in directories.values()]
    with OutputDirectory(output, "proof", {}, [*parents, tuned.parent]) as out:
        if out.manifest:
            return proof, out.manifest
        out.put_bytes(PROOF_NAME, (proof.model_dump_json(indent=1) + "\n").encode())
        out.put_bytes(PAGE_NAME, proof_page(proof).encode())
        return proof, out.finish([], {"documents": proof.documents, "kept": proof.kept})


def proof_page(proof: Proof) -> str:
    """HTML with the answers, the costs, and where the details are."""
    return render("downstream/proof/templates/proof.html", proof=proof)


def proof_record(proof: Proof) -> RunRecord:
    """The figures of the whole loop and the page, for the experiment tracker."""
    record = RunRecord(pages={PAGE_NAME: proof_page(proof)})
    record.metrics = {"documents": proof.documents, "kept": proof.kept, **proof.tuned.values}
    record.metrics["instructions"] = proof.instructions.instructions
    record.parameters = {"ablation": proof.ablation.verdict, "judgement": proof.judgement.verdict}
    return record


def _costs(
    annotations: Manifest, ablation: Ablation, instructions: InstructReport, judgement: Judgement
) -> Iterator[Cost]:
    tokens = annotations.counts["prompt_tokens"] + annotations.counts["completion_tokens"]
    yield Cost(stage="annotation", tokens=tokens, usd=annotations.made_with.get(FIGURES, {}).get("usd"))
    yield Cost(stage="ablation", processor_minutes=ablation.cpu_seconds / 60)
    tokens = instructions.prompt_tokens + instructions.completion_tokens
    yield Cost(stage="instruction data", tokens=tokens, usd=instructions.usd)
    yield Cost(stage="judging", tokens=judgement.judge_tokens, usd=judgement.usd)
