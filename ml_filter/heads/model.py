"""The encoder head: one `PreTrainedModel` of any transformers encoder and a head on its pooled hidden states.

The head sees the pooled states of layers in the middle, not of the last one: with all-MiniLM-L6-v2 they rank better
(docs/training.md has the figures; Skean et al. 2025, Layer by Layer, found so of many encoders), and the layers above
them need not be computed. It is linear, a small network, or a
kernel regression on landmark documents, and its outputs are read as a regression, as classes or as ordered classes.
`HeadModel.from_pretrained` of a directory or a Hub name gives the model back whole, and so does `AutoModel`'s after
`register()`; the tokenizer lies beside it. Weights are safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from ml_filter.criterion import Criterion
from ml_filter.heads.config import Layers
from ml_filter.heads.encoder import Encoder, Pooling, pool
from ml_filter.heads.info import HeadInfo

LayerKind = Literal["linear", "mlp", "kernel", "sequence_classification"]
Task = Literal["regression", "classification", "ordinal"]


class HeadConfig(PretrainedConfig):
    """Shape of the encoder and the head, how long documents are read, and what the head says of itself.

    `layers` are indices into the encoder's hidden states: 0 is the embedding layer, the last one the output.
    `text_prefix` stands before each text, or each of its windows, when it is tokenised.
    `size` is the hidden width of an mlp, or the number of landmarks of a kernel.
    `head` is a `HeadInfo`: criteria with their score ranges and calibration, and provenance.
    """

    model_type = "ml_filter_head"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        encoder_name: str = "",
        pooling: Pooling = "mean",
        layers: list[int] | None = None,
        max_tokens: int = 512,
        text_prefix: str = "",
        windows: int = 1,
        combine: Literal["mean", "max"] = "mean",
        kind: LayerKind = "linear",
        size: int = 0,
        task: Task = "regression",
        head: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder or {}
        self.encoder_name = encoder_name
        self.pooling = pooling
        self.layers = layers or []
        self.max_tokens = max_tokens
        self.text_prefix = text_prefix
        self.windows, self.combine = windows, combine
        self.kind, self.size, self.task = kind, size, task
        self.head = head or HeadInfo(engine="encoder", criteria=[]).model_dump(mode="json")
        super().__init__(**kwargs)

    @property
    def info(self) -> HeadInfo:
        """What the head says of itself."""
        return HeadInfo.model_validate(self.head)


class KernelLayer(nn.Module):
    """Exponential kernel of standardised embeddings with landmark documents: exp(-root mean square distance).

    The Matern kernel of smoothness 1/2 (Rasmussen and Williams 2006, eq. 4.18); its length is part of `scale`.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    landmarks: torch.Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("landmarks", torch.zeros(size, width))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, width] to similarities [batch, landmarks]."""
        standard = (embeddings - self.mean) / self.scale
        # Distances through one matrix product: what makes this kernel cheap.
        distances = torch.cdist(standard, self.landmarks, compute_mode="use_mm_for_euclid_dist")
        return torch.exp(-distances / standard.shape[1] ** 0.5)


class MlpLayer(nn.Module):
    """Standardised embeddings through one hidden layer."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.hidden = nn.Linear(width, size)
        self.dropout = nn.Dropout(0.1)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, width] to activations [batch, size]."""
        hidden = nn.functional.gelu(self.hidden((embeddings - self.mean) / self.scale))
        return cast(torch.Tensor, self.dropout(hidden))


class OutputLayer(nn.Module):
    """Embeddings to logits to scores; trained alone on cached embeddings, or with the encoder.

    `history` has a row for each epoch in which it was trained alone, and is not saved.
    """

    def __init__(self, kind: LayerKind, task: Task, width: int, size: int, criteria: Sequence[Criterion]) -> None:
        super().__init__()
        self.kind, self.task, self.size, self.criteria = kind, task, size, criteria
        self.history: list[dict[str, float]] = []
        self.layer: nn.Module = nn.Identity()
        if kind == "kernel":
            self.layer = KernelLayer(width, size)
        elif kind == "mlp":
            self.layer = MlpLayer(width, size)
        self.sizes = [len(criterion.values) if task == "classification" else 1 for criterion in criteria]
        self.out = nn.Linear(width if kind == "linear" else size, sum(self.sizes))
        if task == "ordinal":  # steps between cut points, in the manner of an inverse softplus so that they ascend
            self.steps = nn.ParameterList([nn.Parameter(torch.zeros(len(c.values) - 1)) for c in criteria])

    def forward(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """Embeddings [batch, width] to the logits of each criterion: [batch, 1], [batch, classes] or [batch, cuts]."""
        parts = list(self.out(self.layer(embeddings)).split(self.sizes, dim=1))
        if self.task == "ordinal":
            return [latent - self.cuts(place) for place, latent in enumerate(parts)]
        return parts

    def cuts(self, place: int) -> torch.Tensor:
        """Ascending cut points of an ordinal criterion (McCullagh 1980): P(label > k) = sigmoid(latent - cut k)."""
        steps = self.steps[place]
        return torch.cat([steps[:1], steps[:1] + nn.functional.softplus(steps[1:]).cumsum(0)])

    def scores(self, logits: list[torch.Tensor]) -> torch.Tensor:
        """Logits to scores [batch, criteria]: the output itself, or the expected value over the classes."""
        if self.task == "regression":
            return torch.cat(logits, dim=1)
        columns = []
        for criterion, of in zip(self.criteria, logits, strict=True):
            if self.task == "ordinal":
                columns.append(criterion.low + of.sigmoid().sum(1))
            else:
                columns.append(of.softmax(1) @ torch.tensor(criterion.values, dtype=of.dtype, device=of.device))
        return torch.stack(columns, dim=1)


class HeadModel(PreTrainedModel):
    """Encoder and head: token ids to quality scores."""

    config_class = HeadConfig
    base_model_prefix = "encoder"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        shape = dict(config.encoder)
        encoder = AutoConfig.for_model(shape.pop("model_type"), **shape)
        if config.kind == "sequence_classification":
            self.encoder = AutoModelForSequenceClassification.from_config(encoder)
        else:
            self.encoder = AutoModel.from_config(encoder)
            if config.info.criteria:  # none: only to embed with
                self.head = OutputLayer(config.kind, config.task, self.width, config.size, config.info.criteria)
        self.requires_grad_(False)
        self.post_init()

    @property
    def width(self) -> int:
        """Width of an embedding: hidden size times the number of layers."""
        return int(self.encoder.config.hidden_size) * len(self.config.layers)

    @classmethod
    def from_encoder(cls, encoder: Encoder, *, layers: Layers = "all", **config: Any) -> HeadModel:
        """A model around a loaded encoder, pooling some of its hidden states, without the layers above them.

        Its head is still without meaning.
        """
        chosen = chosen_layers(layers, encoder.depth)
        model = _up_to(encoder.model, chosen[-1])
        made = cls(
            HeadConfig(
                encoder=_shape(model.config),
                encoder_name=encoder.name,
                pooling=encoder.pooling,
                layers=chosen,
                **config,
            )
        )
        made.encoder.load_state_dict(model.state_dict())
        made.eval()
        return made

    @classmethod
    def from_sequence_classifier(cls, model: PreTrainedModel, name: str, info: HeadInfo, max_tokens: int) -> HeadModel:
        """Wrap a transformers sequence-classification model of one output, such as FineWeb-Edu's classifier."""
        made = cls(
            HeadConfig(
                encoder=_shape(model.config),
                encoder_name=name,
                kind="sequence_classification",
                max_tokens=max_tokens,
                head=info.model_dump(mode="json"),
            )
        )
        made.encoder.load_state_dict(model.state_dict())
        made.eval()
        return made

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is drawn at random: encoder and head are always loaded or set."""

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled hidden states of the chosen layers, concatenated: [batch, width], float32."""
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        pooled = [pool(out.hidden_states[layer], attention_mask, self.config.pooling) for layer in self.config.layers]
        return torch.cat(pooled, dim=1)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What the encoder gives the head, float32: embeddings [batch, width], or a published classifier's scores."""
        if self.config.kind == "sequence_classification":
            return cast(torch.Tensor, self.encoder(input_ids=input_ids, attention_mask=attention_mask).logits.float())
        return self.embed(input_ids, attention_mask)

    def read(self, encoded: torch.Tensor) -> torch.Tensor:
        """Scores [batch, criteria], float32, of what `encode` gave, as the head gives them: not clamped."""
        if self.config.kind == "sequence_classification":
            return encoded
        return self.head.scores(self.head(encoded))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores [batch, criteria], float32, as the head gives them: not clamped to the score range.

        `token_type_ids`, which some tokenizers add, are not read: a document is one segment.
        """
        return self.read(self.encode(input_ids, attention_mask))

    def cast_encoder(self, dtype: torch.dtype) -> HeadModel:
        """Run the encoder in `dtype`; the head stays float32."""
        self.encoder.to(dtype)
        return self


def chosen_layers(layers: Layers, depth: int) -> list[int]:
    """The hidden states, in ascending order, that a setting names in an encoder of so many layers."""
    if layers == "middle":
        return sorted({round(depth * share) for share in (1 / 3, 1 / 2, 2 / 3)})
    return list(range(0 if layers == "all" else max(depth - layers + 1, 0), depth + 1))


def _shape(config: PretrainedConfig) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}  # a path of here


def _up_to(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The encoder's first layers alone, where their states are then as they were; else the encoder as it is.

    They are not where it has a norm behind the last layer, or is built otherwise than of a list of layers.
    """
    depth = int(model.config.num_hidden_layers)
    if layers == depth:
        return model
    fewer = _shape(model.config)
    fewer |= {k: v[:layers] for k, v in fewer.items() if isinstance(v, list) and len(v) == depth}  # types of layers
    fewer[model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = layers
    made = AutoModel.from_config(AutoConfig.for_model(**fewer)).eval()
    if made.load_state_dict(model.state_dict(), strict=False).missing_keys:
        return model
    probe = torch.arange(1, 9)[None]
    with torch.inference_mode():
        whole, short = (of(input_ids=probe, output_hidden_states=True).hidden_states for of in (model, made))
    return made if all(map(torch.equal, whole[: layers + 1], short)) else model


def register() -> None:
    """Make heads known to transformers: `AutoConfig` and `AutoModel.from_pretrained` give them from then on."""
    AutoConfig.register(HeadConfig.model_type, HeadConfig, exist_ok=True)
    AutoModel.register(HeadConfig, HeadModel, exist_ok=True)
