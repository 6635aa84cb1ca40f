"""A cascade: what the first-stage model decides, what the bound promises, and how a killed build resumes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError
from ml_filter.heads.config import HeadSettings, TrainConfig
from ml_filter.heads.kinds import cascade_of, load_head
from ml_filter.heads.store import read_head
from ml_filter.heads.train import train_head
from ml_filter.scoring import cascade as cascade_module
from ml_filter.scoring.cascade import ScorePairs, build_cascade, choose_bounds, is_settled
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.scoring.run import score_corpus
from tests.kills import Killed

pytestmark = pytest.mark.model

EDUCATIONAL, COMMERCIAL = ([f"{word}{letter}" for letter in "abcdefghijklmnopqrst"] for word in ("theorem", "offer"))
MAX_CHANGED = 0.1
CONFIG = CascadeConfig(max_changed=MAX_CHANGED, sample=260)


def text_with(label, random):
    """25 words; the share of educational ones grows with the label."""
    return " ".join(random.choice(EDUCATIONAL if random.random() < label / 5 else COMMERCIAL) for _ in range(25))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


@pytest.fixture(scope="module")
def head(small_encoder, tmp_path_factory):
    """A linear head on the small encoder that tells educational from commercial words."""
    directory, random = tmp_path_factory.mktemp("head"), np.random.default_rng(0)
    rows = [{"text": text_with(label, random), "label": label} for label in random.uniform(0, 5, 100)]
    config = TrainConfig(label_column="label", encoder=small_encoder, head=HeadSettings(model="linear"))
    return train_head(write_jsonl(directory / "labels.jsonl", rows), config, directory / "head").origin


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """300 documents with every share of educational words."""
    random = np.random.default_rng(1)
    rows = [{"text": text_with(label, random)} for label in random.uniform(0, 5, 300)]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", rows)


@pytest.fixture(scope="module")
def cascade(head, corpus, tmp_path_factory):
    return build_cascade(head, corpus, CONFIG, ScoreConfig(), tmp_path_factory.mktemp("cascade") / "cascade")


# --- Choosing the bounds ---------------------------------------------------------------------------------------------


def simulate(documents, noise, random):
    """Scores of an encoder, and of a first-stage model that adds noise to them."""
    encoder = random.uniform(0, 5, documents)
    first_stage = np.clip(encoder + random.normal(0, noise, documents), 0, 5)
    return ScorePairs(first_stage, encoder, np.ones(documents, bool))


def test_the_bound_is_exceeded_no_more_often_than_the_confidence_allows():
    random = np.random.default_rng(0)
    population = simulate(200_000, 0.4, random)
    exceeded = 0
    for _ in range(200):
        bounds = choose_bounds(simulate(600, 0.4, random), simulate(600, 0.4, random), 3, 0.02, 0.9)
        settled = is_settled(population, bounds.low, bounds.high)
        changed = settled & ((population.first_stage >= 3) != (population.encoder >= 3))
        exceeded += changed.mean() > 0.02
    # At 90% confidence 20 of 200 are expected; 37 or more have a probability below 1 in 10,000.
    assert exceeded < 37


def test_a_better_first_stage_model_decides_more_documents():
    random = np.random.default_rng(0)
    settled = [
        choose_bounds(simulate(2000, noise, random), simulate(2000, noise, random), 3, 0.01, 0.95).settled
        for noise in (0.1, 0.5, 2.0)
    ]
    assert settled == sorted(settled, reverse=True)


def test_the_threshold_lies_between_the_bounds():
    random = np.random.default_rng(0)
    bounds = choose_bounds(simulate(2000, 0.5, random), simulate(2000, 0.5, random), 3, 0.01, 0.95)
    assert bounds.low <= 3 <= bounds.high


def test_a_first_stage_model_with_random_scores_decides_almost_nothing():
    random = np.random.default_rng(0)
    proposing, testing = (
        ScorePairs(random.uniform(0, 5, 2000), random.uniform(0, 5, 2000), np.ones(2000, bool)) for _ in "ab"
    )
    assert choose_bounds(proposing, testing, 3, 0.01, 0.95).settled < 100


# --- Scoring with a cascade ------------------------------------------------------------------------------------------


def test_on_new_documents_it_decides_many_and_keeps_its_bound(cascade, head):
    random = np.random.default_rng(2)
    texts = [text_with(label, random) for label in random.uniform(0, 5, 200)]
    result = load_head(cascade.origin, ScoreConfig()).score_with_details(texts)
    expected = load_head(head, ScoreConfig()).score(texts)
    assert result.counts["by_student"] > 60
    assert ((result.scores >= 3) != (expected >= 3)).mean() <= MAX_CHANGED
    by_encoder = np.array(result.scored_by) == "encoder"
    assert np.abs(result.scores - expected)[by_encoder].max() < 0.1


def test_documents_unlike_the_sample_go_to_the_encoder(cascade):
    engine = load_head(cascade.origin, ScoreConfig())
    result = engine.score_with_details(["Вода кључа на сто степени.", " ".join(["offera"] * 300), ""])
    assert result.scored_by == ["encoder"] * 3


def test_languages_and_sources_that_are_not_in_the_sample_go_to_the_encoder(head, tmp_path):
    random = np.random.default_rng(4)
    rows = [
        {"text": text_with(label, random), "language": "en", "source": "crawl"} for label in random.uniform(0, 5, 260)
    ]
    rows += [{"text": text_with(0, random), "language": None, "source": None} for _ in range(30)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    config = CascadeConfig(max_changed=MAX_CHANGED, sample=290, audit_share=0)
    cascade = build_cascade(head, corpus, config, ScoreConfig(), tmp_path / "cascade")
    directory, info = cascade.origin, cascade_of(cascade)
    assert (info.languages, info.sources) == ([None, "en"], [None, "crawl"])
    engine, text = load_head(directory, ScoreConfig()), text_with(0, random)
    strata = {"language": ["en", "de", None, "en"], "source": ["crawl", "crawl", None, "mail"]}
    assert engine.score_with_details([text] * 4, strata).scored_by == ["student", "encoder", "student", "encoder"]
    assert engine.score_with_details([text]).scored_by == ["student"]


def test_with_an_audit_of_everything_all_scores_are_the_encoders(cascade, head):
    engine = load_head(cascade.origin, ScoreConfig())
    engine.cascade = engine.cascade.model_copy(update={"audit_share": 1.0})
    random = np.random.default_rng(3)
    texts = [text_with(label, random) for label in random.uniform(0, 5, 60)]
    result = engine.score_with_details(texts)
    assert result.counts["by_student"] == 0
    assert result.counts["audited"] > 20
    assert np.abs(result.scores - load_head(head, ScoreConfig()).score(texts)).max() < 0.1


def test_a_corpus_is_scored_with_a_cascade_like_with_any_head(cascade, corpus, tmp_path):
    scored = score_corpus(cascade.origin, corpus, ScoreConfig(), tmp_path / "scored")
    (shard,) = scored.shard_paths()
    scored_by = pq.read_table(shard)["scored_by"].to_pylist()
    assert scored.counts["by_student"] == scored_by.count("student")
    assert scored.counts["by_encoder"] == scored_by.count("encoder")
    assert read_head(cascade.origin).training.engine == "cascade"


# --- Building --------------------------------------------------------------------------------------------------------


def test_a_sample_that_is_too_small_is_an_error_that_names_the_required_size(head, corpus, tmp_path):
    with pytest.raises(InputError, match=r"a sample of 300 documents .* at least 1,193 are required"):
        build_cascade(head, corpus, CascadeConfig(), ScoreConfig(), tmp_path / "cascade")


def test_a_finished_cascade_is_returned_and_other_settings_are_refused(cascade, head, corpus):
    again = build_cascade(head, corpus, CONFIG, ScoreConfig(), cascade.origin)
    assert again.digest == cascade.digest
    with pytest.raises(InputError, match="already contains a cascade of another head, corpus or configuration"):
        build_cascade(head, corpus, CascadeConfig(sample=260, max_changed=0.2), ScoreConfig(), cascade.origin)


def test_a_build_that_is_killed_before_each_of_its_stages_resumes_to_the_same_cascade(
    cascade, head, corpus, tmp_path, monkeypatch
):
    def killed(*arguments, **settings):
        raise Killed

    for stage in ("score_corpus", "train_head", "choose_bounds", "write_config", "write_atomically"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(cascade_module, stage, killed)
            build_cascade(head, corpus, CONFIG, ScoreConfig(), tmp_path / "cascade")
    resumed = build_cascade(head, corpus, CONFIG, ScoreConfig(), tmp_path / "cascade")
    assert cascade_of(resumed) == cascade_of(cascade)
    assert resumed.digest == cascade.digest


@pytest.mark.parametrize(
    ("sections", "options"),
    [
        ({"score": {"device": "cuda:77"}, "cascade": {"max_changed": MAX_CHANGED}}, []),
        ({"score": {"device": "cuda:77"}}, []),
        ({}, ["--device", "cuda:77"]),
    ],
    ids=["in a section beside the cascade's", "in the only section", "on the command line"],
)
def test_the_device_that_scores_the_sample_can_be_set(sections, options, head, corpus, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(json.dumps(sections))
    options = [*options, "--sample", "260", "--max-changed", str(MAX_CHANGED), "--output", str(tmp_path / "cascade")]
    options += ["--config", str(tmp_path / "settings.yaml")] if sections else []
    assert main(["cascade", head, *corpus.paths, *options]) == 2
    assert "'cuda:77' cannot be used" in capsys.readouterr().err
