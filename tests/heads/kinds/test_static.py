"""Static embeddings: distilled from a small encoder, and worked out by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, ByT5Tokenizer, PreTrainedTokenizerFast

from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.embeddings import Embeddings
from ml_filter.heads.encoder import Encoder
from ml_filter.heads.fitting import fit_ridges
from ml_filter.heads.info import CalibratedCriterion, HeadInfo, write_config
from ml_filter.heads.kinds import load_head
from ml_filter.heads.kinds.static import StaticSettings, TokenVectors, distill, open_static

WORDS = [f"word{number}" for number in range(197)]


@pytest.fixture(scope="module")
def encoder():
    """A BERT of two layers with random weights. Its tokenizer pads and cuts, as sentence-transformers leave it."""
    vocabulary = {word: place for place, word in enumerate(["[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(16)
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    return Encoder("small", BertModel(shape).eval(), fast, "mean")


@pytest.fixture(scope="module")
def model(encoder):
    return distill(encoder, StaticSettings(width=12))


def test_token_vectors_lie_as_far_apart_as_the_encoder_puts_them(encoder):
    ids = torch.tensor([[0, token, 1] for token in range(200)])
    with torch.no_grad():
        states = encoder.model(input_ids=ids, output_hidden_states=True).hidden_states
    wanted = torch.cat([layer.mean(1) for layer in states], 1).numpy()
    whole = distill(encoder, StaticSettings(layers="all", width=1000))
    assert whole.table.shape == (201, 96)
    assert np.corrcoef(pdist(whole.table[:200]), pdist(wanted))[0, 1] > 0.999
    assert not whole.table[200].any()  # the padding, which the encoder has no embedding of
    assert distill(encoder, StaticSettings(layers=1, width=1000)).table.shape == (201, 32)


def test_the_first_components_hold_the_most(encoder, model):
    whole = distill(encoder, StaticSettings(width=1000))
    assert np.corrcoef(model.table[:, 0], whole.table[:, 0])[0, 1] == pytest.approx(1, abs=1e-3)
    assert (np.diff(model.table.var(0)) < 0).all()


def test_an_embedding_is_the_mean_of_the_tokens_and_their_damped_mean(model):
    a, b = (model.table[model.tokenizer.token_to_id(word)] for word in ("word3", "word4"))
    [made] = model.embed(["word3 word4 word3 word3"])
    times = 1 + np.log(3)
    assert made == pytest.approx(np.concatenate([(3 * a + b) / 4, (times * a + b) / (times + 1)]), abs=1e-6)


def test_long_texts_are_read_whole_up_to_the_limit_and_empty_ones_are_zero(model):
    words = [*WORDS[:100], *WORDS[:100]]
    long, first, empty = model.embed([" ".join(words), " ".join(words[:100]), ""])
    assert long == pytest.approx(first, abs=1e-5)
    assert not empty.any()
    assert model.embed([]).shape == (0, model.width)
    short = TokenVectors(StaticSettings(max_characters=5), model.tokenizer, model.table)
    assert np.array_equal(short.embed(["word3 word4"]), model.embed(["word3"]))


def test_texts_are_embedded_alike_one_by_one_and_together(model):
    texts = [" ".join(WORDS[start : start + 20]) for start in range(300)]
    assert model.embed(texts) == pytest.approx(np.concatenate([model.embed([text]) for text in texts]), abs=1e-6)


@pytest.fixture(scope="module")
def lessons():
    """300 texts whose label is the share of words from the second half of the vocabulary."""
    random = np.random.default_rng(0)
    labels = random.uniform(0, 1, 300)
    half = len(WORDS) // 2
    texts = [
        " ".join(WORDS[int(random.integers(half)) + half * (random.random() < label)] for _ in range(60))
        for label in labels
    ]
    return texts, labels


def saved(vectors, directory, weights, bias):
    """A head of these token vectors and regressions; its directory."""
    names = ["label", "other"][: len(bias)]
    criteria = [CalibratedCriterion(name=name, low=0, high=5, threshold=3) for name in names]
    vectors.save(directory, weights.astype(np.float32), bias.astype(np.float32))
    info = HeadInfo(engine="static", criteria=criteria)
    write_config(directory, info, static=vectors.settings.model_dump())
    return directory


def test_heads_learn_each_from_the_labels_there_are(encoder, lessons, tmp_path):
    texts, labels = lessons
    vectors = distill(encoder, StaticSettings())
    known = np.column_stack([labels, np.where(np.arange(300) % 2, 5 - 5 * labels, np.nan)])[:200]
    embeddings = Embeddings(vectors.embed(texts[:200]), np.arange(200))
    weights, bias = fit_ridges(embeddings, known, np.ones_like(known), seed=0)
    scores = load_head(saved(vectors, tmp_path, weights, bias), EngineConfig()).predict(texts[200:])
    assert spearmanr(scores[:, 0], labels[200:]).statistic > 0.7
    assert spearmanr(scores[:, 1], labels[200:]).statistic < -0.7
    expected = vectors.embed(texts[200:]) @ weights.T.astype(np.float32) + bias.astype(np.float32)
    assert np.array_equal(scores, expected)


def test_an_encoder_is_distilled_once(encoder, tmp_path):
    first = open_static(encoder, StaticSettings(), tmp_path)
    [kept] = tmp_path.iterdir()
    written = (kept / "model.safetensors").stat().st_mtime_ns
    assert np.array_equal(open_static(encoder, StaticSettings(), tmp_path).table, first.table)
    assert (kept / "model.safetensors").stat().st_mtime_ns == written
    open_static(encoder, StaticSettings(width=5), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_encoder_without_a_fast_tokenizer_is_refused(encoder):
    slow = Encoder("slow", encoder.model, ByT5Tokenizer(), "mean")
    with pytest.raises(ConfigError, match="fast tokenizer"):
        distill(slow, StaticSettings())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda at: (at / "model.safetensors").unlink(), "is not a complete static head"),
        (lambda at: (at / "tokenizer.json").write_text("{"), "not a tokenizer"),
        (lambda at: (at / "tokenizer.json").unlink(), "not a tokenizer"),
        (lambda at: (at / "config.json").write_text('{"static": {"width": 0}}'), "is not a complete static head"),
    ],
)
def test_a_damaged_head_is_refused(model, tmp_path, spoil, said):
    saved(model, tmp_path, np.ones((1, model.width)), np.ones(1))
    assert np.array_equal(load_head(tmp_path, EngineConfig()).vectors.table, model.table)
    spoil(tmp_path)
    with pytest.raises(InputError, match=said):
        load_head(tmp_path, EngineConfig())


def test_a_tokenizer_of_another_encoder_is_refused(model, tmp_path):
    saved(model, tmp_path, np.ones((1, model.width)), np.ones(1))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens(["another"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="different sizes"):
        load_head(tmp_path, EngineConfig())
