"""Two prompts or models side by side, against a server whose models judge well, or badly, by rules."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from ml_filter.annotation.config import AnnotateConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.evaluation.compare import compare_annotators, two_sides
from ml_filter.evaluation.config import CompareConfig
from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.pair import compare_against
from tests.annotation.misbehaving import Asked, chat, refused

SIZE = 60


@pytest.fixture
def rated(tmp_path):
    """Documents whose human score from 0 to 5 stands in their text, as tens of words."""
    path = tmp_path / "rated.jsonl"
    rows = [
        {"id": f"d{i}", "text": f"[d{i}] worth{i % 6}", "human_score": i % 6, "language": "en" if i % 2 else "de"}
        for i in range(SIZE)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


def judge(asked: Asked) -> dict:
    """`good` errs by at most one now and then, `bad` guesses; `deaf` fails on every fifth document."""
    question = asked.body["messages"][-1]["content"]
    number, worth = int(asked.document[1:]), int(question.split("worth")[1][0])
    guess = random.Random(number)
    model = asked.body["model"]
    if model == "deaf" and number % 5 == 0:
        return refused(400, "I do not like this one")
    score = guess.randrange(6) if model == "bad" else min(5, max(0, worth + (guess.random() < 0.2)))
    return chat(f"Because it is {worth}. Score: {score}")


@pytest.fixture
def sides(serve, asking):
    """Two models on one server."""

    def configure(a: str, b: str, **changes):
        server = serve(judge)
        return server, *two_sides(asking(server, timeout_s=20, **changes), [], [a, b], [server.url])

    return configure


def gold(rated, **changes) -> CompareConfig:
    return CompareConfig(gold=rated, resamples=300, **changes)


def test_the_better_model_is_told_from_the_worse_with_an_interval_that_leaves_out_zero(sides, rated, tmp_path):
    _, a, b = sides("bad", "good")
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    found = {one.figure: one for one in comparison.differences}
    assert found["spearman"].better == found["mae"].better == found["kappa_quadratic"].better == "b"
    assert found["spearman"].difference.low > 0
    assert found["mae"].difference.high < 0
    assert found["mae"].difference.value == pytest.approx(found["mae"].b.value - found["mae"].a.value)


def test_the_order_of_the_sides_does_not_decide(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert {one.figure: one.better for one in comparison.differences}["spearman"] == "a"


def test_two_prompts_that_do_the_same_cannot_be_told_apart(serve, asking, prompt_file, rated, tmp_path):
    server = serve(judge)
    prompts = [prompt_file(name, text=f"{name}:\n{{text}}\nEnd with: Score: <0 to 5>") for name in ("one", "two")]
    a, b = two_sides(asking(server, model="good", timeout_s=20), prompts, [], [])
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert all(one.better is None and one.difference.value == 0 for one in comparison.differences)
    assert comparison.examples == []
    assert (comparison.a.prompts, comparison.b.prompts) == (["one"], ["two"])
    assert (comparison.a.name, comparison.b.name) == ("good / one", "good / two")


def test_the_documents_on_which_they_differ_most_are_shown_with_both_reasons(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, manifest = compare_annotators(rated, a, b, gold(rated, examples=5), tmp_path / "out")
    apart = [abs(one.a - one.b) for one in comparison.examples]
    assert len(apart) == 5
    assert apart == sorted(apart, reverse=True)
    assert apart[0] >= 4
    first = comparison.examples[0]
    assert first.gold is not None
    assert first.excerpt == f"[{first.document_id}] worth{first.gold:g}"
    assert first.reason_a == first.reason_b == f"Because it is {first.gold:g}."
    page = Path(manifest.path_of("comparison.html")).read_text()
    assert first.excerpt in page
    assert "better" in page
    assert "<h2>Raters</h2>" in Path(manifest.path_of("agreement.html")).read_text()


def test_without_gold_only_their_agreement_is_measured(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, _ = compare_annotators(rated, a, b, CompareConfig(resamples=100), tmp_path / "out")
    assert comparison.differences == []
    assert comparison.gold is None
    [pair] = comparison.agreement.overall.pairs
    assert (pair.reference, pair.rater, pair.documents) == ("good", "bad", SIZE)


def test_tokens_cost_and_failures_of_each_side_are_stated(sides, rated, tmp_path):
    prices = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 2.0}
    _, a, b = sides("good", "deaf", **prices)
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (comparison.a.prompt_tokens, comparison.a.completion_tokens) == (10 * SIZE, 5 * SIZE)
    assert comparison.a.usd == pytest.approx((10 * SIZE * 1 + 5 * SIZE * 2) / 1e6)
    assert (comparison.b.failed, comparison.b.failed_by_code) == (SIZE // 5, {"bad_request": SIZE // 5})
    assert comparison.b.share_failed == 0.2
    assert all(one.difference.documents == SIZE * 4 // 5 for one in comparison.differences)


def test_too_many_failures_of_one_side_end_it_after_the_comparison_is_written(sides, rated, tmp_path):
    _, a, b = sides("good", "deaf", max_failed_share=0.1)
    for _ in range(2):
        with pytest.raises(TooManyFailures, match="12 of 60 answers of deaf failed"):
            compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (tmp_path / "out" / "comparison.html").exists()


def test_a_side_that_failed_wholly_is_named_with_its_errors_and_mended_by_asking_again(serve, asking, rated, tmp_path):
    server = serve(lambda asked: chat("no idea") if asked.body["model"] == "bad" else judge(asked))
    a, b = two_sides(asking(server, timeout_s=20), [], ["good", "bad"], [])
    with pytest.raises(TooManyFailures) as raised:
        compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert str(raised.value) == (
        f"there is nothing to compare: all 60 answers of side b (bad, short) failed (unparsable_score 60); each is in "
        f"{tmp_path}/out/b/failed.jsonl. Once what they say is mended, run again with --retry-failed"
    )
    assert len((tmp_path / "out/b/failed.jsonl").read_text().splitlines()) == SIZE
    server.answer = judge
    a, b = (one.model_copy(update={"retry_failed": True}) for one in (a, b))
    mended, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (mended.a.scored, mended.b.scored) == (SIZE, SIZE)
    assert len(server.requests) == 3 * SIZE


def test_it_is_asked_once_and_what_failed_again_on_demand(serve, asking, rated, tmp_path):
    broken = [True]

    def answer(asked: Asked):
        return (
            refused(400, "no")
            if broken[0] and asked.body["model"] == "bad" and asked.document == "d7"
            else judge(asked)
        )

    server = serve(answer)
    a, b = two_sides(asking(server, timeout_s=20), [], ["good", "bad"], [])
    first, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    again, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert first == again
    assert len(server.requests) == 2 * SIZE
    broken[0] = False
    a, b = (one.model_copy(update={"retry_failed": True}) for one in (a, b))
    mended, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (first.b.failed, mended.b.failed) == (1, 0)
    assert len(server.requests) == 2 * SIZE + 1


def test_strata_of_gold_are_in_the_figures_of_agreement(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, _ = compare_annotators(rated, a, b, gold(rated, by=["language"]), tmp_path / "out")
    assert set(comparison.agreement.strata["language"]) == {"de", "en"}


def test_what_is_given_twice_tells_the_sides_apart_and_what_is_given_once_holds_for_both(tmp_path):
    a, b = two_sides(AnnotateConfig(temperature=0.5), ["p"], ["small", "large"], ["http://x/v1", "http://y/v1"])
    assert (a.prompts, a.model, a.endpoints, a.temperature) == (["p"], "small", ["http://x/v1"], 0.5)
    assert (b.prompts, b.model, b.endpoints, b.temperature) == (["p"], "large", ["http://y/v1"], 0.5)
    with pytest.raises(ConfigError, match="--model is given 3 times"):
        two_sides(AnnotateConfig(), [], ["a", "b", "c"], [])


def test_sides_that_cannot_be_compared_are_refused_before_anything_is_asked(
    serve, asking, prompt_file, rated, tmp_path
):
    server = serve(judge)
    same = asking(server)
    with pytest.raises(ConfigError, match="both sides are the same"):
        compare_annotators(rated, same, same, gold(rated), tmp_path / "out")
    with pytest.raises(ConfigError, match="both sides are the same"):  # the embedded judge has one model
        compare_annotators(rated, *two_sides(AnnotateConfig(), [], ["m", "n"], []), gold(rated), tmp_path / "out")
    wide = prompt_file("wide", score={"min": 0, "max": 10})
    a, b = two_sides(same, [prompt_file("narrow"), wide], [], [])
    with pytest.raises(ConfigError, match="narrow scores from 0 to 5, wide from 0 to 10"):
        compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert not server.requests


@pytest.mark.parametrize(
    ("column", "says"),
    [("nope", "has no column 'nope'; it has human_score, id, language, text"), ("text", "not a number")],
)
def test_gold_that_cannot_be_compared_with_is_refused_before_anything_is_asked(column, says, sides, rated, tmp_path):
    server, a, b = sides("good", "bad")
    with pytest.raises(InputError, match=says):
        compare_annotators(rated, a, b, gold(rated, gold_column=column), tmp_path / "out")
    (tmp_path / "unrated.jsonl").write_text(json.dumps({"id": "d1", "human_score": None}) + "\n")
    with pytest.raises(
        InputError, match=r"unrated.jsonl has no rating in 'human_score'; name the column with --gold-c"
    ):
        compare_annotators(rated, a, b, gold(SourceConfig(paths=[str(tmp_path / "unrated.jsonl")])), tmp_path / "out")
    assert not server.requests
    assert not (tmp_path / "out").exists()


def test_the_paired_interval_is_that_of_a_plain_bootstrap_of_the_same_documents():
    random_ = np.random.default_rng(1)
    gold_scores = random_.integers(0, 6, 150).astype(float)
    noisy = [np.clip(gold_scores + random_.normal(0, spread, 150), 0, 5).round() for spread in (1.5, 0.7)]
    scores = np.column_stack([gold_scores, *noisy])
    found = compare_against(scores, score_range=(0, 5), threshold=3, resampling=Resampling(resamples=2000))

    def kappa(rows, column):
        return cohen_kappa_score(rows[:, 0].astype(int), rows[:, column].astype(int), weights="quadratic")

    drawn = [scores[random_.integers(0, 150, 150)] for _ in range(1000)]
    for name, value in {
        "kappa_quadratic": lambda rows: kappa(rows, 2) - kappa(rows, 1),
        "mae": lambda rows: np.abs(rows[:, 2] - rows[:, 0]).mean() - np.abs(rows[:, 1] - rows[:, 0]).mean(),
    }.items():
        assert found[name].value == pytest.approx(value(scores))
        low, high = np.quantile([value(rows) for rows in drawn], [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=0.03)


def test_documents_that_one_of_the_three_has_no_score_for_do_not_count():
    scores = np.array([[1, 1, 2], [2, 2, np.nan], [3, 3, 3], [4, np.nan, 4], [np.nan, 5, 5], [0, 0, 0]], dtype=float)
    found = compare_against(scores, score_range=(0, 5), threshold=3, resampling=Resampling(resamples=100))
    assert found["mae"].documents == 3
    assert found["mae"].value == pytest.approx(1 / 3)
