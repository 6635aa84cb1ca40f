"""Which rows of a table are questions."""

import json

import pytest

from ml_filter.documents.rejects import RejectsLog
from ml_filter.downstream.benchmarks.questions import question_of, read_questions, task_name
from ml_filter.errors import InputError

COLORS = ["red", "blue", "green"]


def row(**changes) -> dict:
    return {"question": "Which color has the sky?", "choices": COLORS, "answer": 1, **changes}


@pytest.mark.parametrize("changes", [{}, {"answer": "blue"}, {"answer": "1"}, {"choices": json.dumps(COLORS)}])
def test_the_answer_is_an_index_or_the_text_of_a_choice(changes):
    assert question_of(row(**changes)) == ("Which color has the sky?", COLORS, 1)


def test_text_that_is_a_choice_is_not_an_index():
    assert question_of(row(choices=["1", "2"], answer="1")).answer == 0
    assert question_of(row(choices=["1", "2"], answer=1)).answer == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": " "}, "question has no text"),
        ({"choices": "red, blue"}, "choices is not a list"),
        ({"choices": ["red", None]}, "choices is not a list of texts"),
        ({"choices": ["red"]}, "fewer than two"),
        ({"choices": ["red", "red"]}, "one of them twice"),
        ({"answer": 3}, "answer is 3, neither one of the choices nor an index from 0 to 2"),
        ({"answer": -1}, "answer is -1"),
        ({"answer": True}, "answer is True"),
        ({"answer": "black"}, "answer is 'black'"),
        ({"answer": None}, "answer is None"),
    ],
)
def test_other_rows_are_not_questions(changes, reason):
    with pytest.raises(ValueError, match=reason):
        question_of(row(**changes))


def test_rows_that_are_not_questions_are_counted_with_their_location(tmp_path):
    rows = [json.dumps(row()), json.dumps(row(answer=7)), "{damaged", json.dumps(row(answer="red"))]
    (tmp_path / "quiz.jsonl").write_text("\n".join(rows))
    with RejectsLog(tmp_path / "rejects.jsonl") as rejects:
        questions = read_questions(str(tmp_path / "quiz.jsonl"), rejects)
    assert [question.answer for question in questions] == [1, 0]
    listed = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["place"], reject["reason"]) for reject in listed] == [
        ("line 2", "not_a_question"),
        ("line 3", "invalid_json"),
    ]


def test_a_csv_file_has_the_choices_as_json(tmp_path):
    (tmp_path / "quiz.csv").write_text('question,choices,answer\nWhich?,"[""a"", ""b""]",1\n')
    assert read_questions(str(tmp_path / "quiz.csv"), RejectsLog()) == [("Which?", ["a", "b"], 1)]


def test_a_table_without_a_question_is_an_error(tmp_path):
    (tmp_path / "quiz.jsonl").write_text(json.dumps(row(answer=7)))
    with pytest.raises(InputError, match=r"has no question: not_a_question 1 \(.*quiz\.jsonl, line 1: answer is 7"):
        read_questions(str(tmp_path / "quiz.jsonl"), RejectsLog())


def test_the_name_of_a_task_is_that_of_the_file():
    assert task_name("data/my quiz.jsonl.gz") == "my_quiz"
