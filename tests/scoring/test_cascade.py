"""A cascade: what the student settles, what the bound promises, and what a killed build leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError
from ml_filter.heads.config import HeadSettings, TrainConfig
from ml_filter.heads.engine import load_engine, read_cascade
from ml_filter.heads.train import read_head, train_head
from ml_filter.scoring.cascade import Scored, build_cascade, choose_bounds, settles, share_interval, upper_bound
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.scoring.run import score_corpus

LEARNED, PLAIN = ([f"{kind}{letter}" for letter in "abcdefghijklmnopqrst"] for kind in ("theorem", "offer"))
ALLOWED = 0.1


def text_of(label, random):
    """Words of which a share that grows with the label is learned."""
    return " ".join(random.choice(LEARNED if random.random() < label / 5 else PLAIN) for _ in range(25))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """MiniLM with a linear head, that knows learned words from others."""
    directory, random = tmp_path_factory.mktemp("head"), np.random.default_rng(0)
    rows = [{"text": text_of(label, random), "label": label} for label in random.uniform(0, 5, 100)]
    (directory / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(label_column="label", layers=1, head=HeadSettings(kind="linear"))
    return train_head(SourceConfig(paths=[str(directory / "labels.jsonl")]), config, directory / "head").directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """300 documents of all degrees of learning."""
    directory, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(1)
    rows = [{"text": text_of(label, random)} for label in random.uniform(0, 5, 300)]
    (directory / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(directory / "corpus.jsonl")])


CONFIG = CascadeConfig(max_changed=ALLOWED, sample=260)


@pytest.fixture(scope="module")
def cascade(head, corpus, tmp_path_factory):
    return build_cascade(head, corpus, CONFIG, ScoreConfig(), tmp_path_factory.mktemp("cascade") / "cascade")


def simulated(documents, noise, random):
    """Scores of an encoder, and of a student that errs."""
    encoder = random.uniform(0, 5, documents)
    student = np.clip(encoder + random.normal(0, noise, documents), 0, 5)
    return Scored(student, encoder, np.ones(documents, bool))


def changed_share(scored, choice):
    settled = settles(scored, choice.low, choice.high)
    return float((settled & ((scored.student >= 3) != (scored.encoder >= 3))).mean())


def test_the_bound_is_broken_no_more_often_than_the_confidence_says():
    random = np.random.default_rng(0)
    world = simulated(200_000, 0.4, random)
    broken = []
    for _ in range(200):
        choice = choose_bounds(simulated(600, 0.4, random), simulated(600, 0.4, random), 3, 0.02, 0.9)
        broken.append(changed_share(world, choice) > 0.02)
    # One in ten may be; 37 of 200 would be seen less than once in 10,000 times.
    assert sum(broken) < 37


def test_a_better_student_settles_more():
    random = np.random.default_rng(0)
    settled = [
        choose_bounds(simulated(2000, noise, random), simulated(2000, noise, random), 3, 0.01, 0.95).settled
        for noise in (0.1, 0.5, 2.0)
    ]
    assert settled == sorted(settled, reverse=True)


def test_the_threshold_lies_between_what_is_dropped_and_what_is_kept():
    random = np.random.default_rng(0)
    choice = choose_bounds(simulated(2000, 0.5, random), simulated(2000, 0.5, random), 3, 0.01, 0.95)
    assert choice.low <= 3 <= choice.high


def test_a_student_that_knows_nothing_settles_next_to_nothing():
    random = np.random.default_rng(0)
    finding, testing = (
        Scored(random.uniform(0, 5, 2000), random.uniform(0, 5, 2000), np.ones(2000, bool)) for _ in "ab"
    )
    assert choose_bounds(finding, testing, 3, 0.01, 0.95).settled < 100


def test_the_bounds_are_those_of_clopper_and_pearson():
    # The rule of three, and the interval of 3 in 10 in any table.
    assert upper_bound(0, 299, 0.95) == pytest.approx(0.01, abs=1e-4)
    assert share_interval(3, 10, 0.95) == pytest.approx((0.0667, 0.6525), abs=1e-4)
    assert share_interval(0, 10, 0.95)[0] == 0


def test_it_settles_most_and_keeps_its_promise_on_documents_it_never_saw(cascade, head):
    random = np.random.default_rng(2)
    texts = [text_of(label, random) for label in random.uniform(0, 5, 200)]
    judged = load_engine(cascade.directory, ScoreConfig()).judge(texts)
    alone = load_engine(head, ScoreConfig()).score(texts)
    assert judged.counts["by_student"] > 60
    assert ((judged.scores >= 3) != (alone >= 3)).mean() <= ALLOWED
    asked = np.array(judged.scored_by) == "encoder"
    assert np.abs(judged.scores - alone)[asked].max() < 0.1


def test_what_is_unlike_the_sample_goes_to_the_encoder(cascade):
    engine = load_engine(cascade.directory, ScoreConfig())
    judged = engine.judge(["Вода кључа на сто степени.", " ".join(["offera"] * 300), ""])
    assert judged.scored_by == ["encoder"] * 3


def test_languages_and_sources_that_the_sample_has_not_go_to_the_encoder(head, tmp_path):
    random = np.random.default_rng(4)
    rows = [
        {"text": text_of(label, random), "language": "en", "source": "crawl"} for label in random.uniform(0, 5, 260)
    ]
    rows += [{"text": text_of(0, random), "language": None, "source": None} for _ in range(30)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CascadeConfig(max_changed=ALLOWED, sample=290, audit_share=0)
    made = build_cascade(
        head, SourceConfig(paths=[str(tmp_path / "corpus.jsonl")]), config, ScoreConfig(), tmp_path / "c"
    )
    cascade = read_cascade(made.directory)
    assert (cascade.languages, cascade.sources) == ([None, "en"], [None, "crawl"])
    engine, text = load_engine(made.directory, ScoreConfig()), text_of(0, random)
    strata = {"language": ["en", "de", None, "en"], "source": ["crawl", "crawl", None, "mail"]}
    assert engine.judge([text] * 4, strata).scored_by == ["student", "encoder", "student", "encoder"]
    assert engine.judge([text]).scored_by == ["student"]


def test_an_audit_of_all_gives_the_encoders_scores(cascade, head):
    engine = load_engine(cascade.directory, ScoreConfig())
    engine.cascade = engine.cascade.model_copy(update={"audit_share": 1.0})
    random = np.random.default_rng(3)
    texts = [text_of(label, random) for label in random.uniform(0, 5, 60)]
    judged = engine.judge(texts)
    assert judged.counts["by_student"] == 0
    assert judged.counts["audited"] > 20
    assert np.abs(judged.scores - load_engine(head, ScoreConfig()).score(texts)).max() < 0.1


def test_it_is_scored_with_like_any_head_and_says_who_gave_each_score(cascade, corpus, tmp_path):
    scored = score_corpus(cascade.directory, corpus, ScoreConfig(), tmp_path / "scored")
    (shard,) = scored.shard_paths()
    by = pq.read_table(shard)["scored_by"].to_pylist()
    assert scored.counts["by_student"] == by.count("student")
    assert scored.counts["by_encoder"] == by.count("encoder")
    assert read_head(cascade.directory).training.engine == "cascade"


def test_too_small_a_sample_says_how_many_it_takes(head, corpus, tmp_path):
    with pytest.raises(InputError, match=r"a sample of 300 documents, .* that takes 1,193"):
        build_cascade(head, corpus, CascadeConfig(), ScoreConfig(), tmp_path / "cascade")


def test_a_second_call_takes_what_is_there_and_other_settings_are_refused(cascade, head, corpus):
    again = build_cascade(head, corpus, CONFIG, ScoreConfig(), cascade.directory)
    assert again.digest == cascade.digest
    with pytest.raises(InputError, match="another head, corpus or settings"):
        build_cascade(head, corpus, CascadeConfig(sample=260, max_changed=0.2), ScoreConfig(), cascade.directory)


def test_killed_and_called_again_it_makes_the_same_cascade(cascade, head, corpus, tmp_path):
    command = [sys.executable, "-m", "ml_filter.cli", "cascade", head, *corpus.paths, "-o", str(tmp_path / "cascade")]
    command += ["--sample", "260", "--max-changed", str(ALLOWED)]
    for seconds in (6, 9, 12):
        process = subprocess.Popen(command, start_new_session=True)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert read_cascade(tmp_path / "cascade") == read_cascade(cascade.directory)
    assert read_head(tmp_path / "cascade").digest == cascade.digest


@pytest.mark.parametrize("where", ["in a section beside the cascade's", "in the only section", "on the command line"])
def test_how_the_head_scores_the_sample_can_be_set(where, head, corpus, tmp_path):
    file, options = tmp_path / "settings.yaml", ["--sample", "260"]
    if where == "on the command line":
        options += ["--device", "cuda:77"]
    else:
        sections = {"score": {"device": "cuda:77"}}
        sections |= {"cascade": {"max_changed": ALLOWED}} if "beside" in where else {}
        file.write_text(json.dumps(sections))
        options += ["--config", str(file)]
    command = [sys.executable, "-m", "ml_filter.cli", "cascade", head, *corpus.paths, "-o", str(tmp_path / "cascade")]
    command += [*options, "--max-changed", str(ALLOWED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'cuda:77' cannot be used" in done.stderr
