"""Dawid-Skene against the truth, against properties and against crowd-kit."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.agreement.dawid_skene import dawid_skene

CLASSES = 4
ABILITIES = [0.9, 0.75, 0.6, 0.4]


def simulated(documents: int, seed: int = 0, share: float = 1.0):
    """Votes of four annotators of known ability; `share` of them cast. Truth, and each vote's document, annotator,
    answer."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(CLASSES, documents, p=[0.4, 0.3, 0.2, 0.1])
    document, annotator = (axis.ravel() for axis in np.indices((documents, len(ABILITIES))))
    wrong = (truth[document] + draw.integers(1, CLASSES, len(document))) % CLASSES
    answer = np.where(draw.random(len(document)) < np.array(ABILITIES)[annotator], truth[document], wrong)
    cast = (draw.random(len(document)) < share) | (annotator == document % len(ABILITIES))  # one vote at least
    return truth, document[cast], annotator[cast], answer[cast]


def test_estimates_are_closer_to_the_truth_than_the_majority():
    truth, document, annotator, answer = simulated(2000)
    estimates = dawid_skene(document, annotator, answer, CLASSES)
    shares = np.bincount(document * CLASSES + answer, minlength=2000 * CLASSES).reshape(-1, CLASSES)
    right, majority = (estimates.posterior.argmax(axis=1) == truth).mean(), (shares.argmax(axis=1) == truth).mean()
    assert right > majority + 0.02
    assert estimates.converged
    assert estimates.accuracy == pytest.approx(ABILITIES, abs=0.03)
    assert estimates.priors == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    # The posterior of the most probable class is as high as that class is often true.
    highest = estimates.posterior.max(axis=1)
    assert highest.mean() == pytest.approx(right, abs=0.02)


def test_estimates_equal_those_of_crowd_kit():
    _, document, annotator, answer = simulated(150, seed=1, share=0.7)
    ours = dawid_skene(document, annotator, answer, CLASSES, smoothing=1e-10, tolerance=0, max_iterations=40)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # crowd-kit's use of pandas
        warnings.filterwarnings("ignore", category=FutureWarning)
        import pandas as pd
        from crowdkit.aggregation import DawidSkene

        theirs = DawidSkene(n_iter=ours.iterations, tol=-1.0)
        votes = pd.DataFrame({"task": document, "worker": annotator, "label": answer})
        probabilities = theirs.fit_predict_proba(votes).sort_index()[range(CLASSES)]
    assert np.abs(probabilities.to_numpy() - ours.posterior).max() < 1e-6
    assert np.abs(theirs.priors_[range(CLASSES)].to_numpy() - ours.priors).max() < 1e-6
    for rater in range(len(ABILITIES)):
        confusion = theirs.errors_.loc[rater].sort_index()[range(CLASSES)].to_numpy().T
        assert np.abs(confusion - ours.confusion[rater]).max() < 1e-6


VOTES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


def columns(votes):
    """The columns of votes, with the documents numbered without gaps."""
    document, annotator, answer = np.array(votes).T
    return np.unique(document, return_inverse=True)[1], annotator, answer


@settings(max_examples=50, deadline=None)
@given(VOTES)
def test_probabilities_sum_to_1_and_the_likelihood_never_falls(votes):
    document, annotator, answer = columns(votes)
    likelihoods = []
    for rounds in range(1, 12):
        estimates = dawid_skene(document, annotator, answer, 3, smoothing=1e-9, tolerance=-1, max_iterations=rounds)
        likelihoods.append(estimates.log_likelihood)
        assert estimates.posterior.sum(axis=1) == pytest.approx(np.ones(document.max() + 1))
        assert estimates.confusion.sum(axis=2) == pytest.approx(np.ones(estimates.confusion.shape[:2]))
        assert estimates.priors.sum() == pytest.approx(1)
    assert np.diff(likelihoods).min() > -1e-6


@settings(max_examples=50, deadline=None)
@given(VOTES, st.permutations(range(3)), st.randoms(use_true_random=False))
def test_names_of_annotators_and_order_of_votes_do_not_matter(votes, names, random):
    one = dawid_skene(*columns(votes), 3, max_iterations=30)
    shuffled = random.sample([(d, names[a], c) for d, a, c in votes], len(votes))
    other = dawid_skene(*columns(shuffled), 3, max_iterations=30)
    assert other.posterior == pytest.approx(one.posterior, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(VOTES, st.permutations(range(3)))
def test_renaming_classes_renames_the_estimates(votes, names):
    one = dawid_skene(*columns(votes), 3, max_iterations=30)
    other = dawid_skene(*columns([(d, a, names[c]) for d, a, c in votes]), 3, max_iterations=30)
    assert other.posterior[:, names] == pytest.approx(one.posterior, abs=1e-6)
    assert other.priors[list(names)] == pytest.approx(one.priors, abs=1e-6)
    assert other.confusion[:, names][:, :, names] == pytest.approx(one.confusion, abs=1e-6)


def test_same_votes_give_identical_estimates():
    _, document, annotator, answer = simulated(200, seed=3)
    one, other = (dawid_skene(document, annotator, answer, CLASSES) for _ in range(2))
    assert np.array_equal(one.posterior, other.posterior)


def test_missing_convergence_is_reported():
    _, document, annotator, answer = simulated(200, seed=3)
    estimates = dawid_skene(document, annotator, answer, CLASSES, max_iterations=2)
    assert (estimates.iterations, estimates.converged) == (2, False)
