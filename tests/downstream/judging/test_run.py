"""From a tuned model to a judgement, with servers that answer as the base, the tuned model and a judge."""

import json
import re
import shutil

import pytest
from transformers import AutoTokenizer

from ml_filter.annotation.config import AskConfig
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Parent
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.judging.config import JudgeConfig
from ml_filter.downstream.judging.run import judge_tuned
from ml_filter.downstream.tuning.chat import set_template
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.data import TRAINED_ON_FILE, is_held_out, write_tokens
from ml_filter.downstream.tuning.result import TUNING_NAME, TuningResult
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.heads.trained import file_digests
from tests.annotation.misbehaving import chat

SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=None)
TOKENS = 15
"""Of each answer of the servers."""
TUNING = TuneConfig(held_out_share=0.5, max_tokens=100_000)
ROWS = [
    {"instruction": f"How warm is room {n}?", "output": f"Room {n} is {n} degrees warm.", "document_id": f"d{n}"}
    for n in range(80)
]


@pytest.fixture
def tuned(tiny_base, tmp_path) -> str:
    """What is known of a tuned model; its weights are behind a server."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return write_tuned(tmp_path, SourceConfig(paths=[str(data)]), tiny_base)


def write_tuned(tmp_path, source, tokenizer_of, base_trained_on=None, **changes) -> str:
    """What `tune` leaves beside the weights."""
    directory, tokens = tmp_path / "tuned", tmp_path / "tokens"
    directory.mkdir(parents=True, exist_ok=True)
    tokens.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    set_template(tokenizer, "chatml")
    shards, parents = list_shards(source)
    summary = write_tokens(shards, source, TUNING, tokenizer, tokens, base_trained_on)
    shutil.copy(tokens / TRAINED_ON_FILE, directory)
    fields = dict(
        config_digest="0",
        config=TUNING,
        base=Parent(path="base", digest="0"),
        base_license=None,
        source=source,
        parents=parents,
        lineage=[],
        data=summary,
        figures={},
        history=[],
        cpu_seconds=0,
        files=file_digests(directory),
    )
    result = TuningResult(**{**fields, **changes})
    (directory / TUNING_NAME).write_bytes(result.to_json())
    return str(directory)


def contestant(text):
    """Answers every task with its number in a text."""
    return lambda request: chat(text.format(re.search(r"room (\d+)", json.dumps(request.body))[1]))


def judge(request):
    """Prefers the answer that says degrees, wherever it is."""
    text = request.body["messages"][-1]["content"]
    if "Answer A" not in text:
        answer = text.partition("Answer:")[2].strip()
        return chat(json.dumps({"reason": "so", "score": 4 if "degrees" in answer else 1 if answer else 3}))
    a = text.partition("Answer A:")[2].partition("Answer B:")[0]
    return chat(json.dumps({"reason": "It has the unit.", "winner": "A" if "degrees" in a else "B"}))


def asked(server, model):
    return {"endpoints": [server.url], "model": model, "max_concurrency": 4, "max_retries": 0}


def configured(serve, judge, **changes) -> tuple[JudgeConfig, dict]:
    servers = {
        "base": serve(contestant("It is {}.")),
        "tuned": serve(contestant("It is {} degrees.")),
        "judge": serve(judge),
    }
    fields = {name: asked(server, f"{name}-model") for name, server in servers.items()}
    return JudgeConfig.model_validate({**fields, "size": 35, **changes}), servers


def test_held_out_tasks_are_answered_compared_in_both_orders_and_rated(serve, tuned, tmp_path):
    config, servers = configured(serve, judge)
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert judgement.verdict == "better"
    assert judgement.tasks == 35
    assert judgement.comparison.verdicts == {"second": 35}
    assert judgement.comparison.won_first.value == 0.5
    assert judgement.figures["tuned_rating"].value == 4
    assert judgement.figures["base_rating"].value == 1
    assert judgement.figures["change_rouge1"].low > 0
    tasks = [request.body["messages"][-1]["content"] for request in servers["tuned"].requests]
    numbers = {int(re.search(r"room (\d+)", task)[1]) for task in tasks}
    assert len(numbers) == 35
    assert all(is_held_out(f"d{number}", TUNING) for number in numbers)
    [page] = (tmp_path / "out").glob("judgement-*/report.html")
    assert "The tuned model: better" in page.read_text()

    assert {len(server.requests) for name, server in servers.items() if name != "judge"} == {35}, "each answers all"
    requests = sum(len(server.requests) for server in servers.values())
    assert judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)[0] == judgement
    assert sum(len(server.requests) for server in servers.values()) == requests, "nothing is asked twice"


def test_of_a_long_task_the_judge_sees_the_answers_and_only_the_beginning(serve, tiny_base, tmp_path):
    rows = [{**row, "instruction": f"{row['instruction']} {'Think. ' * 1800}"} for row in ROWS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = write_tuned(tmp_path, SourceConfig(paths=[str(tmp_path / "data.jsonl")]), tiny_base)
    config, _ = configured(serve, judge)
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert judgement.verdict == "better"
    assert (judgement.figures["base_rating"].value, judgement.figures["tuned_rating"].value) == (1, 4)
    assert judgement.warnings[-1].startswith("the judge saw only the beginning of the task in 70 of 70 comparisons")


PRICES = {"usd_per_million_prompt_tokens": 1, "usd_per_million_completion_tokens": 1}


@pytest.mark.parametrize(("budget", "higher"), [({"budget_tokens": 1900}, 9000), ({"budget_usd": 0.0019}, 0.009)])
def test_ratings_have_what_the_comparisons_left_of_the_budget(serve, tuned, tmp_path, budget, higher):
    config, servers = configured(serve, judge)

    def judged_within(budget):
        asked_with = config.judge.model_copy(update={**PRICES, **budget})
        limited = config.model_copy(update={"judge": asked_with})
        return judge_tuned(tuned, limited, str(tmp_path / "out"), settings=SETTINGS)[0]

    with pytest.raises(TooManyFailures, match=r"budget of .* is used up"):
        judged_within(budget)
    assert 70 < len(servers["judge"].requests) <= 1900 / TOKENS
    assert judged_within(dict.fromkeys(budget, higher)).judge_tokens == 140 * TOKENS
    assert len(servers["judge"].requests) == 140, "nothing is asked twice"


def test_ratings_without_a_budget_are_left_out_if_the_run_is_to_finish(serve, tuned, tmp_path):
    config, servers = configured(serve, judge)
    limits = {"budget_tokens": 600, "at_budget": "finish", "max_failed_share": 1}
    config = config.model_copy(update={"judge": config.judge.model_copy(update=limits)})
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert len(servers["judge"].requests) <= 600 / TOKENS
    assert judgement.verdict == "no verdict"
    assert "change_rating" not in judgement.figures


def test_answers_have_a_price_if_those_of_both_models_have_one(serve, tuned, tmp_path):
    config, servers = configured(serve, judge, rating_prompt=None)
    usd = []
    for names in ((), ("base",), ("base", "tuned")):
        priced = config.model_copy(update={name: getattr(config, name).model_copy(update=PRICES) for name in names})
        judgement, _ = judge_tuned(tuned, priced, str(tmp_path / "out"), settings=SETTINGS)
        usd.append(judgement.answer_usd)
    assert usd == [None, None, pytest.approx(judgement.answer_tokens / 1e6)]
    assert judgement.answer_tokens == 2 * 35 * TOKENS
    assert len(servers["tuned"].requests) == 35, "nothing is asked twice"
    assert JudgeConfig().base.usd(1e6, 1e6) == 0, "the embedded server is free"


def test_two_models_under_one_name_answer_both(serve, tuned, tmp_path):
    config, servers = configured(serve, judge, rating_prompt=None)
    named = {name: asked(servers[name], "m") for name in ("base", "tuned")}
    config = JudgeConfig.model_validate({**config.model_dump(), **named})
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert judgement.comparison.verdicts == {"second": 35}


def test_a_judge_that_always_prefers_the_first_answer_is_refused(serve, tuned, tmp_path):
    config, _ = configured(serve, lambda request: chat('{"reason": "first", "winner": "A"}'), rating_prompt=None)
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert judgement.verdict == "no verdict"
    assert judgement.reason.startswith("the judge is inconsistent")
    assert judgement.comparison.won_first.value == 1


def test_a_tie_in_one_order_says_nothing_about_the_consistency_of_a_judge(serve, tuned, tmp_path):
    def ties_if_it_is_second(request):
        won = "degrees" in request.body["messages"][-1]["content"].partition("Answer A:")[2].partition("Answer B:")[0]
        return chat(json.dumps({"reason": "so", "winner": "A" if won else "tie"}))

    config, _ = configured(serve, ties_if_it_is_second, rating_prompt=None)
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert judgement.comparison.verdicts == {"inconsistent": 35}
    assert judgement.reason.startswith("the judge named a winner in both orders for only 0 of 35 pairs")


def test_a_judge_of_the_family_of_a_contestant_is_a_warning(serve, tuned, tmp_path):
    config, _ = configured(serve, judge, rating_prompt=None)
    config = config.model_copy(update={"judge": config.judge.model_copy(update={"model": "Tuned-70B"})})
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert "the judge Tuned-70B is of the same family" in judgement.warnings[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuned": JudgeConfig().tuned}, r"has no local model\.gguf.*--tuned-endpoint"),
        ({"judge": AskConfig(endpoints=["http://localhost:1/v1"])}, "--model"),
        ({"prompt": "nothing"}, "unknown .*prompt 'nothing'"),
        ({"rating_prompt": "nothing"}, "unknown prompt 'nothing'"),
    ],
)
def test_what_is_wrong_for_a_later_stage_is_an_error_before_any_answer(changes, message, tuned, tmp_path, serve):
    config, servers = configured(serve, judge)
    with pytest.raises(ConfigError, match=message):
        judge_tuned(tuned, config.model_copy(update=changes), str(tmp_path / "out"), settings=SETTINGS)
    assert not any(server.requests for server in servers.values())


def test_data_that_has_changed_since_the_tuning_is_refused(tuned, tmp_path, serve):
    config, _ = configured(serve, judge)
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(InputError, match=r"not as it was when .* was tuned"):
        judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)


def test_of_a_document_only_one_task_is_used(serve, tuned, tmp_path):
    rows = [{**row, "instruction": f"{row['instruction']} Again?"} for row in ROWS]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *rows]))
    config, _ = configured(serve, judge, rating_prompt=None, size=1000)
    twice = SourceConfig(paths=[str(tmp_path / "twice.jsonl")])
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), twice, settings=SETTINGS)
    assert judgement.tasks == (held_out := sum(is_held_out(row["document_id"], TUNING) for row in ROWS))
    assert f"{160 - 2 * held_out} of 160 rows of the data are not used" in judgement.warnings[0]


def test_of_documents_with_the_same_task_only_one_is_used(serve, tuned, tmp_path):
    rows = [{**row, "document_id": f"{row['document_id']} again"} for row in ROWS]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *rows]))
    config, _ = configured(serve, judge, rating_prompt=None, size=1000)
    twice = SourceConfig(paths=[str(tmp_path / "twice.jsonl")])
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), twice, settings=SETTINGS)
    texts = {row["instruction"] for row in ROWS if is_held_out(row["document_id"], TUNING)}
    assert judgement.tasks == len(texts) == sum(judgement.comparison.verdicts.values())


def test_data_is_read_as_the_tuning_has_read_it(serve, tiny_base, tmp_path):
    document = next(f"long{n}" for n in range(100) if is_held_out(f"long{n}", TUNING))
    long = {"instruction": f"How warm is room 1? {'So? ' * 2**19}", "output": "Warm.", "document_id": document}
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, long]))
    source = SourceConfig(paths=[str(tmp_path / "data.jsonl")], max_text_bytes=1000)  # too long a line is rejected
    config, _ = configured(serve, judge, rating_prompt=None, size=1000)
    tuned = write_tuned(tmp_path, source, tiny_base)
    judgement, _ = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    assert judgement.tasks == sum(is_held_out(row["document_id"], TUNING) for row in ROWS)
