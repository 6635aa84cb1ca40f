"""Benchmarks of a model: when they are run, and what is checked before."""

import json
from pathlib import Path

import pytest

from ml_filter.documents.manifest import Parent
from ml_filter.downstream.benchmarks.config import BenchmarkConfig
from ml_filter.downstream.benchmarks.measure import Benchmarks, read_results
from ml_filter.errors import ConfigError
from tests.downstream.tuning.conftest import tiny_base  # noqa: F401 - a fixture

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def write_task(root: Path, name: str, answers: list[int]) -> str:
    """A directory with a task about two-letter words, whose data is elsewhere."""
    rows = [{"text": f"{n} is", "choices": ["a lot", "few"], "answer": answer} for n, answer in enumerate(answers)]
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks").mkdir(exist_ok=True)
    (root / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, data=root / f"{name}.jsonl"))
    return str(root / "tasks")


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # lm-eval's own warnings
def test_a_task_is_run_again_only_if_its_files_have_changed(tiny_base, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    weights = Parent(path="tiny", digest="0")

    def measured(answers):
        directory = write_task(tmp_path, "amounts", answers)
        benchmarks = Benchmarks(BenchmarkConfig(lm_eval_tasks=["amounts"], lm_eval_directory=directory))
        return benchmarks.measure(tiny_base, weights, str(tmp_path / "out-{digest}"))

    first = measured([0, 1, 0, 0])
    result = read_results(first)["amounts/acc"]
    assert result.value == sum(result.by_question.values()) / 4
    written = Path(first.shard_paths()[0]).stat().st_mtime_ns
    assert measured([0, 1, 0, 0]).root == first.root
    assert Path(first.shard_paths()[0]).stat().st_mtime_ns == written
    turned = read_results(measured([1, 0, 1, 1]))["amounts/acc"]
    assert turned.by_question == {question: 1 - value for question, value in result.by_question.items()}


def test_two_tables_of_one_name_are_an_error(tmp_path):
    (tmp_path / "amounts.jsonl").write_text(json.dumps({"question": "?", "choices": ["a", "b"], "answer": 0}))
    table = str(tmp_path / "amounts.jsonl")
    with pytest.raises(ConfigError, match="another benchmark has the name amounts, too; rename"):
        Benchmarks(BenchmarkConfig(multiple_choice=[table, table]))
