"""The head: one `PreTrainedModel` of a frozen encoder and a linear regression on its pooled hidden states.

The regression sees the pooled states of several layers, not of the last one only: with all-MiniLM-L6-v2 that ranks
better than anything fitted to the last layer alone (docs/training.md has the figures). `from_pretrained(directory)`
gives the model back whole; the tokenizer lies beside it. Weights are safetensors.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ml_filter.heads.encoder import Encoder, Pooling, pool

LAYERS = 4
"""How many of the last layers are pooled. All seven of all-MiniLM-L6-v2 rank no better and cost more."""


class HeadConfig(PretrainedConfig):
    """Shape of the encoder and the head, the score range, and where the head comes from.

    `layers` are indices into the encoder's hidden states: 0 is the embedding layer, the last one the output.
    """

    model_type = "ml_filter_head"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        encoder_name: str = "",
        pooling: Pooling = "mean",
        layers: list[int] | None = None,
        max_tokens: int = 512,
        score_min: float = 0.0,
        score_max: float = 5.0,
        threshold: float = 3.0,
        provenance: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder or {}
        self.encoder_name = encoder_name
        self.pooling = pooling
        self.layers = layers or []
        self.max_tokens = max_tokens
        self.score_min, self.score_max = score_min, score_max
        self.threshold = threshold
        self.provenance = provenance or {}
        super().__init__(**kwargs)


class HeadModel(PreTrainedModel):
    """Encoder and head: token ids to quality scores."""

    config_class = HeadConfig
    base_model_prefix = "encoder"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        shape = dict(config.encoder)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
        self.head = nn.Linear(self.width, 1)
        self.requires_grad_(False)
        self.post_init()

    @property
    def width(self) -> int:
        """Width of an embedding: hidden size times the number of layers."""
        return int(self.encoder.config.hidden_size) * len(self.config.layers)

    @classmethod
    def from_encoder(cls, encoder: Encoder, **config: Any) -> HeadModel:
        """A model around a loaded encoder, pooling its last layers; its head is still without meaning."""
        shape = {k: v for k, v in encoder.model.config.to_dict().items() if k != "_name_or_path"}  # a path of here
        depth = int(encoder.model.config.num_hidden_layers)
        layers = list(range(max(depth - LAYERS + 1, 0), depth + 1))
        made = cls(
            HeadConfig(encoder=shape, encoder_name=encoder.name, pooling=encoder.pooling, layers=layers, **config)
        )
        made.encoder.load_state_dict(encoder.model.state_dict())
        made.eval()
        return made

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is drawn at random: encoder and head are always loaded or set."""

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled hidden states of the chosen layers, concatenated: [batch, width], float32."""
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        pooled = [pool(out.hidden_states[layer], attention_mask, self.config.pooling) for layer in self.config.layers]
        return torch.cat(pooled, dim=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Scores [batch], float32, clamped to the score range."""
        scores = self.head(self.embed(input_ids, attention_mask)).squeeze(1)
        return cast(torch.Tensor, scores.clamp(self.config.score_min, self.config.score_max))

    def cast_encoder(self, dtype: torch.dtype) -> HeadModel:
        """Run the encoder in `dtype`; the head stays float32."""
        self.encoder.to(dtype)
        return self
