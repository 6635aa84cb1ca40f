"""A corpus whose good documents are of another language than its bad ones, so that a small model soon shows it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.ablation.config import AblateConfig, TrainingConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus

_SYLLABLES = {"good": ["ba", "de", "ki", "lo", "mu"], "bad": ["xa", "zo", "qui", "vy", "wu"]}


def text_of(kind: str, number: int, words: int = 60) -> str:
    generator = random.Random(f"{kind} {number}")
    return " ".join("".join(generator.choices(_SYLLABLES[kind], k=3)) for _ in range(words))


def write_gold(path: Path) -> SourceConfig:
    """Twelve good documents with the score 4 and twelve bad ones with the score 0."""
    rows = [
        {"id": f"{kind}-{n}", "text": text_of(kind, 1000 + n), "human_score": 4.0 if kind == "good" else 0.0}
        for kind in ("good", "bad")
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


def write_filtered(directory: Path, *, dropped: bool = True) -> str:
    """A filter kept 40 good documents of 100; the corpus has a document of the gold."""
    rows = [{"id": f"g{n}", "text": text_of("good", n), "score": 4.0} for n in range(40)]
    rows += [{"id": f"b{n}", "text": text_of("bad", n), "score": 1.0} for n in range(60)]
    rows.append({"id": "leak", "text": text_of("good", 1000), "score": 4.0})
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(paths=[str(directory / "scored.jsonl")])
    return filter_corpus(source, FilterConfig(min_score=3, dropped=dropped), directory / "filtered").root


def write_filtered_by_head(directory: Path) -> tuple[str, str]:
    """The same corpus, scored and filtered by a head that was trained on other documents of both languages."""
    write_filtered(directory / "given")
    labels = [
        {"id": f"{kind} {n}", "text": text_of(kind, 2000 + n), "label": label}
        for kind, label in (("good", 4.0), ("bad", 1.0))
        for n in range(60)
    ]
    (directory / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    source = SourceConfig(paths=[str(directory / "labels.jsonl")])
    head = train_head(source, TrainConfig(kind="hashing", label_column="label"), directory / "head").origin
    corpus = SourceConfig(paths=[str(directory / "given" / "scored.jsonl")])
    scored = score_corpus(head, corpus, ScoreConfig(), directory / "scored")
    kept = FilterConfig(min_score=2.5, dropped=True)
    return head, filter_corpus(SourceConfig(paths=[scored.root]), kept, directory / "filtered").root


def small_config(gold: SourceConfig, **settings: object) -> AblateConfig:
    """Models of a second: one layer, 8 in all."""
    training = {"depth": 1, "passes": 2, "seeds": 2, "control_seeds": 2, "checkpoint_steps": 5, "workers": 1}
    training |= settings.pop("training", {})  # type: ignore[arg-type]
    return AblateConfig(gold=gold, training=TrainingConfig.model_validate(training), **settings)  # type: ignore[arg-type]
