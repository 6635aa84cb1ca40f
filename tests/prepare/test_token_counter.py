import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ml_filter.errors import ConfigError
from ml_filter.prepare.config import EMBEDDED_ENCODER
from ml_filter.prepare.tokens import TokenCounter


def test_whole_texts_are_counted_without_special_tokens():
    counter = TokenCounter()
    assert counter.name == EMBEDDED_ENCODER
    assert counter.count(["", "a cat", "word " * 5000]).tolist() == [0, 2, 5000]


@pytest.mark.slow
def test_counts_do_not_depend_on_the_batch(documents):
    counter = TokenCounter()
    texts = [row["text"] for row in documents[:20]] + ["long " * 420_000, "", "end"]
    assert counter.count(texts).tolist() == [counter.count([text])[0] for text in texts]
    assert counter.count([]).tolist() == []


def test_a_tokenizer_is_loaded_from_a_directory_and_has_its_own_digest(tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.enable_truncation(2)
    words.enable_padding(length=10)
    words.save(str(tmp_path / "tokenizer.json"))
    counter = TokenCounter(str(tmp_path))
    assert counter.count(["one two three", "one"]).tolist() == [3, 1]
    assert counter.digest != TokenCounter().digest


def test_a_directory_without_a_valid_tokenizer_is_an_error(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    for name in ("broken", "empty"):
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=f"{name}' cannot be loaded; give a Hub name or a directory: "):
            TokenCounter(str(tmp_path / name))
