"""The `ml-filter` command line, as a user calls it."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

STAGES = ("sample", "annotate", "aggregate", "train", "evaluate", "score", "filter")


def ml_filter(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ml_filter.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_files_go_the_whole_way_without_zenml(documents, tmp_path):
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps({**row, "text": row["text"][:1000]}) + "\n" for row in documents))
    step = {name: str(tmp_path / name) for name in STAGES}
    calls = [
        ("sample", str(source), "--size", "30", "--output", step["sample"]),
        ("annotate", step["sample"], "--prompt", "educational_value_small", "--output", step["annotate"]),
        ("aggregate", step["annotate"], "--output", step["aggregate"]),
        ("train", step["aggregate"], "--output", step["train"]),
        ("score", step["train"], str(source), "--output", step["score"]),
        ("evaluate", step["train"], step["score"], "--label-column", "score", "--output", step["evaluate"]),
        ("filter", step["score"], "--min-score", "1", "--output", step["filter"]),
    ]
    for call in calls:
        done = ml_filter(*call)
        assert done.returncode == 0, done.stderr
        assert call[-1] in done.stdout
    kept = pq.read_table(tmp_path / "filter" / "shards")
    scored = pq.read_table(tmp_path / "score" / "shards")
    assert kept.num_rows == sum(score >= 1 for score in scored["score"].to_pylist())
    assert "zenml" not in ml_filter("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sample", "nowhere.jsonl", "--size", "5", "-o", "OUT"), "nowhere.jsonl does not exist"),
        (("sample", "FILE", "--size", "5", "--by", "host", "-o", "OUT"), "cannot stratify by 'host'"),
        (("annotate", "FILE", "--prompt", "nonsense", "-o", "OUT"), "unknown prompt 'nonsense'"),
        (("annotate", "FILE", "--prompt", "educational_value", "--endpoint", "http://x", "-o", "OUT"), "--model"),
        (("aggregate", "nowhere", "-o", "OUT"), "nowhere holds no manifest.json"),
        (("aggregate", "nowhere", "--method", "average", "-o", "OUT"), "method: Input should be 'mean'"),
        (("train", "FILE", "--label-column", "score", "-o", "OUT"), "no label column 'score'"),
        (("score", "nowhere", "FILE", "-o", "OUT"), "nowhere holds no trained head"),
        (("filter", "FILE", "--min-score", "3", "-o", "OUT"), "has no column 'score'"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_the_reason(arguments, says, tmp_path):
    file = tmp_path / "file.jsonl"
    file.write_text('{"id": "a", "text": "hello"}\n')
    places = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    done = ml_filter(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
