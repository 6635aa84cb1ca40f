"""Which hidden states a head sees, and that the layers above them are left out."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ml_filter.heads.config import EMBEDDED_ENCODER
from ml_filter.heads.encoder import Encoder, load_encoder
from ml_filter.heads.model import HeadModel, chosen_layers


@pytest.mark.parametrize(
    ("layers", "depth", "chosen"),
    [
        ("middle", 1, [0, 1]),
        ("middle", 6, [2, 3, 4]),
        ("middle", 12, [4, 6, 8]),
        ("middle", 22, [7, 11, 15]),
        (1, 6, [6]),
        (3, 6, [4, 5, 6]),
        (100, 2, [0, 1, 2]),
        ("all", 2, [0, 1, 2]),
    ],
)
def test_a_setting_names_hidden_states(layers, depth, chosen):
    assert chosen_layers(layers, depth) == chosen


KINDS = {"bert": 4, "xlm-roberta": 4, "distilbert": 4, "modernbert": 6}
"""With the layers that are kept: ModernBERT has a norm behind its last, so that none can be left out."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_are_the_encoders_though_layers_above_are_left_out(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=100, pad_token_id=0, **sizes)).eval()
    encoder = Encoder(kind, model, load_encoder(EMBEDDED_ENCODER).tokenizer, "mean")
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        embedded = HeadModel.from_encoder(encoder, layers="middle").embed(ids, torch.ones_like(ids))
    expected = torch.cat([states[layer].mean(1) for layer in (2, 3, 4)], 1)
    assert torch.allclose(embedded, expected, atol=1e-6)
    assert HeadModel.from_encoder(encoder, layers="middle").encoder.config.num_hidden_layers == KINDS[kind]
