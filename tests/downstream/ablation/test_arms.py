"""What the arms of an ablation are made of: the same bytes and tokens of the right documents."""

import json
from pathlib import Path

import numpy as np
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.ablation.arms import Arms
from ml_filter.downstream.ablation.config import ARMS, AblateConfig, TrainingConfig
from ml_filter.downstream.ablation.dial import Dial
from ml_filter.downstream.ablation.tokens import Corpus, tokenize, train_tokenizer
from ml_filter.errors import ConfigError, InputError
from tests.downstream.ablation.corpora import text_of


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, Corpus]:
    """30 documents that a filter keeps, and 70 that it drops, as tokens."""
    sources = {}
    for name, kind, count in (("filtered", "good", 30), ("rejected", "bad", 70)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"text": "{text_of(kind, n)}"}}\n' for n in range(count)))
        sources[name] = SourceConfig(paths=[str(path)])
    tokenizer = train_tokenizer(sources.values(), 300, tmp_path / "tokenizer.json")
    return {name: tokenize(source, tokenizer, tmp_path / name, name) for name, source in sources.items()}


def starts_by_corpus(drawn: np.ndarray, number: int) -> set[int]:
    return set(drawn["document"]["start"][drawn["corpus"] == number].tolist())


def test_tokens_on_disk_are_those_of_the_texts_with_a_token_before_each(corpora, tmp_path):
    tokenizer = train_tokenizer([], 300, tmp_path / "tokenizer.json")
    corpus = corpora["filtered"]
    assert len(corpus.documents) == 30
    for number, (start, tokens, size) in enumerate(corpus.documents):
        first, *others = corpus.tokens[start : start + tokens].tolist()
        assert first == 0
        assert tokenizer.decode(others) == text_of("good", number)
        assert size == len(text_of("good", number))


def test_a_tokenizer_is_trained_on_as_many_bytes_of_each_corpus_and_reads_no_further(tmp_path, monkeypatch):
    words = {"large": "zyx", "small": "cab"}
    sources = []
    for name, count in (("large", 100), ("small", 10)):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"text": words[name] * 10}] * count + [{"text": "qwv" * 10}] * count
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(SourceConfig(paths=[str(path)]))
    monkeypatch.setattr("ml_filter.downstream.ablation.tokens.TOKENIZER_BYTES", 600)
    tokens = train_tokenizer(sources, 300, tmp_path / "tokenizer.json").get_vocab()
    assert {"zyx", "cab"} <= tokens.keys()
    assert "qwv" not in tokens


def test_tokens_that_are_on_disk_are_not_written_again(corpora, tmp_path):
    again = tokenize(SourceConfig(paths=[str(tmp_path / "absent")]), None, tmp_path / "filtered", "")  # type: ignore[arg-type]
    assert np.array_equal(again.documents, corpora["filtered"].documents)


def test_all_arms_have_the_bytes_of_the_smallest_corpus_up_to_a_document(corpora):
    arms = Arms(corpora, None)
    assert arms.names() == list(ARMS)
    longest = max(corpus.documents["bytes"].max() for corpus in corpora.values())
    for arm in ARMS:
        total = arms.draw(arm, 0)["document"]["bytes"].sum()
        assert corpora["filtered"].bytes <= total < corpora["filtered"].bytes + longest


def test_each_arm_has_documents_of_its_own_corpora(corpora):
    arms = Arms(corpora, None)
    drawn = {arm: arms.draw(arm, 0) for arm in ARMS}
    assert {arm: set(documents["corpus"].tolist()) for arm, documents in drawn.items()} == {
        "filtered": {0},
        "rejected": {1},
        "random": {0, 1},
        "shuffled": {0, 1},
    }
    assert starts_by_corpus(drawn["filtered"], 0) == set(corpora["filtered"].documents["start"].tolist())


@pytest.mark.parametrize("arm", ["random", "rejected", "shuffled"])
def test_each_seed_draws_other_documents_and_the_same_seed_the_same(corpora, arm):
    arms = Arms(corpora, None)
    assert starts_by_corpus(arms.draw(arm, 0), 1) != starts_by_corpus(arms.draw(arm, 1), 1)
    assert np.array_equal(arms.draw(arm, 3), arms.draw(arm, 3))


def test_token_budget_shrinks_every_arm(corpora):
    arms = Arms(corpora, 500)
    for arm in ARMS:
        assert 400 < arms.draw(arm, 0)["document"]["tokens"].sum() < 1000


def test_token_budget_above_the_smallest_corpus_is_an_error(corpora):
    with pytest.raises(ConfigError, match=r"arm_tokens is 1,000,000, but the arm filtered has only [\d,]+ tokens"):
        Arms(corpora, 1_000_000)


def test_further_corpus_changes_neither_the_arms_of_the_filter_nor_their_tokens(corpora):
    planned = [(seed, arm) for arm in [*ARMS, "other"] for seed in range(2)]
    alone = Arms(corpora, None)
    few = Corpus(corpora["rejected"].path, corpora["rejected"].documents[:8])
    arms = Arms({**corpora, "other": few}, None)
    tokens = arms.shortest(planned)
    assert tokens == alone.shortest(planned[:8]) > 2000
    assert all(np.array_equal(arms.draw(arm, 1), alone.draw(arm, 1)) for arm in ARMS)
    available = few.documents["tokens"].sum()
    message = rf"corpora.other has only {available:,} tokens, and each arm has {tokens:,}; set arm_tokens to at most"
    with pytest.raises(ConfigError, match=message):
        arms.require(tokens)
    smaller = Arms(arms.corpora, int(available))
    smaller.require(smaller.shortest(planned))
    assert smaller.draw("other", 0)["document"]["tokens"].sum() >= smaller.shortest(planned)


def test_empty_corpus_is_an_error(corpora):
    empty = Corpus(Path("none"), corpora["filtered"].documents[:0])
    with pytest.raises(InputError, match="the arm rejected has no documents"):
        Arms({**corpora, "rejected": empty}, None)


def test_training_data_are_the_first_tokens_of_the_drawn_documents(corpora, tmp_path):
    arms = Arms(corpora, None)
    drawn = arms.draw("random", 0)
    arms.write(drawn, 300, tmp_path / "data.tokens")
    whole = np.concatenate(
        [list(corpora.values())[n].tokens[start : start + count] for n, (start, count, _) in drawn.tolist()]
    )
    assert np.array_equal(np.fromfile(tmp_path / "data.tokens", "<u2"), whole[:300])


@pytest.mark.parametrize(("depth", "millions"), [(2, 0.95), (4, 7.4), (12, 135.3)])
def test_depth_sets_the_size_of_the_model(depth, millions):
    dial = Dial(depth)
    assert dial.parameters(dial.vocabulary) / 1e6 == pytest.approx(millions, rel=0.01)


def test_every_learning_rate_needs_a_seed():
    with pytest.raises(ValueError, match=r"control_seeds is 2, fewer than the 3 learning_rates"):
        TrainingConfig(control_seeds=2, learning_rates=[1, 0.5, 0.25])


def test_every_control_needs_a_random_model_of_its_seed():
    with pytest.raises(ValueError, match=r"control_seeds is 3, more than seeds \(2\)"):
        TrainingConfig(seeds=2, control_seeds=3)


@pytest.mark.parametrize("name", ["filtered", "a/b", "../x"])
def test_corpus_cannot_take_the_name_of_an_arm_or_lead_elsewhere(name):
    with pytest.raises(ValueError, match="corpora: choose another name than"):
        AblateConfig(gold=SourceConfig(paths=["g"]), corpora={name: SourceConfig(paths=["c"])})
