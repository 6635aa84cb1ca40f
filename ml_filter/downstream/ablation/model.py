"""A plain decoder and its optimizers: LlamaForCausalLM, Muon for the matrices of its layers, AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim import AdamW, Muon, Optimizer

from ml_filter.downstream.ablation.dial import Dial

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_EMBEDDING_RATE, _HEAD_RATE, _NORM_RATE = 0.2, 0.004, 0.004
"""Learning rates of AdamW for a width of 768: the first two are nanochat's, which has no weights in its norms."""
_MOMENTUM, _BETAS, _EPSILON = 0.95, (0.8, 0.95), 1e-10


def build_model(dial: Dial, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A new model; the same seed gives the same weights. Each layer starts as the identity, as in nanochat."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=dial.width,
            intermediate_size=dial.hidden,
            num_hidden_layers=dial.depth,
            num_attention_heads=dial.heads,
            num_key_value_heads=dial.heads,
            max_position_embeddings=dial.context,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def build_optimizers(model: LlamaForCausalLM, dial: Dial, scale: float) -> list[Optimizer]:
    """The optimizers of a model; `scale` multiplies every learning rate."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    norms = [weight for weight in model.model.parameters() if weight.ndim == 1]
    rates = (
        (list(model.model.embed_tokens.parameters()), _EMBEDDING_RATE),
        (list(model.lm_head.parameters()), _HEAD_RATE),
        (norms, _NORM_RATE),
    )
    groups = [{"params": weights, "lr": scale * dial.adam_rate(rate)} for weights, rate in rates]
    return [
        Muon(matrices, lr=scale * dial.matrix_rate, momentum=_MOMENTUM, nesterov=True, weight_decay=0.0),
        AdamW(groups, betas=_BETAS, eps=_EPSILON, weight_decay=0.0),
    ]
