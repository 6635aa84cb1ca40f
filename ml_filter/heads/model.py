"""The model of an encoder head: a transformers encoder and an output layer on its pooled hidden states.

By default the output layer uses the middle layers of the encoder. They rank better than the last one (docs/training.md
has figures for all-MiniLM-L6-v2; Skean et al. 2025, Layer by Layer, for many encoders), and the layers above them need
not be computed.

`HeadModel.from_pretrained` loads a directory or a Hub repository, as does `AutoModel.from_pretrained` after
`register()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ml_filter.criterion import DEFAULT_CRITERION, Criterion
from ml_filter.errors import ConfigError
from ml_filter.heads.batching import set_text_prefix
from ml_filter.heads.config import Layers
from ml_filter.heads.device import choose_device, choose_dtype
from ml_filter.heads.encoder import Encoder, Pooling, max_tokens, pool, quiet_transformers, steady_arithmetic
from ml_filter.heads.info import CalibratedCriterion, HeadInfo, head_origin

PUBLISHED_CRITERION = CalibratedCriterion(**DEFAULT_CRITERION.model_dump())
"""The criterion of FineWeb-Edu's classifier and others of its kind."""
LayerKind = Literal["linear", "mlp", "kernel", "sequence_classification"]
Task = Literal["regression", "classification", "ordinal"]


class HeadConfig(PretrainedConfig):
    """Configuration of a `HeadModel`, saved as config.json.

    `layers` are indices of the encoder's hidden states; 0 is the embedding layer. `size` is the hidden width of an mlp,
    or the number of landmarks of a kernel. `head` is a `HeadInfo`.
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
        """Criteria, calibration and provenance."""
        return HeadInfo.model_validate(self.head)


class StandardisedLayer(nn.Module):
    """A layer that first subtracts `mean` [width] from embeddings and divides them by `scale` [width]."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))


class KernelLayer(StandardisedLayer):
    """Exponential kernel between standardised embeddings and those of landmark documents.

    A value is exp(-root mean square distance), the Matern kernel of smoothness 1/2 (Rasmussen and Williams 2006, eq.
    4.18). Its length scale is part of `scale`.
    """

    landmarks: torch.Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width)
        self.register_buffer("landmarks", torch.zeros(size, width))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, width] to similarities [batch, landmarks]."""
        standard = (embeddings - self.mean) / self.scale
        # One matrix product gives all distances, which makes this kernel cheap.
        distances = torch.cdist(standard, self.landmarks, compute_mode="use_mm_for_euclid_dist")
        return torch.exp(-distances / standard.shape[1] ** 0.5)


class MlpLayer(StandardisedLayer):
    """One hidden layer on standardised embeddings."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__(width)
        self.hidden = nn.Linear(width, size)
        self.dropout = nn.Dropout(0.1)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, width] to activations [batch, size]."""
        hidden = functional.gelu(self.hidden((embeddings - self.mean) / self.scale))
        return cast(torch.Tensor, self.dropout(hidden))


class OutputLayer(nn.Module):
    """Embeddings to logits to scores; trained alone on cached embeddings, or together with the encoder.

    `history` has a row for each epoch of training alone. It is not saved.
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
        if task == "ordinal":  # inverse softplus of the distances between cut points, which therefore ascend
            self.steps = nn.ParameterList([nn.Parameter(torch.zeros(len(c.values) - 1)) for c in criteria])

    def forward(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """Embeddings [batch, width] to the logits of each criterion: [batch, 1], [batch, classes] or [batch, cuts]."""
        parts = list(self.out(self.layer(embeddings)).split(self.sizes, dim=1))
        if self.task == "ordinal":
            return [latent - self.cuts(index) for index, latent in enumerate(parts)]
        return parts

    def cuts(self, index: int) -> torch.Tensor:
        """Ascending cut points of an ordinal criterion (McCullagh 1980): P(label > k) = sigmoid(latent - cut k)."""
        steps = self.steps[index]
        return torch.cat([steps[:1], steps[:1] + functional.softplus(steps[1:]).cumsum(0)])

    def scores(self, logits: list[torch.Tensor]) -> torch.Tensor:
        """Logits to scores [batch, criteria]: the output itself, or the expected value over the classes."""
        if self.task == "regression":
            return torch.cat(logits, dim=1)
        columns = []
        for criterion, output in zip(self.criteria, logits, strict=True):
            if self.task == "ordinal":
                columns.append(criterion.low + output.sigmoid().sum(1))
            else:
                values = torch.tensor(criterion.values, dtype=output.dtype, device=output.device)
                columns.append(output.softmax(1) @ values)
        return torch.stack(columns, dim=1)

    def loss(
        self, logits: list[torch.Tensor], labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean loss over the labels [batch, criteria] that are not nan, weighted by weights [batch, criteria].

        Regression: squared error. Otherwise the label is a soft target on the two whole scores around it, so that a
        mean of several votes keeps its meaning: cross-entropy for classification; for ordinal the sum of binary
        cross-entropies at all cuts (the likelihood of the cumulative link model if the cuts were independent).
        """
        total = labels.new_zeros(())
        total_weight = labels.new_zeros(())
        for index, criterion in enumerate(self.criteria):
            is_labelled = ~labels[:, index].isnan()
            target = labels[is_labelled, index].clamp(criterion.low, criterion.high)
            output = logits[index][is_labelled]
            if self.task == "regression":
                losses = (output.squeeze(1) - target) ** 2
            elif self.task == "ordinal":
                reached = (target[:, None] - torch.tensor(criterion.values[:-1], device=target.device)).clamp(0, 1)
                losses = functional.binary_cross_entropy_with_logits(output, reached, reduction="none").sum(1)
            else:
                values = torch.tensor(criterion.values, device=target.device)
                soft_target = (1 - (target[:, None] - values).abs()).clamp(min=0)
                losses = functional.cross_entropy(output, soft_target, reduction="none")
            weight = torch.ones_like(losses) if weights is None else weights[is_labelled, index]
            total = total + (losses * weight).sum()
            total_weight = total_weight + weight.sum()
        return total / total_weight.clamp(min=1e-12)


class HeadModel(PreTrainedModel):
    """Encoder and head: token ids to quality scores."""

    config_class = HeadConfig
    base_model_prefix = "encoder"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        shape = dict(config.encoder)
        encoder = AutoConfig.for_model(shape.pop("model_type"), **shape)
        if config.kind == "sequence_classification":
            self.encoder = AutoModelForSequenceClassification.from_config(encoder, trust_remote_code=False)
        else:
            self.encoder = AutoModel.from_config(encoder, trust_remote_code=False)
            if config.info.criteria:  # without criteria the model only embeds
                self.head = OutputLayer(config.kind, config.task, self.width, config.size, config.info.criteria)
        self.requires_grad_(False)
        self.post_init()

    @property
    def width(self) -> int:
        """Width of an embedding: hidden size times the number of layers."""
        return int(self.encoder.config.hidden_size) * len(self.config.layers)

    @classmethod
    def from_encoder(cls, encoder: Encoder, *, layers: Layers = "all", **config: Any) -> HeadModel:
        """A model on some hidden states of a loaded encoder, without the layers above them; its head is not fitted."""
        chosen = chosen_layers(layers, encoder.depth)
        return cls._around(
            _truncated(encoder.model, chosen[-1]),
            encoder_name=encoder.name,
            pooling=encoder.pooling,
            layers=chosen,
            **config,
        )

    @classmethod
    def embedder(cls, encoder: Encoder, layers: Layers) -> HeadModel:
        """A model that only embeds, on the best device of this machine and in its number type."""
        device = choose_device("auto")
        model = cls.from_encoder(encoder, layers=layers).cast_encoder(choose_dtype("auto", device))
        return nn.Module.to(model, device)

    @classmethod
    def from_sequence_classifier(cls, model: PreTrainedModel, name: str, info: HeadInfo, max_tokens: int) -> HeadModel:
        """Wrap a transformers sequence-classification model of one output, such as FineWeb-Edu's classifier."""
        return cls._around(
            model,
            encoder_name=name,
            kind="sequence_classification",
            max_tokens=max_tokens,
            head=info.model_dump(mode="json"),
        )

    @classmethod
    def _around(cls, encoder: PreTrainedModel, **config: Any) -> HeadModel:
        model = cls(HeadConfig(encoder=_without_path(encoder.config), **config))
        model.encoder.load_state_dict(encoder.state_dict())
        return cast(HeadModel, model.eval())

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the weights of encoder and head are always loaded or set."""

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled hidden states of the chosen layers, concatenated: [batch, width], float32."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states = output.hidden_states
        pooled = [pool(states[layer], attention_mask, self.config.pooling) for layer in self.config.layers]
        return torch.cat(pooled, dim=1)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Input of `read`, float32: embeddings [batch, width], or the scores of a published classifier."""
        if self.config.kind == "sequence_classification":
            return cast(torch.Tensor, self.encoder(input_ids=input_ids, attention_mask=attention_mask).logits.float())
        return self.embed(input_ids, attention_mask)

    def read(self, encoded: torch.Tensor) -> torch.Tensor:
        """Scores [batch, criteria], float32, not clamped, from the result of `encode`."""
        if self.config.kind == "sequence_classification":
            return encoded
        return self.head.scores(self.head(encoded))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores [batch, criteria], float32, not clamped to the score range.

        `token_type_ids`, which some tokenizers add, are ignored: a document is one segment.
        """
        return self.read(self.encode(input_ids, attention_mask))

    def cast_encoder(self, dtype: torch.dtype) -> HeadModel:
        """Run the encoder in `dtype`; the head stays float32."""
        self.encoder.to(dtype)
        return self


def chosen_layers(layers: Layers, depth: int) -> list[int]:
    """Ascending indices of the hidden states for a setting, in an encoder with `depth` layers."""
    if layers == "middle":
        return sorted({round(depth * share) for share in (1 / 3, 1 / 2, 2 / 3)})
    return list(range(0 if layers == "all" else max(depth - layers + 1, 0), depth + 1))


def _without_path(config: PretrainedConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def _truncated(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The first layers of an encoder, if their hidden states stay the same; else the whole encoder.

    They change if there is a norm after the last layer, or if the layers are not in one list.
    """
    depth = int(model.config.num_hidden_layers)
    if layers == depth:
        return model
    config = _without_path(model.config)
    # Lists such as the types of all layers become shorter, too.
    config |= {name: v[:layers] for name, v in config.items() if isinstance(v, list) and len(v) == depth}
    config[model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = layers
    truncated = AutoModel.from_config(AutoConfig.for_model(**config), trust_remote_code=False).eval()
    if truncated.load_state_dict(model.state_dict(), strict=False).missing_keys:
        return model
    probe = torch.arange(1, 9)[None]
    with torch.inference_mode():
        expected = model(input_ids=probe, output_hidden_states=True).hidden_states[: layers + 1]
        states = truncated(input_ids=probe, output_hidden_states=True).hidden_states
    return truncated if all(map(torch.equal, expected, states)) else model


def load_model(name: str | Path) -> tuple[HeadModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer on the CPU in float32, ready to score.

    A published classifier (`BertForSequenceClassification`, XLM-R, ModernBERT, ... with `num_labels` 1) is wrapped
    unchanged. Its output is a score from 0 to 5 with threshold 3. It reads as many tokens as its encoder and tokenizer
    allow, or 512 if neither has a limit. No code from the repository is run; weights are read only from safetensors.

    Args:
        name: directory or Hub name.

    Raises:
        ConfigError: the model does not exist, has no safetensors, needs its own code, is not a classifier, or has more
            than one output.
    """
    steady_arithmetic()
    path = str(name)
    try:
        with quiet_transformers():
            raw, _ = HeadConfig.get_config_dict(path)
            if raw.get("model_type") == HeadConfig.model_type:
                head: HeadModel = HeadModel.from_pretrained(path, use_safetensors=True)
                head_tokenizer = AutoTokenizer.from_pretrained(path, config=head.config, trust_remote_code=False)
                set_text_prefix(head_tokenizer, head.config.text_prefix)
                return head.float().eval(), head_tokenizer
            _check_published(path, AutoConfig.from_pretrained(path, trust_remote_code=False))
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load a model from {path!r}; it must have config.json, a tokenizer and weights as safetensors, and "
            f"need no code of its own: {str(error).strip().splitlines()[0]}"
        ) from error
    if loading["missing_keys"]:
        raise ConfigError(f"weights of {path!r} are missing: {', '.join(sorted(loading['missing_keys'])[:5])}")
    shown = head_origin(path)
    if shown == path and Path(path).is_dir():
        shown = Path(path).name  # no local path in saved files
    info = HeadInfo(engine="encoder", criteria=[PUBLISHED_CRITERION], provenance={"published": shown})
    limit = max_tokens(model, tokenizer)
    wrapped = HeadModel.from_sequence_classifier(model.float(), shown, info, limit if limit < 10**6 else 512)
    # The same tensors that transformers loaded: a copy is aligned differently in memory, and its matrix products can
    # differ in the last bit.
    wrapped.encoder = model.requires_grad_(False).eval()
    return wrapped, tokenizer


def _check_published(path: str, config: PretrainedConfig) -> None:
    architecture = (config.architectures or ["no architecture"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"{path!r} is not a head ({architecture}); train one on this encoder with ml-filter train --encoder {path}"
        )
    if config.num_labels != 1:
        raise ConfigError(
            f"{path!r} has {config.num_labels} outputs; a published classifier must have one (num_labels 1)"
        )


def register() -> None:
    """Let `from_pretrained` of transformers' `AutoConfig` and `AutoModel` load heads."""
    AutoConfig.register(HeadConfig.model_type, HeadConfig, exist_ok=True)
    AutoModel.register(HeadConfig, HeadModel, exist_ok=True)
