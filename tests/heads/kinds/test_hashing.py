"""Hashed features against a plain count of words, their regression against scikit-learn's."""

import json
import mmap
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import Ridge

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.heads import sparse_ridge
from ml_filter.heads.config import EngineConfig, TrainConfig
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.heads.kinds import hashing, load_head
from ml_filter.heads.kinds.hashing import HashingHead, HashingSettings, HashingTrainer, fit_hashing, hash_texts
from ml_filter.heads.sparse_ridge import fit_sparse_ridge

WIDE = HashingSettings(bits=28)  # no two words of a test fall together
SMALL = HashingSettings(bits=14)
CRITERION = Criterion(name="label", low=0, high=5, threshold=3)
INFO = HeadInfo(engine="hashing", criteria=[CalibratedCriterion(**CRITERION.model_dump())])
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{P}\p{S}"
TOKEN = rf"[{SPACELESS}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{SPACELESS}]]+"


def words_of(text):
    return regex.findall(TOKEN, text.lower(), flags=regex.V1)


def plain_counts(text):
    words = words_of(text)
    return sorted(Counter([*words, *pairwise(words)]).values())


def counts_of(row):
    return sorted(np.round(np.exp(row.data - 1)).astype(int).tolist())


@settings(deadline=None)  # the first text of all waits for the table of characters
@given(st.lists(st.text(max_size=40) | st.text("ab ,.語ก", max_size=60), max_size=5))
def test_each_word_and_each_pair_of_neighbours_is_counted(texts):
    made = hash_texts(texts, WIDE)
    assert [counts_of(row) for row in made] == [plain_counts(text) for text in texts]


def test_real_documents_are_counted_alike_one_by_one_and_together(documents, monkeypatch):
    texts = [row["text"] for row in documents[:20]]
    together = hash_texts(texts, HashingSettings())
    assert together.nnz > 1000
    monkeypatch.setattr(hashing, "_BATCH_CHARACTERS", 1)
    assert (hash_texts(texts, HashingSettings()) != together).nnz == 0


def test_the_same_word_is_the_same_feature_wherever_it_stands():
    features = hash_texts(["Physics", "we like physics", "physical", "no: PHYSICS!"], WIDE)
    [word] = features[0].indices
    assert [word in row.indices for row in features] == [True, True, False, True]


def test_a_pair_is_not_the_reverse_pair_and_no_pair_spans_two_texts():
    one, reverse = hash_texts(["big dog", "dog big"], WIDE)
    assert len(set(one.indices) & set(reverse.indices)) == 2
    assert [row.nnz for row in hash_texts(["big", "dog"], WIDE)] == [1, 1]


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("हिन्दी भाषा", 3),  # vowel signs belong to their words
        ("научный текст", 3),
        ("物理学", 5),  # three characters, two pairs
        ("ภาษา", 6),  # four characters, of which one is there twice, three pairs
        ("don't", 5),
        ("\ud800 lone", 1),  # half of a surrogate pair, as broken JSON has it
        (" \n\t", 0),
        ("", 0),
    ],
)
def test_words_of_many_scripts(text, features):
    assert hash_texts([text], WIDE).nnz == features


def test_only_the_beginning_of_a_text_counts():
    settings = HashingSettings(bits=28, max_characters=5)
    assert (hash_texts(["three words here"], settings) != hash_texts(["three"], settings)).nnz == 0


def test_documents_on_disk_are_those_in_memory(documents, tmp_path):
    texts = [row["text"] for row in documents] + [""]
    with HashingTrainer(TrainConfig(kind="hashing"), [CRITERION], tmp_path) as hashed:
        assert hashed.matrix().shape == (0, 2**20)
        for start in range(0, len(texts), 7):
            hashed.add(texts[start : start + 7])
        found = hashed.matrix()
    assert (found != hash_texts(texts, HashingSettings())).nnz == 0
    assert isinstance(owner(found.data), mmap.mmap)
    assert isinstance(owner(found.indices), mmap.mmap)


def owner(array):
    return owner(array.base) if isinstance(array, np.ndarray) else array


def test_memory_does_not_grow_with_the_documents(documents, tmp_path):
    texts = [row["text"] for row in documents[:30]]
    with HashingTrainer(TrainConfig(kind="hashing"), [CRITERION], tmp_path) as hashed:
        hashed.add(texts)
        tracemalloc.start()
        hashed.add(texts)
        _, once = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(30):
            hashed.add(texts)
        _, often = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert hashed.matrix().data.nbytes > 5 * (often - once)
    assert often < 1.2 * once


@pytest.fixture(scope="module")
def lessons():
    """400 texts that are the more learned the more of their words are; their labels, a little noisy."""
    random = np.random.default_rng(0)
    learned, plain = ([f"{kind}{number}" for number in range(60)] for kind in ("theorem", "offer"))
    labels = random.uniform(0, 5, 400)
    texts = [
        " ".join(random.choice(learned if random.random() < label / 5 else plain) for _ in range(80))
        for label in labels
    ]
    return texts, labels + random.normal(0, 0.3, 400)


def test_the_regression_is_scikit_learns_ridge_on_its_tfidf_but_for_the_stretch(lessons):
    texts, labels = lessons
    features = hash_texts(texts, SMALL)
    weights = np.random.default_rng(1).uniform(0.5, 1.5, 400)
    made = fit_sparse_ridge(features, labels, weights, seed=0)
    tfidf = TfidfTransformer().fit_transform(features)
    theirs = Ridge(alpha=made.alpha, solver="sparse_cg", tol=1e-10).fit(tfidf, labels, sample_weight=weights)
    arrays = {"weights": made.coefficients[None], "idf": made.idf[None], "bias": np.array([made.bias], np.float32)}
    scores, wanted = HashingHead(SMALL, arrays, INFO).predict(texts)[:, 0], theirs.predict(tfidf)
    assert np.corrcoef(scores, wanted)[0, 1] > 0.99999
    assert np.polyfit(wanted, scores, 1)[0] > 1  # the scores are further apart than ridge regression puts them


@pytest.mark.parametrize("one_fold", [False, True])
def test_scores_of_new_documents_rank_and_fit_their_labels(lessons, one_fold, monkeypatch):
    monkeypatch.setattr(sparse_ridge, "ONE_FOLD_ABOVE", 100 if one_fold else 10_000)
    texts, labels = lessons
    model = fitted(texts[:300], labels[:300, None])
    scores = model.predict(texts[300:])[:, 0]
    assert spearmanr(scores, labels[300:]).statistic > 0.9
    assert np.polyfit(scores, labels[300:], 1)[0] == pytest.approx(1, abs=0.15)


def fitted(texts, labels, seed=0, settings=SMALL):
    arrays = fit_hashing(hash_texts(texts, settings), labels, np.ones_like(labels), seed=seed)
    return HashingHead(settings, arrays, INFO)


def test_documents_without_a_label_or_a_weight_play_no_part(lessons):
    texts, labels = lessons
    alone = fitted(texts[:100], labels[:100, None])
    some = np.where(np.arange(400) < 100, labels, np.nan)[:, None]
    among = fitted(texts, some)
    weights = (np.arange(400) < 100)[:, None] * 1.0
    unweighted = fit_hashing(hash_texts(texts, SMALL), labels[:, None], weights, seed=0)
    assert among.arrays["weights"] == pytest.approx(alone.arrays["weights"], abs=1e-4)
    assert np.array_equal(among.arrays["weights"], unweighted["weights"])


def test_two_fits_with_one_seed_are_identical(lessons):
    texts, labels = lessons
    one, other = (fitted(texts, labels[:, None]) for _ in range(2))
    assert all(np.array_equal(values, other.arrays[name]) for name, values in one.arrays.items())


def test_labels_that_are_all_the_same_are_given_back(lessons):
    texts, _ = lessons
    assert fitted(texts, np.full((400, 1), 2.0)).predict(texts[:5]) == pytest.approx(2)


def test_a_text_without_a_known_word_gets_the_bias(lessons):
    texts, labels = lessons
    model = fitted(texts, labels[:, None], settings=HashingSettings())
    assert model.predict(["", "neverseen"])[:, 0].tolist() == [model.arrays["bias"][0]] * 2
    assert model.predict([]).shape == (0, 1)


def test_a_saved_model_of_two_criteria_scores_as_before(lessons, tmp_path):
    texts, labels = lessons
    both = np.column_stack([labels, np.where(np.arange(400) % 3, -labels, np.nan)])
    model = fitted(texts, both, settings=HashingSettings())
    saved(model, tmp_path)
    scores = load_head(tmp_path, EngineConfig()).predict(texts)
    assert np.array_equal(scores, model.predict(texts))
    assert np.corrcoef(scores.T)[0, 1] < -0.9


def saved(model, directory):
    trainer = HashingTrainer(TrainConfig(kind="hashing"), [CRITERION], directory)
    trainer._arrays = model.arrays
    trainer.save(directory, INFO)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda at: (at / "model.safetensors").unlink(), "is not a complete hashing head"),
        (
            lambda at: (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:-9]),
            "is not a complete",
        ),
        (lambda at: (at / "config.json").unlink(), "is not a head: it has no config.json"),
        (lambda at: (at / "config.json").write_text('{"static": {}}'), "is not a complete static head"),
        (lambda at: (at / "config.json").write_text('{"hashing": {"bits": 15}}'), "do not match config.json"),
        (lambda at: (at / "config.json").write_text('{"hashing": {"bit": 14}}'), "is not a complete hashing head"),
    ],
)
def test_a_damaged_head_is_refused(lessons, tmp_path, spoil, said):
    texts, labels = lessons
    saved(fitted(texts[:50], labels[:50, None]), tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=said):
        load_head(tmp_path, EngineConfig())


def test_it_ranks_real_documents_it_has_not_seen(shared_data):
    def read(name):
        rows = [json.loads(line) for line in (shared_data / name).read_text().splitlines()]
        return [row["text"] for row in rows], np.array([[row["llama3_70b_score"]] for row in rows], float), rows

    texts, labels, _ = read("fineweb_edu_llm_scored_1000.jsonl")
    others, llm, rows = read("edu_human_gold_dev.jsonl")
    scores = fitted(texts, labels, settings=HashingSettings()).predict(others)[:, 0]
    assert spearmanr(scores, llm[:, 0]).statistic > 0.74
    assert spearmanr(scores, [row["human_score"] for row in rows]).statistic > 0.70
