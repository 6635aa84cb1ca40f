"""Is a corpus like the documents that the head was trained on?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.criterion import Criterion
from ml_filter.heads.profile import NO_SCRIPT, Profile, script_of, shifts, stability_index

EDU = Criterion(name="edu", low=0, high=5, threshold=3)


def profile(scores, texts):
    made = Profile.of([EDU])
    made.add_scores(EDU, np.array(scores, float))
    made.add_texts([len(text.encode()) for text in texts], [script_of(text) for text in texts])
    return made


def test_the_index_of_a_textbook_table():
    # Shares of .2 .3 .5 become .3 .3 .4: .1 ln 1.5 + .1 ln 1.25.
    assert stability_index([200_000, 300_000, 500_000], [300_000, 300_000, 400_000]) == pytest.approx(
        0.1 * np.log(1.5) + 0.1 * np.log(1.25), abs=1e-5
    )


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=10).flatmap(lambda a: st.tuples(st.just(a), st.permutations(a)))
)
def test_it_is_never_negative_symmetric_and_zero_for_the_same(counts):
    before, after = counts
    assert stability_index(before, after) >= 0
    assert stability_index(before, after) == pytest.approx(stability_index(after, before))
    assert stability_index(before, before) == pytest.approx(0)


def test_two_samples_of_one_population_have_not_shifted():
    random = np.random.default_rng(0)
    a, b = (profile(random.uniform(0, 5, 300), ["water boils " * n for n in random.integers(1, 90, 300)]) for _ in "ab")
    assert [(shift.what, shift.is_shifted) for shift in shifts(a, b)] == [
        ("score (edu)", False),
        ("length", False),
        ("script", False),
    ]


def test_a_corpus_in_another_script_and_with_lower_scores_has_shifted():
    before = profile(np.linspace(2, 5, 200), ["Water boils at a hundred degrees."] * 200)
    after = profile(np.linspace(0, 2, 200), ["Вода кључа на сто степени."] * 200)
    assert {shift.what for shift in shifts(before, after) if shift.is_shifted} >= {"score (edu)", "script"}


def test_few_documents_that_differ_by_chance_have_not_shifted():
    before = profile([1, 2, 3], ["a", "b", "c"])
    after = profile([4, 4, 4], ["a", "b", "c"])
    (score, *_) = shifts(before, after)
    assert score.index > 0.25
    assert not score.is_shifted


def test_documents_without_a_score_are_counted_by_text_alone():
    made = profile([1, np.nan], ["one", "two"])
    assert sum(made.scores["edu"]) == 1
    assert sum(made.lengths.values()) == 2


@pytest.mark.parametrize(
    ("text", "script"),
    [("Größe", "LATIN"), ("Вода", "CYRILLIC"), ("水が沸く水水水水", "CJK"), ("123 !?", NO_SCRIPT), ("", NO_SCRIPT)],
)
def test_the_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script
