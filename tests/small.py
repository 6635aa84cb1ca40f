"""An encoder so small that a test can train it."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig


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
