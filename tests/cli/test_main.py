"""The `ml-filter` commands: exit codes, messages and help, and every stage one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from ml_filter import __version__
from ml_filter.cli import app, main
from ml_filter.cli.feature import batch
from tests.unreachable import URL as UNREACHABLE

COMMANDS = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
BATCH_COMMANDS = [command.callback.__name__ for command in batch.registered_commands]
KEY = "sk-the-very-secret-key"
STAGES = ("sample", "annotate", "aggregate", "train", "evaluate", "score", "filter")


class _Annotator(BaseHTTPRequestHandler):
    """A model that scores pages, except pages about the weather."""

    def do_POST(self) -> None:
        question = self.rfile.read(int(self.headers["Content-Length"])).decode()
        text = "Who knows?" if "weather" in question else "Fine. Score: 3"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        content = json.dumps({"id": "c", "object": "chat.completion", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Annotator) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.fixture
def pages(tmp_path: Path) -> str:
    path = tmp_path / "pages.jsonl"
    texts = ["a page on cells", "a page on the weather", "a page on stars", "a page on numbers"]
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


# --- Help ------------------------------------------------------------------------------------------------------------


def test_version_and_overview(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ml-filter {__version__}\n"
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(command in overview for command in COMMANDS)


@pytest.mark.parametrize("arguments", [[name] for name in COMMANDS] + [["batch", name] for name in BATCH_COMMANDS])
def test_help_has_examples_and_output_is_always_a_directory(arguments, capsys, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    assert main([*arguments, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"$ ml-filter {' '.join(arguments)} " in text
    assert all(" DIR " in line for line in text.splitlines() if "--output" in line and "-o " in line)


def test_every_option_and_argument_has_a_help_text():
    commands = {**get_command(app).commands, **get_command(batch).commands}
    parameters = [(name, parameter) for name, command in commands.items() for parameter in command.params]
    assert not [(name, p.name) for name, p in parameters if not getattr(p, "help", None)]


@pytest.mark.slow
def test_help_loads_no_heavy_library():
    code = f"""
import contextlib, io, sys
from ml_filter.cli import main
for command in {["", *COMMANDS]!r}:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*filter(None, [command]), "--help"]) == 0
heavy = {{"torch", "transformers", "sklearn", "scipy", "pyarrow", "openai", "datasets", "comet_ml", "matplotlib"}}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- Bad usage and input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["sample", "PAGES"], "Missing option '--output'"),
        (["sample", "PAGES", "--output", "out"], "missing option --size"),
        (["sample", "PAGES", "--size", "0", "--output", "out"], "Invalid value for '--size'"),
        (["sample", "PAGES", "--size", "2", "--seed", str(2**70), "--output", "out"], "--seed: "),
        (["sample", "PAGES", "--size", "2", "--seed", "-1", "--output", "out"], "Invalid value for '--seed'"),
        (["sample", "nowhere.jsonl", "--size", "5", "-o", "out"], "nowhere.jsonl does not exist"),
        (["sample", "PAGES", "--size", "5", "--by", "host", "-o", "out"], "cannot stratify by 'host'"),
        (["annotate", "PAGES", "--prompt", "missing.yaml", "--output", "out"], "missing.yaml does not exist"),
        (["annotate", "PAGES", "--prompt", "bad.yaml", "--output", "out"], "bad.yaml: "),
        (["annotate", "PAGES", "--prompt", "nonsense", "-o", "out"], "unknown prompt 'nonsense'"),
        (["annotate", "PAGES", "--endpoint", "http://x", "-o", "out"], "--model"),
        (["annotate", "PAGES", "--timeout", "0", "--output", "out"], "--timeout: Input should be greater than 0"),
        (["annotate", "PAGES", "--structured", "maybe", "-o", "out"], "--structured: Input should be 'auto', 'on' or"),
        (["annotate", "PAGES", "--votes", "2", "-o", "out"], "error: --votes: votes above 1 need a temperature"),
        (["annotate", "PAGES", "--config", "votes.yaml", "-o", "out"], "file votes.yaml: votes above 1 need a temper"),
        (["annotate", "PAGES", "--config", "typo.yaml", "-o", "out"], "unknown key 'vots' (did you mean 'votes'?)"),
        (["annotate", "nowhere.jsonl", "--prompt", "educational_value", "--output", "out"], "nowhere.jsonl does not"),
        (["annotate", "PAGES", "--prompt", "educational_value", "--output", "bad.yaml"], "cannot be a directory"),
        (["aggregate", "nowhere", "-o", "out"], "nowhere does not exist"),
        (["aggregate", "nowhere", "--method", "average", "-o", "out"], "--method: Input should be 'mean'"),
        (["train", "PAGES", "--config", "missing.yaml", "--output", "head"], "missing.yaml does not exist"),
        (["train", "PAGES", "--label-column", "score", "-o", "out"], "no column 'score'"),
        (["score", "nowhere", "PAGES", "-o", "out"], "nowhere has no trained head"),
        (["filter", "PAGES", "--min-score", "3", "-o", "out"], "has no column 'score'"),
    ],
)
def test_bad_usage_and_input_end_with_exit_code_2_and_a_reason(
    arguments, message, pages, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    Path("bad.yaml").write_text("name: x\n")
    Path("votes.yaml").write_text("annotate: {votes: 2}\n")
    Path("typo.yaml").write_text("annotate: {vots: 2}\n")
    assert main([pages if argument == "PAGES" else argument for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "PAGES", "--size", "2", "-o", "URL"],
        ["aggregate", "URL", "-o", "out"],
        ["rank", "URL", "--by", "disagreement", "--size", "2", "-o", "out"],
        ["agreement", "URL", "-o", "out"],
        ["publish", "URL", "-o", "out"],
        ["filter", "URL", "--min-score", "3", "-o", "out"],
        ["report", "URL"],
        ["convert", "URL", "--to", "eurolingua", "-o", "out"],
        ["score", "URL", "PAGES", "-o", "out"],
        ["evaluate", "URL", "PAGES", "--label-column", "text", "-o", "out"],
        ["cascade", "URL", "PAGES", "-o", "out"],
        ["push-model", "URL", "--repo", "owner/name"],
        ["serve", "URL", "--port", "0"],
    ],
)
def test_an_unreachable_url_ends_with_exit_code_2_and_its_cause(arguments, pages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = {"PAGES": pages, "URL": UNREACHABLE}
    assert main([words.get(argument, argument) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {UNREACHABLE}")
    assert "cannot be reached (ConnectionError: no route to host)" in line


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_same_command_finishes_once_there_is_room(tmp_path, monkeypatch, capsys):
    rows = [{"id": f"d{i}", "text": f"page {i} " * 200} for i in range(50)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["batch", "write", "pages.jsonl", "--model", "m", "--output", "out"]
    command = [sys.executable, "-m", "ml_filter.cli", *line]
    limited = ["bash", "-c", 'ulimit -f 60; exec "$@"', "limited", *command]  # no file above 60 kB
    full = subprocess.run(limited, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (full.returncode, "Traceback" in full.stderr) == (2, False)
    assert "File too large" in full.stderr
    assert "Free space on the disk of --output" in full.stderr
    monkeypatch.chdir(tmp_path)
    assert main(line) == 0, capsys.readouterr().err
    assert len((tmp_path / "out" / "requests-00000.jsonl").read_text().splitlines()) == 50


# --- Results ---------------------------------------------------------------------------------------------------------


def test_failures_above_the_tolerated_share_end_with_1_and_below_it_with_0(
    endpoint, pages, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("ML_FILTER_API_KEY", KEY)
    line = ["annotate", pages, "--prompt", "educational_value", "--endpoint", endpoint, "--model", "m"]
    assert main([*line, "--output", str(tmp_path / "strict")]) == 1
    strict = capsys.readouterr()
    assert "1 of 4 answers failed (unparsable_score 1), more than max_failed_share=0.05" in strict.err
    assert main(["--verbose", *line, "--output", str(tmp_path / "out"), "--max-failed-share", "0.25"]) == 0
    lenient = capsys.readouterr()
    shown = [line.split() for line in lenient.out.splitlines()]
    assert ["scored", "3"] in shown
    assert ["failed", "1"] in shown
    assert ["in", str(tmp_path / "out")] in shown
    assert "d1: unparsable_score" in lenient.err
    assert "DEBUG" in lenient.err
    assert "DEBUG" not in strict.err
    assert KEY not in strict.err + strict.out + lenient.err + lenient.out


def test_the_key_can_be_in_an_env_file_and_appears_in_no_output(endpoint, pages, tmp_path, monkeypatch, capsys):
    (tmp_path / ".env").write_text(f"ML_FILTER_ENDPOINT={endpoint}\nML_FILTER_MODEL=m\nML_FILTER_API_KEY={KEY}\n")
    monkeypatch.chdir(tmp_path)
    line = ["-v", "annotate", pages, "--prompt", "educational_value", "--max-failed-share", "1", "--output", "out"]
    assert main(line) == 0
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not any(KEY.encode() in path.read_bytes() for path in files)


@pytest.mark.model
def test_the_commands_run_from_documents_to_a_filtered_corpus_without_zenml(documents, small_encoder, tmp_path, capsys):
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps({**row, "text": row["text"][:200]}) + "\n" for row in documents))
    step = {name: str(tmp_path / name) for name in STAGES}
    for line in [
        ["sample", str(source), "--size", "30", "--output", step["sample"]],
        ["annotate", step["sample"], "--prompt", "educational_value_small", "--output", step["annotate"]],
        ["aggregate", step["annotate"], "--output", step["aggregate"]],
        ["train", step["aggregate"], "--encoder", small_encoder, "--max-tokens", "64", "--output", step["train"]],
        ["score", step["train"], str(source), "--output", step["score"]],
        ["evaluate", step["train"], step["score"], "--label-column", "score", "--output", step["evaluate"]],
        ["filter", step["score"], "--min-score", "1", "--output", step["filter"]],
    ]:
        assert main(line) == 0, capsys.readouterr().err
        assert line[-1] in capsys.readouterr().out.replace("\n", "")
    kept = pq.read_table(tmp_path / "filter" / "shards")
    scored = pq.read_table(tmp_path / "score" / "shards")
    assert kept.num_rows == sum(score >= 1 for score in scored["score"].to_pylist())
