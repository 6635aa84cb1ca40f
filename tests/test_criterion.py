import pytest
from pydantic import TypeAdapter, ValidationError

from ml_filter.criterion import Criterion, ScoreBounds


def test_labels_without_a_manifest_have_the_default_scale():
    assert Criterion.of_labels("label", None, None) == Criterion(name="label", low=0, high=5, threshold=3)
    assert Criterion.of_labels("label", None, 2).threshold == 2


def test_the_threshold_of_a_given_range_is_its_middle():
    assert Criterion.of_labels("label", (1, 4), None) == Criterion(name="label", low=1, high=4, threshold=2.5)
    assert Criterion.of_labels("label", (1, 4), 2).threshold == 2


def test_an_empty_range_is_refused():
    with pytest.raises(ValidationError, match=r"high \(1\) must be above low \(1\)"):
        Criterion(name="label", low=1, high=1, threshold=1)
    with pytest.raises(ValidationError, match=r"the highest score \(0\) must be above the lowest \(5\)"):
        TypeAdapter(ScoreBounds).validate_python((5, 0))


def test_the_values_are_the_whole_scores():
    assert Criterion(name="label", low=1, high=3, threshold=2).values == [1, 2, 3]
