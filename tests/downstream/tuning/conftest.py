"""A base so small that a test tunes it in seconds, and conversations made from real documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_filter.downstream.tuning.config import TuneConfig
from tests.downstream.tuning.tiny import write_tiny_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, documents: list[dict[str, str]]) -> Path:
    """A directory with two random layers of Llama and a tokenizer of 512 tokens."""
    directory = tmp_path_factory.mktemp("bases") / "tiny"
    write_tiny_base(directory, [row["text"] for row in documents])
    return directory


@pytest.fixture(scope="session")
def triples(tmp_path_factory: pytest.TempPathFactory, documents: list[dict[str, str]]) -> Path:
    """For each document: continue its first words. The rejected answer is in capitals, which a tiny model learns."""
    path = tmp_path_factory.mktemp("data") / "triples.jsonl"
    words = [row["text"].split() for row in documents]
    rows = [
        {
            "document_id": row["id"],
            "instruction": "Continue the text.",
            "input": " ".join(words[number][:8]),
            "output": (answer := " ".join(words[number][8:20])),
            "prompt": f"Continue: {' '.join(words[number][:8])}",
            "chosen": answer,
            "rejected": answer.upper(),
        }
        for number, row in enumerate(documents)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["output"] and row["rejected"]))
    return path


@pytest.fixture
def config(tiny_base: Path) -> TuneConfig:
    """Eight steps, with a checkpoint at every third, and a third of the documents held out."""
    return TuneConfig(
        base=str(tiny_base),
        max_steps=8,
        checkpoint_steps=3,
        log_steps=1,
        batch_size=4,
        gradient_accumulation=1,
        learning_rate=0.01,
        max_tokens=128,
        held_out_share=0.34,
    )
