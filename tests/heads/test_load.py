import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from ml_filter.errors import ConfigError
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.info import Criterion, HeadInfo
from ml_filter.heads.load import load_model
from ml_filter.heads.model import HeadModel
from ml_filter.settings import EMBEDDED_ENCODER

TEXTS = ["Water boils at 100 degrees at sea level.", "Buy now!", "A triangle has three sides, and its angles sum up."]


@pytest.fixture(scope="module")
def tokenizer():
    return load_encoder(EMBEDDED_ENCODER).tokenizer


@pytest.fixture
def save(tokenizer, tmp_path):
    """Saves a small model with random weights the way transformers does, with a tokenizer beside it."""

    def save(model, name="published", **options):
        model.eval().save_pretrained(tmp_path / name, **options)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def small_bert(**changes):
    torch.manual_seed(0)
    return BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        **changes,
    )


def test_the_layout_of_fineweb_edus_classifier_scores_exactly_as_transformers_own_forward(save):
    directory = save(BertForSequenceClassification(small_bert(num_labels=1, problem_type="regression")))
    own = BertForSequenceClassification.from_pretrained(directory).eval()
    batch = AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    model, tokenizer = load_model(directory)
    with torch.inference_mode():
        wanted = own(**batch).logits
        made = model(batch["input_ids"], batch["attention_mask"])
    assert len(set(wanted.flatten().tolist())) == 3
    assert torch.equal(made, wanted)
    assert tokenizer(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(directory)(TEXTS)["input_ids"]


def test_its_output_is_read_as_a_score_from_0_to_5_with_threshold_3(save):
    model, _ = load_model(save(BertForSequenceClassification(small_bert(num_labels=1))))
    assert model.config.info.criteria == [Criterion(name="score", low=0, high=5, threshold=3)]
    assert model.config.max_tokens == 128
    assert not model.training


def test_loaded_and_saved_in_our_layout_it_scores_the_same_and_names_no_path(save, tokenizer, tmp_path):
    model, _ = load_model(save(BertForSequenceClassification(small_bert(num_labels=1))))
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    again, _ = load_model(tmp_path / "ours")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = [of(batch["input_ids"], batch["attention_mask"]) for of in (model, again)]
    assert torch.allclose(*scores, atol=1e-7)  # equal weights, but elsewhere in memory: the last bit may differ
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()


def test_our_own_layout_is_loaded_whole(tmp_path):
    encoder = load_encoder(EMBEDDED_ENCODER)
    info = HeadInfo(engine="encoder", criteria=[Criterion(name="clarity", low=1, high=4, threshold=2)])
    model = HeadModel.from_encoder(encoder, layers=1, max_tokens=64, head=info.model_dump(mode="json"))
    model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert loaded.config.info == info
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("kind", "tokens"), [("xlm-roberta", 126), ("modernbert", 2048)])
def test_other_encoders_load_and_read_as_many_tokens_as_they_have_positions(kind, tokens, save, tmp_path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    positions = 128 if kind == "xlm-roberta" else 2048
    config = AutoConfig.for_model(
        kind, vocab_size=30522, pad_token_id=1, max_position_embeddings=positions, num_labels=1, **shape
    )
    torch.manual_seed(0)
    directory = save(AutoModelForSequenceClassification.from_config(config))
    told = directory / "tokenizer_config.json"
    told.write_text(told.read_text().replace('"model_max_length": 512', '"model_max_length": 8192'))
    model, _ = load_model(directory)
    assert model.config.max_tokens == tokens
    ids = torch.full((1, tokens), 1000)
    with torch.inference_mode():
        own = AutoModelForSequenceClassification.from_pretrained(directory).eval()(ids, torch.ones_like(ids)).logits
        assert torch.equal(model(ids, torch.ones_like(ids)), own)


def test_several_outputs_are_refused(save):
    with pytest.raises(ConfigError, match=r"has 3 outputs.*num_labels 1"):
        load_model(save(BertForSequenceClassification(small_bert(num_labels=3))))


def test_an_encoder_without_a_head_is_refused_and_not_given_a_random_one(save):
    with pytest.raises(ConfigError, match=r"is no head \(BertModel\); an encoder becomes one with ml-filter train"):
        load_model(save(BertModel(small_bert())))


def test_a_checkpoint_that_lacks_its_head_is_refused(save):
    from safetensors.torch import load_file, save_file

    directory = save(BertForSequenceClassification(small_bert(num_labels=1)))
    weights = load_file(directory / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights of its own model: classifier\.weight"):
        load_model(directory)


def test_pickled_weights_are_not_read(save):
    model = BertForSequenceClassification(small_bert(num_labels=1))
    directory = save(model)
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights as safetensors"):
        load_model(directory)


def test_a_model_with_code_of_its_own_is_refused(save):
    directory = save(BertForSequenceClassification(small_bert(num_labels=1)))
    config = directory / "config.json"
    config.write_text(
        config.read_text().replace('"model_type": "bert"', '"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}')
    )
    (directory / "own.py").write_text("raise SystemExit('code of the model was run')")
    with pytest.raises(ConfigError, match="without code of its own"):
        load_model(directory)


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing-here"):
        load_model(tmp_path / "nothing-here")
