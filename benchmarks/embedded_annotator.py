"""Quality of the embedded annotator in each answer mode, and the verdict of the gate.

Annotates documents with human and LLM scores (edu_human_gold_dev.jsonl) in each mode, through the project's own
annotator. Prints the agreement with both, and the gate's verdict against the humans' scores and against the LLM's.
Annotations are kept in --work, so that an interrupted run can be resumed.

    python benchmarks/embedded_annotator.py ../shared/data/edu_human_gold_dev.jsonl --work runs/embedded_annotator
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from ml_filter.agreement.agreement import measure_agreement, run_gate
from ml_filter.agreement.config import AgreementConfig, GateConfig
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.prompts import load_prompt
from ml_filter.documents.config import SourceConfig
from ml_filter.logs import configure_logging
from ml_filter.statistics.agreement import PairAgreement

SCORE = {"min": 0, "max": 5}
COMMON = {"criterion": "educational_value", "language": "en", "score": SCORE, "max_text_chars": 600, "one_line": True}
SCALE = "0 is advertising or junk, 5 is excellent teaching material."
DIGIT = {
    "text": f"How educational is this page, from 0 to 5? {SCALE} Answer with one digit.\n\nPage: {{text}}",
    "pattern": r"([0-5])",
    "max_tokens": 8,
}
FEW_SHOT = (
    "Page: Buy shoes now, free shipping on all items.\n{answer}: {low}\n\n"
    "Page: Plants turn light, water and carbon dioxide into glucose and oxygen.\n{answer}: {high}\n\n"
    "Page: The band announced new tour dates.\n{answer}: {low}\n\n"
    "Page: {{text}}\n{answer}:"
)
VERDICT = {"Junk": 0, "Educational": 5}
WAYS: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "digit": ("answer pattern, chat", DIGIT, {}),
    "digit_votes": ("answer pattern, chat, 3 votes at temperature 0.7", DIGIT, {"votes": 3, "temperature": 0.7}),
    "digit_few_shot": (
        "answer pattern, continuation",
        {"api": "completion", "pattern": "([0-5])", "max_tokens": 3}
        | {"text": FEW_SHOT.format(answer="Score", low=0, high=5)},
        {},
    ),
    "json": (
        "JSON schema, chat",
        {"mode": "json", "max_tokens": 96, "max_reason_chars": 150}
        | {
            "text": f"How educational is this page, from 0 to 5? {SCALE} Answer with a JSON object that has a short "
            '"reason" and the "score".\n\nPage: {text}'
        },
        {"structured": "on"},
    ),
    "written_choice": (
        "written choice, continuation",
        {"api": "completion", "mode": "choice", "top_logprobs": 0, "max_tokens": 2, "choices": VERDICT}
        | {"text": FEW_SHOT.format(answer="Kind", low="Junk", high="Educational")},
        {},
    ),
    "yes_or_no": (
        "choice by log-odds, chat",
        {"mode": "choice", "choices": {"Yes": 5, "No": 0}, "top_logprobs": 300}
        | {"text": "Is this page useful for teaching? Answer Yes or No.\n\nPage: {text}"},
        {},
    ),
    "category": (
        "choice by log-odds of categories (educational_value_small)",
        load_prompt("educational_value_small").model_dump(exclude={"description"}),
        {},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="directory of the annotations and reports")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    configure_logging(level="WARNING")
    options.work.mkdir(parents=True, exist_ok=True)
    source = options.work / "documents.jsonl"
    if not source.exists():
        rows = [json.loads(line) for line in options.gold.read_text().splitlines()]
        source.write_text("".join(json.dumps({"id": row["id"], "text": row["text"]}) + "\n" for row in rows))
    print("| way | answers | score | documents | failed | Spearman, LLM | Spearman, humans | gate |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.ways:
        what, prompt, settings = WAYS[name]
        file = options.work / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**COMMON, **prompt, "name": name}))
        config = AnnotateConfig.model_validate({"prompts": [str(file)], "max_failed_share": 1, **settings})
        made = annotate_documents(SourceConfig(paths=[str(source)]), config, options.work / name)
        for use in ("answer", "expected"):
            cells = agreement_cells(made.root, options.gold, use, options.work / f"{name}-{use}")
            print(f"| {name} | {what} | {use} | {cells} |", flush=True)
    gate = GateConfig(gold=SourceConfig(paths=[str(options.gold)]), rating_columns=["llama3_70b_score"])
    verdict = run_gate(str(options.gold), gate, options.work / "llm-gate").checks[0]
    print(f"\nThe LLM's own scores: {verdict.outcome}; {verdict.reason}.")


def agreement_cells(annotations: str, gold: Path, use: str, output: Path) -> str:
    """Documents, failed, both correlations and the gate's verdict, as cells of the table."""
    documents, failed, correlations = 0, 0, []
    for column in ("llama3_70b_score", "human_score"):
        config = AgreementConfig.model_validate({"gold": {"paths": [str(gold)]}, "gold_column": column, "use": use})
        agreement, _ = measure_agreement([annotations], config, f"{output}-{column}")
        pair = next(pair for pair in agreement.overall.pairs if pair.reference == agreement.gold)
        documents, failed = agreement.raters[1].documents, agreement.raters[1].failed
        correlations.append(interval(pair))
    gate = GateConfig.model_validate({"gold": {"paths": [str(gold)]}, "use": use})
    outcome = run_gate(annotations, gate, f"{output}-gate").checks[0].outcome
    return f"{documents} | {failed} | {correlations[0]} | {correlations[1]} | {outcome}"


def interval(pair: PairAgreement) -> str:
    """A figure with its interval, or the reason why it is undefined."""
    figure = pair.figures["spearman"]
    if figure.value is None:
        return figure.reason or ""
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


if __name__ == "__main__":
    main()
