"""Which tasks of any data the model was not trained on."""

import json

import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.judging.tasks import held_out_tasks
from ml_filter.downstream.tuning.base import find_base
from ml_filter.downstream.tuning.result import read_tuned
from tests.downstream.judging.test_run import ROWS, write_tuned

TRAINED = 60
OTHER = [{"instruction": f"What is {n} squared?", "output": str(n * n)} for n in range(200)]
HELD_OUT = {row["instruction"] for row in ROWS[TRAINED:]}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


def as_messages(row):
    roles = zip(("user", "assistant"), (row["instruction"], row["output"]), strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in roles], "id": row["document_id"]}


@pytest.fixture
def model(tiny_base, tmp_path):
    """Trained on the first rows, in the layout of published data."""
    directory = tmp_path / "published" / "data" / "messages"
    rows = [{**as_messages(row), "document_id": row["document_id"]} for row in ROWS]
    write(directory / "train.jsonl", rows[:TRAINED])
    write(directory / "validation.jsonl", rows[TRAINED:])
    return read_tuned(write_tuned(tmp_path, SourceConfig(paths=[str(tmp_path / "published")]), tiny_base))


def drawn(source, model, directory):
    manifest = held_out_tasks(source, model, 1000, 0, str(directory))
    return {
        text for path in manifest.shard_paths() for text in pq.read_table(path)["text"].to_pylist()
    }, manifest.counts


def test_of_a_copy_of_the_data_in_any_layout_and_form_only_the_held_out_tasks_are_used(model, tmp_path):
    copies = {
        "as it was": model.result.source,
        "in one file": write(tmp_path / "copy.jsonl", ROWS),
        "without documents": write(tmp_path / "other.jsonl", [as_messages(row) for row in ROWS]),
        "split anew": write(tmp_path / "again" / "data" / "messages" / "validation.jsonl", map(as_messages, ROWS)),
        "other questions": write(
            tmp_path / "more.jsonl",
            [{**row, "instruction": f"{row['instruction']} Why?"} for row in ROWS[:TRAINED]] + ROWS[TRAINED:],
        ),
    }
    for name, source in copies.items():
        texts, counts = drawn(source, model, tmp_path / name)
        assert (texts, counts["trained_on"]) == (HELD_OUT, TRAINED), name


def test_what_the_base_was_tuned_on_is_not_held_out(model, tiny_base, tmp_path):
    other = write(tmp_path / "other.jsonl", [{**row, "document_id": f"other {n}"} for n, row in enumerate(OTHER)])
    base = find_base(model.root)
    tuned = read_tuned(write_tuned(tmp_path / "again", other, tiny_base, base.trained_on))
    texts, _ = drawn(write(tmp_path / "all.jsonl", [*ROWS, *OTHER]), tuned, tmp_path / "tasks")
    assert {row["instruction"] for row in ROWS} & texts == HELD_OUT
    assert 0 < len(texts - HELD_OUT) < len(OTHER)


def test_of_other_data_every_task_is_used(model, tmp_path):
    texts, counts = drawn(write(tmp_path / "quiz.jsonl", OTHER), model, tmp_path / "tasks")
    assert texts == {row["instruction"] for row in OTHER}
    assert counts["trained_on"] == 0
