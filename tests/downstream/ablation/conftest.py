"""A model to train in a second."""

from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.ablation.dial import Dial
from ml_filter.downstream.ablation.targets import write_targets
from ml_filter.downstream.ablation.tokens import tokenize, train_tokenizer
from ml_filter.downstream.ablation.training import TrainingJob
from tests.downstream.ablation.corpora import small_config, text_of, write_gold


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    """Ten steps on two documents."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(f'{{"text": "{text_of("good", n)}"}}\n' for n in range(8)))
    source = SourceConfig(paths=[str(corpus)])
    tokenizer = train_tokenizer([source], 300, tmp_path / "tokenizer.json")
    tokenize(source, tokenizer, tmp_path / "data.tokens", "")
    targets = write_targets(small_config(write_gold(tmp_path / "gold.jsonl")), tmp_path / "targets")
    return TrainingJob(
        name="filtered-0",
        arm="filtered",
        seed=0,
        rate=1.0,
        dial=Dial(1),
        vocabulary=tokenizer.get_vocab_size(),
        sequences=5,
        passes=2,
        checkpoint_steps=3,
        device="cpu",
        tokens=tmp_path / "data.tokens",
        scratch=tmp_path / "scratch",
        model=tmp_path / "models" / "filtered-0",
        tokenizer=tmp_path / "tokenizer.json",
        targets=targets,
    )
