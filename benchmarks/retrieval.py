"""Dense, BM25, hybrid and reranked search on two question sets whose answers are known.

    python benchmarks/retrieval.py summaries DIR [--set NAME=VALUE ...]
    python benchmarks/retrieval.py handwritten DIR --documents fineweb_edu_llm_scored_1000.jsonl

`summaries`: the documents are the descriptions of the packages installed on this machine, the questions their authors'
one-line summaries. A summary that shares four words in a row with its description is left out, and so is the name of
the package in it. `handwritten`: questions that a language model wrote after reading excerpts of FineWeb documents, in
other words than theirs; none shares four words in a row with its document (benchmarks/retrieval_questions.jsonl).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from pathlib import Path

from ml_filter.config import parse_override
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers.installed import read_installed
from ml_filter.downstream.retrieval.config import IndexConfig, RetrievalEvaluationConfig, SearchConfig
from ml_filter.downstream.retrieval.evaluate import evaluate_retrieval
from ml_filter.downstream.retrieval.index import build_index
from ml_filter.logs import configure_logging

HANDWRITTEN = Path(__file__).with_name("retrieval_questions.jsonl")


def runs_of_four(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + 4]) for start in range(len(words) - 3)}


def write_summaries(directory: Path) -> tuple[Path, Path]:
    """Descriptions and questions as JSON lines."""
    rows = {row["id"]: row for row in read_installed() if row["source"] == "description"}
    questions = []
    for distribution in importlib.metadata.distributions():
        document_id = f"description/{distribution.name.lower()}"
        summary = (distribution.metadata.get("Summary") or "").strip()
        if document_id not in rows or len(summary.split()) < 5:
            continue
        name = re.sub(r"[-_.]+", "[-_. ]", re.escape(distribution.name).replace("\\", ""))
        question = re.sub(name, "it", summary, flags=re.IGNORECASE)
        if not runs_of_four(question) & runs_of_four(rows[document_id]["text"]):
            questions.append({"question": question, "document_id": document_id})
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / "documents.jsonl", directory / "questions.jsonl"
    for path, content in zip(paths, (rows.values(), questions), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", choices=["summaries", "handwritten"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the search")
    arguments = parser.parse_args()
    configure_logging()
    documents, questions = arguments.documents, HANDWRITTEN
    if arguments.questions == "summaries":
        documents, questions = write_summaries(arguments.directory)
    index = build_index(SourceConfig(paths=[str(documents)]), IndexConfig(), arguments.directory / "index")
    search = SearchConfig.model_validate(dict(map(parse_override, arguments.set)))
    source = SourceConfig(paths=[str(questions)])
    result, manifest = evaluate_retrieval(index.root, source, search, RetrievalEvaluationConfig(), arguments.directory)
    for variant in result.variants:
        print(
            f"{variant.name:20}", {name: figure.text for name, figure in variant.figures.items()}, variant.milliseconds
        )
    for comparison in result.comparisons:
        print(comparison.verdict, {name: figure.text for name, figure in comparison.differences.items()})
    print(manifest.root)


if __name__ == "__main__":
    main()
