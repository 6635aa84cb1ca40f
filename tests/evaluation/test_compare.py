"""Comparing two prompts or models, against a server whose models score well, or badly, by rules."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from ml_filter.agreement.ratings import Ratings
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.evaluation.compare import _differences, compare_annotators, two_sides
from ml_filter.evaluation.config import CompareConfig
from tests.annotation.misbehaving import Request, chat, refused

SIZE = 60


@pytest.fixture
def rated(tmp_path):
    """Documents whose text contains their human score from 0 to 5."""
    path = tmp_path / "rated.jsonl"
    rows = [
        {"id": f"d{i}", "text": f"[d{i}] worth{i % 6}", "human_score": i % 6, "language": "en" if i % 2 else "de"}
        for i in range(SIZE)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


def score_by_rule(request: Request) -> dict:
    """`good` errs by at most one now and then, `bad` guesses; `deaf` fails on every fifth document."""
    question = request.body["messages"][-1]["content"]
    number, worth = int(request.document[1:]), int(question.split("worth")[1][0])
    guess = random.Random(number)
    model = request.body["model"]
    if model == "deaf" and number % 5 == 0:
        return refused(400, "I do not like this one")
    score = guess.randrange(6) if model == "bad" else min(5, max(0, worth + (guess.random() < 0.2)))
    return chat(f"Because it is {worth}. Score: {score}")


@pytest.fixture
def sides(serve, asking):
    """Two models on one server."""

    def configure(a: str, b: str, **changes):
        server = serve(score_by_rule)
        return server, *two_sides(asking(server, timeout_s=20, **changes), [], [a, b], [server.url])

    return configure


def gold(rated, **changes) -> CompareConfig:
    return CompareConfig(gold=rated, resamples=300, **changes)


def test_better_model_is_found_with_an_interval_that_excludes_zero(sides, rated, tmp_path):
    _, a, b = sides("bad", "good")
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    differences = {difference.figure: difference for difference in comparison.differences}
    spearman, mae, kappa = (differences[name] for name in ("spearman", "mae", "kappa_quadratic"))
    assert spearman.better == mae.better == kappa.better == "b"
    assert spearman.difference.low > 0
    assert mae.difference.high < 0
    assert mae.difference.value == pytest.approx(mae.b.value - mae.a.value)


def test_order_of_the_sides_does_not_matter(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert {d.figure: d.better for d in comparison.differences}["spearman"] == "a"


def test_equivalent_prompts_have_no_better_side(serve, asking, prompt_file, rated, tmp_path):
    server = serve(score_by_rule)
    prompts = [prompt_file(name, text=f"{name}:\n{{text}}\nEnd with: Score: <0 to 5>") for name in ("one", "two")]
    a, b = two_sides(asking(server, model="good", timeout_s=20), prompts, [], [])
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert all(d.better is None and d.difference.value == 0 for d in comparison.differences)
    assert comparison.examples == []
    assert (comparison.a.prompts, comparison.b.prompts) == (["one"], ["two"])
    assert (comparison.a.name, comparison.b.name) == ("good / one", "good / two")


def test_examples_are_the_largest_differences_with_both_reasons(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, manifest = compare_annotators(rated, a, b, gold(rated, examples=5), tmp_path / "out")
    distances = [abs(example.a - example.b) for example in comparison.examples]
    assert len(distances) == 5
    assert distances == sorted(distances, reverse=True)
    assert distances[0] >= 4
    first = comparison.examples[0]
    assert first.gold is not None
    assert first.excerpt == f"[{first.document_id}] worth{first.gold:g}"
    assert first.reason_a == first.reason_b == f"Because it is {first.gold:g}."
    page = Path(manifest.path_of("comparison.html")).read_text()
    assert first.excerpt in page
    assert "better" in page
    assert "<h2>Raters</h2>" in Path(manifest.path_of("agreement.html")).read_text()


def test_without_gold_only_agreement_is_measured(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, _ = compare_annotators(rated, a, b, CompareConfig(resamples=100), tmp_path / "out")
    assert comparison.differences == []
    assert comparison.gold is None
    [pair] = comparison.agreement.overall.pairs
    assert (pair.reference, pair.rater, pair.documents) == ("good", "bad", SIZE)


def test_each_side_has_its_tokens_cost_and_failures(sides, rated, tmp_path):
    prices = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 2.0}
    _, a, b = sides("good", "deaf", **prices)
    comparison, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (comparison.a.prompt_tokens, comparison.a.completion_tokens) == (10 * SIZE, 5 * SIZE)
    assert comparison.a.usd == pytest.approx((10 * SIZE * 1 + 5 * SIZE * 2) / 1e6)
    assert (comparison.b.failed, comparison.b.failed_by_code) == (SIZE // 5, {"bad_request": SIZE // 5})
    assert comparison.b.share_failed == 0.2
    assert all(d.difference.documents == SIZE * 4 // 5 for d in comparison.differences)


def test_differences_use_only_documents_that_gold_and_both_sides_scored():
    missing = np.nan
    scores = np.array([[1, 1, 2], [2, 2, missing], [3, 3, 3], [4, missing, 4], [missing, 5, 5], [0, 0, 0]])
    documents = [str(row) for row in range(len(scores))]
    ratings = Ratings(documents, ["gold", "a", "b"], scores, np.isnan(scores), {}, True, (0, 5), 3, [])
    mae = next(row for row in _differences(ratings, CompareConfig(resamples=100)) if row.figure == "mae")
    assert mae.difference.documents == 3
    assert mae.difference.value == pytest.approx(1 / 3)


def test_too_many_failures_raise_after_the_comparison_is_written(sides, rated, tmp_path):
    _, a, b = sides("good", "deaf", max_failed_share=0.1)
    for _ in range(2):
        with pytest.raises(TooManyFailures, match="12 of 60 answers of deaf failed"):
            compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (tmp_path / "out" / "comparison.html").exists()


def test_side_whose_answers_all_failed_can_be_retried(serve, asking, rated, tmp_path):
    def answer(request):  # in two ways: the same failure of all of the first answers ends a run
        if request.body["model"] == "good":
            return score_by_rule(request)
        return chat("no idea") if int(request.document[1:]) % 2 else refused(400, "I do not like this one")

    server = serve(answer)
    a, b = two_sides(asking(server, timeout_s=20), [], ["good", "bad"], [])
    with pytest.raises(TooManyFailures) as raised:
        compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    message = str(raised.value)
    assert message.startswith("there is nothing to compare: all 60 answers of side b (bad, short) failed (")
    assert "unparsable_score 30" in message
    assert message.endswith(f"; see {tmp_path}/out/b/failed.jsonl. Fix the cause, then run again with --retry-failed")
    assert len((tmp_path / "out/b/failed.jsonl").read_text().splitlines()) == SIZE
    server.answer = score_by_rule
    a, b = (config.model_copy(update={"retry_failed": True}) for config in (a, b))
    retried, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (retried.a.scored, retried.b.scored) == (SIZE, SIZE)
    assert len(server.requests) == 3 * SIZE


def test_finished_comparison_is_reused_and_failures_are_retried_on_request(serve, asking, rated, tmp_path):
    broken = [True]

    def answer(request: Request):
        return (
            refused(400, "no")
            if broken[0] and request.body["model"] == "bad" and request.document == "d7"
            else score_by_rule(request)
        )

    server = serve(answer)
    a, b = two_sides(asking(server, timeout_s=20), [], ["good", "bad"], [])
    first, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    again, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert first == again
    assert len(server.requests) == 2 * SIZE
    broken[0] = False
    a, b = (config.model_copy(update={"retry_failed": True}) for config in (a, b))
    retried, _ = compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert (first.b.failed, retried.b.failed) == (1, 0)
    assert len(server.requests) == 2 * SIZE + 1


def test_agreement_has_the_strata_of_gold(sides, rated, tmp_path):
    _, a, b = sides("good", "bad")
    comparison, _ = compare_annotators(rated, a, b, gold(rated, by=["language"]), tmp_path / "out")
    assert set(comparison.agreement.strata["language"]) == {"de", "en"}


def test_options_with_two_values_differ_between_the_sides(tmp_path):
    a, b = two_sides(AnnotateConfig(temperature=0.5), ["p"], ["small", "large"], ["http://x/v1", "http://y/v1"])
    assert (a.prompts, a.model, a.endpoints, a.temperature) == (["p"], "small", ["http://x/v1"], 0.5)
    assert (b.prompts, b.model, b.endpoints, b.temperature) == (["p"], "large", ["http://y/v1"], 0.5)
    with pytest.raises(ConfigError, match="--model has 3 values"):
        two_sides(AnnotateConfig(), [], ["a", "b", "c"], [])


def test_sides_that_cannot_be_compared_are_an_error_before_any_request(serve, asking, prompt_file, rated, tmp_path):
    server = serve(score_by_rule)
    same = asking(server)
    with pytest.raises(ConfigError, match="both sides are the same"):
        compare_annotators(rated, same, same, gold(rated), tmp_path / "out")
    with pytest.raises(ConfigError, match="the model m needs an endpoint"):  # the embedded annotator has one model
        compare_annotators(rated, *two_sides(AnnotateConfig(), [], ["m", "n"], []), gold(rated), tmp_path / "out")
    wide = prompt_file("wide", score={"min": 0, "max": 10})
    a, b = two_sides(same, [prompt_file("narrow"), wide], [], [])
    with pytest.raises(ConfigError, match="narrow scores from 0 to 5, wide from 0 to 10"):
        compare_annotators(rated, a, b, gold(rated), tmp_path / "out")
    assert not server.requests


@pytest.mark.parametrize(
    ("column", "message"),
    [("nope", "has no column 'nope'; it has human_score, id, language, text"), ("text", "not a number")],
)
def test_unusable_gold_is_an_error_before_any_request(column, message, sides, rated, tmp_path):
    server, a, b = sides("good", "bad")
    with pytest.raises(InputError, match=message):
        compare_annotators(rated, a, b, gold(rated, gold_column=column), tmp_path / "out")
    (tmp_path / "unrated.jsonl").write_text(json.dumps({"id": "d1", "human_score": None}) + "\n")
    with pytest.raises(
        InputError, match=r"unrated.jsonl has no rating in 'human_score'; name the column with --gold-c"
    ):
        compare_annotators(rated, a, b, gold(SourceConfig(paths=[str(tmp_path / "unrated.jsonl")])), tmp_path / "out")
    assert not server.requests
    assert not (tmp_path / "out").exists()
