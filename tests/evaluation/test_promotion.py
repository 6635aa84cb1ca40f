"""When a head takes the place of the current one."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import GateFailed, InputError
from ml_filter.evaluation.config import PromoteConfig
from ml_filter.evaluation.promotion import Decision, ablation_shows_help, decide, evaluate_candidate
from ml_filter.evaluation.result import HeadEvaluation
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.labels import text_keys
from ml_filter.heads.store import read_trained_on
from ml_filter.heads.train import train_head
from ml_filter.heads.trained import TrainedHead
from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.quality import HeadScores, compare_heads, measure_quality

pytestmark = pytest.mark.model

NAMES = ("version 2", "version 1")
CRITERION = Criterion(name="quality", low=0, high=5, threshold=3)


def noisy_scores(labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """What a head of a certain quality says: the label, and noise of this standard deviation."""
    return labels + np.random.default_rng(seed).normal(0, noise, len(labels))


def labels_of(documents: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 6, documents).astype(np.float64)


def evaluated(labels: np.ndarray, candidate: np.ndarray, current: np.ndarray | None = None) -> HeadEvaluation:
    """The evaluation of a head from its scores, compared with another's."""
    resampling = Resampling(resamples=200)
    comparison = None
    if current is not None:
        heads = (HeadScores.from_scores(scores, CRITERION) for scores in (candidate, current))
        comparison = compare_heads(*heads, labels, CRITERION, resampling=resampling)
    return HeadEvaluation(
        **dict(measure_quality(candidate, labels, CRITERION, resampling=resampling)),
        head="head",
        head_digest="",
        criterion="quality",
        labels="labels.jsonl",
        label_column="label",
        unlabelled=0,
        length_unit="words",
        compared_with=None,
        comparison=comparison,
        worst=[],
    )


def judged(candidate: float, current: float | None, documents: int = 200, seed: int = 0) -> HeadEvaluation:
    """Two heads of these noises on the same labels from 0 to 5."""
    labels = labels_of(documents, seed)
    theirs = None if current is None else noisy_scores(labels, current, seed + 2)
    return evaluated(labels, noisy_scores(labels, candidate, seed + 1), theirs)


def decided(gold: HeadEvaluation, test: HeadEvaluation | None = None, **config) -> Decision:
    evaluations = {"gold": gold} if test is None else {"gold": gold, "test": test}
    return decide(evaluations, PromoteConfig(**config), NAMES)


# --- The paired test -------------------------------------------------------------------------------------------------


def test_clearly_better_head_is_promoted_with_the_difference_as_reason():
    decision = decided(judged(0.5, 3.0))
    difference = decision.comparisons["gold"]["spearman"]
    assert decision.promoted
    assert decision.compared_on == "gold"
    assert 0 < difference.low < difference.value < difference.high
    assert decision.reasons == [
        f"Spearman on gold (200 documents) differs from version 1's by {difference.value:+.3f}, 95% interval "
        f"{difference.low:+.3f} to {difference.high:+.3f}: the lower bound reaches the margin of 0",
        f"Spearman with humans is {decision.gate.figure.value:.3f} on 200 documents, 95% interval "
        f"{decision.gate.figure.low:.3f} to {decision.gate.figure.high:.3f}; its lower bound is at least 0.6",
    ]


def test_difference_is_that_of_the_figures_of_scipy():
    labels = labels_of()
    scores = [noisy_scores(labels, noise, 1) for noise in (0.5, 1.0)]
    ours, theirs = (spearmanr(labels, of).statistic for of in scores)
    difference = decided(evaluated(labels, *scores)).comparisons["gold"]["spearman"]
    assert difference.value == pytest.approx(ours - theirs)


def test_interval_that_reaches_below_the_margin_prevents_promotion():
    difference = decided(judged(0.5, 1.0)).comparisons["gold"]["spearman"]
    assert decided(judged(0.5, 1.0), margin=difference.low - 1e-6).promoted
    refused = decided(judged(0.5, 1.0), margin=difference.low + 1e-6)
    assert not refused.promoted
    assert "the lower bound is below the margin of" in refused.reasons[0]


@pytest.mark.parametrize("candidate", [1.0, 3.0])
def test_head_that_is_not_significantly_better_is_not_promoted(candidate):
    refused = decided(judged(candidate, 1.0))
    assert not refused.promoted
    assert refused.gate.passed == (candidate == 1.0)


def test_identical_scores_are_no_improvement():
    labels = labels_of()
    refused = decided(evaluated(labels, noisy_scores(labels, 0.5, 1), noisy_scores(labels, 0.5, 1)))
    assert not refused.promoted
    assert refused.reasons[0].endswith("+0.000, 95% interval +0.000 to +0.000: not an improvement")


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 3), st.floats(0.1, 3), st.sampled_from(["spearman", "macro_f1"]))
def test_at_most_one_of_two_heads_beats_the_other(seed, first, second, metric):
    labels = labels_of(60, seed)
    one, other = (noisy_scores(labels, noise, seed + k) for k, noise in enumerate((first, second)))
    pairs = ((one, other), (other, one))
    ways = [decided(evaluated(labels, *pair), metric=metric, min_agreement=-1) for pair in pairs]
    assert sum(way.promoted for way in ways) <= 1
    ours, theirs = (way.comparisons["gold"][metric].value for way in ways)
    assert ours == pytest.approx(-theirs)


def test_test_labels_decide_if_given_and_gold_is_reported():
    better, worse = judged(0.5, 3.0), judged(0.9, 0.3)
    assert decided(worse, better).promoted
    refused = decided(better, worse)
    assert not refused.promoted
    assert refused.compared_on == "test"
    assert set(refused.comparisons) == {"test", "gold"}
    assert refused.comparisons["gold"]["spearman"].low > 0


# --- The human gate --------------------------------------------------------------------------------------------------


def test_first_head_only_needs_to_pass_the_gate():
    decision = decided(judged(0.5, None))
    assert decision.promoted
    assert (decision.current, decision.comparisons, decision.compared_on) == (None, {}, None)
    assert decision.reasons[0] == "version 2 is the first head: nothing to compare it with"
    assert not decided(judged(3.0, None)).promoted


def test_better_head_must_still_pass_the_gate():
    low = decided(judged(0.5, 3.0)).gate.figure.low
    assert decided(judged(0.5, 3.0), min_agreement=low - 1e-6).promoted
    refused = decided(judged(0.5, 3.0), min_agreement=low + 1e-6)
    assert not refused.promoted
    assert not refused.gate.passed
    with pytest.raises(GateFailed, match=r"version 2 is not promoted: Spearman with humans is .* is below 0\."):
        refused.require()


# --- Undefined figures -----------------------------------------------------------------------------------------------


def test_too_few_documents_prevent_promotion():
    refused = decided(judged(0.1, 3.0, documents=29))
    assert not refused.promoted
    assert "at least 30 documents are required to compare with version 1" in refused.reasons[0]
    assert "has only 29 documents; at least 30 are required" in refused.reasons[1]


def test_constant_head_is_not_promoted():
    labels = labels_of()
    refused = decided(evaluated(labels, np.full(200, 2.0), noisy_scores(labels, 1.0, 1)))
    assert not refused.promoted
    assert "cannot be compared with version 1's: one of the raters gave every document the same" in refused.reasons[0]
    assert "one of the raters gave every document the same score" in refused.reasons[1]


def test_missing_scores_prevent_promotion():
    labels = labels_of()
    scores = noisy_scores(labels, 0.5, 1)
    scores[:4] = np.nan
    with_holes = evaluated(labels, scores, noisy_scores(labels, 3.0, 2))
    assert decided(with_holes, max_failed_share=0.02).promoted
    refused = decided(with_holes)
    assert not refused.promoted
    assert refused.reasons[0] == "version 2 gives 2.0% of gold (labels.jsonl) no score; at most 1.0% is allowed"


# --- Real heads ------------------------------------------------------------------------------------------------------


def test_heads_are_compared_only_on_documents_that_neither_was_trained_on(tmp_path, labelled):
    rows = labelled.read_text().splitlines()
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(f"{row}\n" for row in rows[30:]))
    labelled.write_text("".join(f"{row}\n" for row in rows[:30]))
    known, new = (SourceConfig(paths=[str(path)]) for path in (labelled, gold))
    config = TrainConfig(kind="hashing", label_column="label", test_share=0.3)
    head = train_head(known, config, tmp_path / "head")
    other = train_head(known, config.model_copy(update={"seed": 1}), tmp_path / "other")

    promote = PromoteConfig(min_agreement=-1)
    decision = evaluate_candidate(head, other, new, "label", promote, tmp_path / "evaluation-{digest}", NAMES)
    [evaluation] = tmp_path.glob("evaluation-*/evaluation.json")
    expected = HeadEvaluation.model_validate_json(evaluation.read_text())
    assert decision.comparisons == {"gold": expected.comparison.differences}
    assert decision.gate.figure == expected.intervals["spearman"]
    assert decision.gate.figure.documents == 30

    says = r"version 2 was trained on .*labelled\.jsonl: compare heads on documents that neither has seen"
    with pytest.raises(InputError, match=says):
        evaluate_candidate(head, None, known, "label", promote, tmp_path / "none", NAMES)
    copied = tmp_path / "copied.jsonl"
    some = [{**json.loads(row), "text": json.loads(row)["text"].upper()} for row in rows[:3]]
    copied.write_text(gold.read_text() + "".join(f"{json.dumps(row)}\n" for row in some))
    seen = len(set(text_keys([row["text"] for row in some])) & set(read_trained_on(head)))
    assert 0 < seen <= 3
    with pytest.raises(InputError, match=rf"version 2 was trained on {seen} of the 33 documents of .*copied\.jsonl"):
        evaluate_candidate(head, None, SourceConfig(paths=[str(copied)]), "label", promote, tmp_path / "none", NAMES)
    promote = PromoteConfig(test=known, test_label_column="label")
    with pytest.raises(InputError, match=says):
        evaluate_candidate(head, None, new, "label", promote, tmp_path / "none", NAMES)


# --- The ablation ----------------------------------------------------------------------------------------------------


def write_ablation(directory: Path, verdict: str, *digests: str) -> str:
    directory.mkdir()
    heads = [{"path": f"runs/head-{digest[:4]}", "digest": digest} for digest in digests]
    content = {"verdict": verdict, "reason": "0.03 bits less", "heads": heads, "models": []}
    (directory / "ablation.json").write_text(json.dumps(content))
    return str(directory)


def head_of_digest(monkeypatch: pytest.MonkeyPatch, digest: str) -> TrainedHead:
    monkeypatch.setattr(TrainedHead, "digest", property(lambda head: digest))
    return TrainedHead.model_construct(origin="runs/head")


@pytest.mark.parametrize(("verdict", "promoted"), [("helps", True), ("no difference shown", False), ("hurts", False)])
def test_head_whose_filter_must_help_is_promoted_only_if_the_ablation_says_so(tmp_path, monkeypatch, verdict, promoted):
    directory = write_ablation(tmp_path / "ablation", verdict, "a1b2c3d4")
    shown = ablation_shows_help(directory, head_of_digest(monkeypatch, "a1b2c3d4"), "version 2")
    decision = decide({"gold": judged(0.5, 3.0)}, PromoteConfig(ablation=directory), NAMES, shown)
    assert decision.promoted == promoted
    assert f"the ablation in {directory} finds {verdict!r}: 0.03 bits less" in decision.reasons


@pytest.mark.parametrize("digests", [("ffff",), (), ("a1b2c3d4", "ffff")])
def test_ablation_of_another_head_does_not_count(tmp_path, monkeypatch, digests):
    directory = write_ablation(tmp_path / "ablation", "helps", *digests)
    helps, reason = ablation_shows_help(directory, head_of_digest(monkeypatch, "a1b2c3d4"), "version 2")
    assert not helps
    assert "not of version 2 (a1b2c3d4)" in reason


def test_directory_without_an_ablation_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no ablation\.json; make one with ml-filter ablate"):
        ablation_shows_help(str(tmp_path), head_of_digest(monkeypatch, "a1"), "version 2")
