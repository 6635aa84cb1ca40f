"""Commands that combine annotations of several annotators and older formats, from the command line to the files."""

import json

import pytest
from typer.testing import CliRunner

from ml_filter.cli import app
from tests.written import prompt, write_annotations


def ml_filter(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def pages(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": f"page {n}", "human": n % 5}) + "\n" for n in range(20)))
    return path


def test_older_file_becomes_scores_and_the_next_documents_to_annotate(pages, tmp_path):
    annotations, scores = tmp_path / "people", tmp_path / "scores"
    out = ml_filter(
        "convert", pages, "--to", "annotations", "--prompt", "edu", "--score-column", "human", "-o", annotations
    )
    assert "20" in out
    others = []
    for name in ("good", "lazy"):
        votes = [(f"d{n}", float(n % 5) if name == "good" else 1.0) for n in range(20)]
        asked = [{**prompt("edu"), "digest": name}]
        others.append(write_annotations(tmp_path / name, votes, name, asked, pages))
    out = ml_filter("aggregate", annotations, *others, "--method", "dawid-skene", "--output", scores)
    assert out.index("good") < out.index("lazy")  # the most reliable first
    ml_filter("rank", scores, "--by", "expected-value", "--size", "3", "--output", tmp_path / "next")
    ml_filter("convert", scores, "--to", "fineweb-edu", "--output", tmp_path / "flat")
    flat = (tmp_path / "flat" / "fineweb-edu.jsonl").read_text().splitlines()
    assert [json.loads(line)["int_score"] for line in flat] == [n % 5 for n in range(20)]
    ml_filter("convert", annotations, "--to", "eurolingua", "--output", tmp_path / "older")
    ml_filter("convert", tmp_path / "older" / "eurolingua.jsonl", "--to", "annotations", "--output", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "manifest.json").read_text())["counts"]["scored"] == 20
