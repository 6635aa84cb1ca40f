"""lm-eval on a tuned model and its base, beside what transformers alone says."""

import json
from statistics import mean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.judging.run import judge_tuned
from ml_filter.downstream.tuning.base import find_base
from tests.downstream.benchmarks.test_measure import write_task
from tests.downstream.judging.test_run import ROWS, SETTINGS, TUNING, configured, judge, write_tuned
from tests.downstream.tuning.tiny import write_noisy

QUESTIONS = [
    {"question": f"What comes after {n}?", "choices": [f"the number {n + 1}", f"{n}{n}", "no"], "answer": n % 3}
    for n in range(12)
]


@pytest.fixture
def tuned(tiny_base, tmp_path) -> str:
    """The tiny base with noise on its weights."""
    write_noisy(tiny_base, tmp_path / "tuned" / "model", seed=1)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return write_tuned(
        tmp_path,
        SourceConfig(paths=[str(data)]),
        tiny_base,
        config=TUNING.model_copy(update={"base": str(tiny_base)}),
        base=find_base(str(tiny_base)).parent,
    )


def accuracies(directory, tokenizer) -> dict[str, float]:
    """The share of questions whose right choice is the most probable, in all and for each of its characters."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for row in QUESTIONS:
        messages = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start, sums = len(tokenizer(prompt)["input_ids"]), []
        for choice in row["choices"]:
            ids = torch.tensor([tokenizer(prompt + choice)["input_ids"]])
            with torch.inference_mode():
                logs = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            sums.append(float(logs.gather(1, ids[0, start:, None]).sum()))
        by_character = [total / len(choice) for total, choice in zip(sums, row["choices"], strict=True)]
        for name, values in (("acc", sums), ("acc_norm", by_character)):
            right[name].append(values.index(max(values)) == row["answer"])
    return {name: mean(values) for name, values in right.items()}


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # lm-eval's own warnings
def test_tasks_and_multiple_choice_of_both_models_are_run_once(serve, tuned, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("".join(json.dumps(row) + "\n" for row in [*QUESTIONS, {**QUESTIONS[0], "answer": "none"}]))
    directory = write_task(tmp_path, "amounts", [0, 1, 0])
    settings = {"lm_eval_tasks": ["amounts"], "lm_eval_directory": directory, "multiple_choice": [str(quiz)]}
    config, servers = configured(serve, judge, rating_prompt=None, size=10, **settings)
    judgement, manifest = judge_tuned(tuned, config, str(tmp_path / "out"), settings=SETTINGS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tuned" / "model")
    for side, model in (("base", tiny_base), ("tuned", tmp_path / "tuned" / "model")):
        figures = {name: judgement.figures[f"{side}_quiz/{name}"] for name in ("acc", "acc_norm")}
        assert {name: figure.value for name, figure in figures.items()} == pytest.approx(accuracies(model, tokenizer))
    change = judgement.figures["change_quiz/acc"]
    assert change.low <= change.value <= change.high
    assert judgement.figures["base_amounts/acc"].documents == 3
    assert f"rows of {quiz} are not used: not_a_question 1" in judgement.warnings
    [listed] = {path.read_text() for path in (tmp_path / "out").glob("lm-eval-*/rejects.jsonl")}
    assert json.loads(listed)["place"] == "line 13"
    assert "quiz/acc_norm" in (tmp_path / "out" / manifest.root / "report.html").read_text()

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("lm-eval-*/*")}
    requests = sum(len(server.requests) for server in servers.values())
    priced = config.judge.model_copy(
        update={"usd_per_million_prompt_tokens": 1, "usd_per_million_completion_tokens": 1}
    )
    again, _ = judge_tuned(tuned, config.model_copy(update={"judge": priced}), str(tmp_path / "out"), settings=SETTINGS)
    assert (judgement.usd, again.usd) == (None, judgement.judge_tokens / 1e6), "a corrected price is shown"
    assert again.figures == judgement.figures
    assert sum(len(server.requests) for server in servers.values()) == requests
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("lm-eval-*/*")} == written
