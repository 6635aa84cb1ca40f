"""One page about the whole loop: what was kept, whether it helps, what was made of it, what it cost."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from ml_filter.annotation.budget import total_if_known
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.result import read_result
from ml_filter.downstream.ablation.result import Ablation, read_ablation
from ml_filter.downstream.instruct.report import InstructReport, read_report
from ml_filter.downstream.judging.result import Judgement, read_judgement
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
    annotation: Cost
    directories: dict[str, str]

    @property
    def costs(self) -> list[Cost]:
        """What each stage used."""
        instructions, judgement = self.instructions, self.judgement
        tokens = instructions.prompt_tokens + instructions.completion_tokens
        return [
            self.annotation,
            Cost(stage="ablation", processor_minutes=self.ablation.cpu_seconds / 60),
            Cost(stage="instruction data", tokens=tokens, usd=instructions.usd),
            Cost(stage="tuning", processor_minutes=self.tuned.result.cpu_seconds / 60),
            Cost(stage="answers of both models", tokens=judgement.answer_tokens, usd=judgement.answer_usd),
            Cost(stage="judging", tokens=judgement.judge_tokens, usd=judgement.usd),
        ]

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
        usd = total_if_known(cost.usd for cost in self.costs if cost.tokens)
        minutes = sum(cost.processor_minutes or 0 for cost in self.costs)
        price = "" if usd is None else f", {usd:.2f} USD"
        return f"{tokens:,} tokens of LLMs{price}, {minutes:.1f} processor minutes of ablation and tuning"


def write_proof(
    annotations: Manifest,
    filtered: Manifest,
    ablation: Manifest,
    instructions: Manifest,
    tuned: TunedModel,
    judgement: Manifest,
    output: str | Path,
) -> tuple[Proof, Manifest]:
    """Write `proof.json` and the page `proof.html`.

    Args:
        annotations: those that the filter's head was trained on.
        filtered: the corpus that the filter kept.
        ablation, instructions, judgement: directories of the ablation, of the report on instructions, of the judgement.
    """
    stages = {
        "annotations": annotations,
        "filtered": filtered,
        "ablation": ablation,
        "instructions": instructions,
        "judgement": judgement,
    }
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in stages.values()]
    with OutputDirectory(output, "proof", {}, [*parents, tuned.parent]) as out:
        if out.manifest:
            return read_proof(out.manifest), out.manifest
        proof = Proof(
            documents=filtered.counts["read"],
            kept=filtered.counts["kept"],
            ablation=read_ablation(ablation.root),
            instructions=read_report(instructions),
            tuned=tuned,
            judgement=read_judgement(judgement),
            annotation=_annotation_cost(annotations),
            directories={name: manifest.root for name, manifest in stages.items()} | {"tuned": tuned.root},
        )
        out.put_bytes(PROOF_NAME, (proof.model_dump_json(indent=1) + "\n").encode())
        out.put_bytes(PAGE_NAME, proof_page(proof).encode())
        return proof, out.finish([], {"documents": proof.documents, "kept": proof.kept})


def read_proof(directory: Manifest) -> Proof:
    """The result in a directory that `write_proof` wrote.

    Raises:
        InputError: another version wrote it.
    """
    return read_result(directory, PROOF_NAME, Proof, "the proof pipeline")


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


def _annotation_cost(annotations: Manifest) -> Cost:
    tokens = annotations.counts["prompt_tokens"] + annotations.counts["completion_tokens"]
    return Cost(stage="annotation", tokens=tokens, usd=annotations.made_with.get(FIGURES, {}).get("usd"))
