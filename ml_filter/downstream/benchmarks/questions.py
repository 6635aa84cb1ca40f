"""Multiple choice from a table, as a task of lm-eval."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import read_records
from ml_filter.documents.rejects import RejectsLog, describe_counts
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError


class Question(NamedTuple):
    """A question, its choices, and the index of the right one."""

    question: str
    choices: list[str]
    answer: int


def questions_source(path: str) -> SourceConfig:
    """A table of questions as a source."""
    return SourceConfig(paths=[path], text_column="question")


def read_questions(path: str, rejects: RejectsLog) -> list[Question]:
    """The questions in a table of any format that is read; other rows are rejected as `not_a_question`.

    Raises:
        InputError: the table does not exist, or has no question.
    """
    questions = list(_questions(path, rejects))
    if not questions:
        detail = f" ({rejects.first})" if rejects.first else ""
        raise InputError(f"{path} has no question: {describe_counts(rejects.counts)}{detail}")
    return questions


def _questions(path: str, rejects: RejectsLog) -> Iterator[Question]:
    source = questions_source(path)
    for shard in list_shards(source)[0]:
        for location, row in read_records(shard, source, rejects):
            try:
                yield question_of(row)
            except ValueError as error:
                rejects.add(shard.uri, location, "not_a_question", str(error))


def question_of(row: Mapping[str, Any]) -> Question:
    """The question in a row. `choices` is a list, perhaps as JSON text; `answer` an index from 0, or a choice itself.

    Raises:
        ValueError: the row is not a question; says why.
    """
    question, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError("question has no text")
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            raise ValueError("choices is not a list") from None
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError("choices is not a list of texts")
    if len(set(choices)) < max(2, len(choices)):
        raise ValueError("choices has fewer than two texts, or one of them twice")
    if answer in choices:
        return Question(question, choices, choices.index(answer))
    if isinstance(answer, str) and answer.strip().isdecimal():  # CSV has no numbers
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int | float) or answer not in range(len(choices)):
        raise ValueError(f"answer is {answer!r}, neither one of the choices nor an index from 0 to {len(choices) - 1}")
    return Question(question, choices, int(answer))


def task_name(path: str) -> str:
    """The name of the task of a table, from that of its file."""
    return re.sub(r"\W+", "_", PurePosixPath(path.rstrip("/")).name.partition(".")[0])


def task_of(name: str, questions: Sequence[Question]) -> Any:
    """A task of lm-eval, which takes the choice that the model finds most probable after the question.

    The questions are given in memory: lm-eval would load a file through `load_dataset`, which reports to the Hub.
    """
    from lm_eval.api.task import ConfigurableTask

    def load(**metadata: Any) -> Any:
        from datasets import Dataset

        return {"test": Dataset.from_list([question._asdict() for question in questions])}

    config = {
        "task": name,
        "custom_dataset": load,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
    }
    logger = logging.getLogger("lm_eval.api.task")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its advice on the arguments of custom_dataset does not apply
    try:
        return ConfigurableTask(config=config)
    finally:
        logger.setLevel(level)
