"""The engine tests itself before it scores."""

import numpy as np
import pytest
import torch

from ml_filter.errors import ConfigError
from ml_filter.heads.config import EMBEDDED_ENCODER
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.heads.kinds.encoder import EncoderHead
from ml_filter.heads.model import HeadModel
from ml_filter.scoring.config import ScoreConfig

INFO = HeadInfo(engine="encoder", criteria=[CalibratedCriterion(name="edu", low=0, high=5, threshold=3)])


@pytest.fixture
def parts():
    """MiniLM with a head of random weights that gives scores in the range."""
    encoder = load_encoder(EMBEDDED_ENCODER)
    model = HeadModel.from_encoder(encoder, layers=1, kind="linear", max_tokens=128, head=INFO.model_dump(mode="json"))
    torch.manual_seed(0)
    with torch.no_grad():
        model.head.out.weight.normal_(0, 0.3)
        model.head.out.bias.fill_(2.5)
    return model, encoder.tokenizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_a_batch_are_those_of_each_text_alone(parts, dtype):
    engine = EncoderHead(*parts, ScoreConfig(dtype=dtype))
    texts = ["word " * n for n in (1, 300, 20, 7)]
    alone = np.concatenate([engine.predict([text]) for text in texts])
    assert np.abs(engine.predict(texts) - alone).max() < {"float32": 1e-3, "bfloat16": 0.1}[dtype]


def test_an_encoder_that_its_number_type_damages_is_refused(parts):
    model, tokenizer = parts

    def cast(dtype):
        for weights in model.encoder.parameters():
            weights.data.zero_()
        return model

    model.cast_encoder = cast
    with pytest.raises(ConfigError, match=r"differ from a plain float32 forward pass by .* Use --dtype float32"):
        EncoderHead(model, tokenizer, ScoreConfig(dtype="bfloat16"))
