"""An encoder so small that a test can train it; and heads that a test has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import BertConfig

from ml_filter.heads.trained import TRAINING_NAME, file_digests


def small_bert(**changes: Any) -> BertConfig:
    """Two layers, of the embedded encoder's vocabulary."""
    shape = {
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return BertConfig(**{**shape, **changes})


def sign_head(directory: Path) -> None:
    """Record the files of a head as they are now, as if it had been trained to them."""
    training = json.loads((directory / TRAINING_NAME).read_text())
    (directory / TRAINING_NAME).write_text(json.dumps({**training, "files": file_digests(directory)}))
