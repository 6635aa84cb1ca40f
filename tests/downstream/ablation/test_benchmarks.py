"""Tasks of lm-eval on the models of an ablation."""

import json
from pathlib import Path

import pytest

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.ablation.benchmarks import figures_by_model, run_tasks
from tests.downstream.ablation.corpora import small_config, text_of, write_gold

pytestmark = pytest.mark.model

TASK = """
task: which_language
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A task with four questions: which words go on in the language of the text?"""
    rows = [
        {"text": text_of("good", n), "choices": [text_of("good", 100 + n, 3), text_of("bad", n, 3)], "answer": 0}
        for n in range(4)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "which_language.yaml").write_text(TASK.format(data=data))
    return directory


@pytest.mark.filterwarnings("ignore")  # lm-eval's own warnings
def test_task_by_name_gives_its_figures_and_is_not_run_again(job, tasks, tmp_path, monkeypatch):
    from ml_filter.downstream.ablation.training import train_model

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    train_model(job)
    settings = {"lm_eval_tasks": ["which_language"], "lm_eval_directory": str(tasks)}
    config = small_config(write_gold(tmp_path / "g.jsonl"), **settings)
    arms = Manifest(kind="ablation-arms", root=str(tmp_path))
    done = run_tasks(arms, [job.name], config, str(tmp_path / "lm-eval"))
    assert figures_by_model(done)[job.name]["which_language/acc"] == 1.0
    (tasks / "which_language.yaml").unlink()
    assert run_tasks(arms, [job.name], config, str(tmp_path / "lm-eval")).digest == done.digest
