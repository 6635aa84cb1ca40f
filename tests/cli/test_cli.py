"""The command line within: exit codes, what it loads, what it says."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ml_filter import __version__
from ml_filter.cli import app

COMMANDS = sorted(command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands)
KEY = "sk-the-very-secret-key"


def ml_filter(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ml-filter")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}
    )


class _Chatter(BaseHTTPRequestHandler):
    """A model that scores pages, but not those that speak of the weather."""

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
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Chatter) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.fixture
def pages(tmp_path: Path) -> str:
    path = tmp_path / "pages.jsonl"
    texts = ["a page on cells", "a page on the weather", "a page on stars", "a page on numbers"]
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def test_version_and_overview():
    assert ml_filter("--version").stdout == f"ml-filter {__version__}\n"
    overview = ml_filter("--help")
    assert overview.returncode == 0
    assert all(command in overview.stdout for command in COMMANDS)


def test_help_of_no_command_loads_a_heavy_library():
    code = f"""
import contextlib, io, sys
from ml_filter.cli import main
for command in {["", *COMMANDS]!r}:
    sys.argv = ["ml-filter", *filter(None, [command]), "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        main()
    assert "Usage" in shown.getvalue(), command
    assert not command or f"$ ml-filter {{command}} " in shown.getvalue(), command
heavy = {{"torch", "transformers", "sklearn", "scipy", "pyarrow", "openai", "datasets", "comet_ml", "matplotlib"}}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("sample", "PAGES", "--output", "out"), "Missing option '--size'"),
        (("sample", "PAGES", "--size", "0", "--output", "out"), "Invalid value for '--size'"),
        (("sample", "PAGES", "--size", "2", "--seed", str(2**70), "--output", "out"), "seed: "),
        (("sample", "PAGES", "--size", "2", "--seed", "-1", "--output", "out"), "seed: Input should be"),
        (("annotate", "PAGES", "--prompt", "missing.yaml", "--output", "out"), "missing.yaml does not exist"),
        (("annotate", "PAGES", "--prompt", "bad.yaml", "--output", "out"), "bad.yaml: "),
        (("annotate", "PAGES", "--prompt", "educational_value", "--timeout", "0", "--output", "out"), "timeout_s: "),
        (("annotate", "nowhere.jsonl", "--prompt", "educational_value", "--output", "out"), "nowhere.jsonl does not"),
        (("annotate", "PAGES", "--prompt", "educational_value", "--output", "bad.yaml"), "cannot be a directory"),
        (("aggregate", "out", "--use", "nonsense", "--output", "scores"), "use: "),
        (("train", "PAGES", "--config", "missing.yaml", "--output", "head"), "missing.yaml does not exist"),
        (("train", "PAGES", "--config", "value.yaml", "--output", "head"), "value.yaml: train: 5 is no setting"),
        (("search", "PAGES", "--config", "value.yaml", "--output", "head"), "value.yaml: train: 5 is no setting"),
        (("train", "PAGES", "--config", "empty.yaml", "--score-range", "9", "5", "--output", "head"), "score_range"),
    ],
)
def test_bad_usage_ends_with_2_and_a_reason_on_standard_error(arguments, says, pages, tmp_path):
    (tmp_path / "bad.yaml").write_text("name: x\n")
    (tmp_path / "value.yaml").write_text("train: 5\n")
    (tmp_path / "empty.yaml").write_text("train:\n")
    done = ml_filter(*(pages if a == "PAGES" else a for a in arguments), cwd=tmp_path, COLUMNS="200")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("annotate: [prompts]\n", "wrong.yaml: annotate: ['prompts'] is no setting"),
        ("parameters: 3\n", "wrong.yaml: parameters: 3 is no setting"),
        ("votes: many\n", "wrong.yaml: votes: Input should be a valid integer"),
        ("annotate: {vots: 2}\n", "wrong.yaml: vots: Extra inputs are not permitted"),
        ("votes: 2\n", "wrong.yaml: AnnotateConfig: votes above 1 need a temperature"),
    ],
)
def test_what_is_wrong_in_a_configuration_file_is_told_with_the_files_name(content, says, pages, tmp_path):
    (tmp_path / "wrong.yaml").write_text(content)
    done = ml_filter("annotate", pages, "--config", "wrong.yaml", "--output", "out", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr, (tmp_path / "out").exists()) == (2, False, False)
    assert f"error: configuration file {says}" in done.stderr


def test_an_option_that_is_wrong_is_not_blamed_on_the_file_and_an_empty_section_is_no_error(endpoint, pages, tmp_path):
    (tmp_path / "right.yaml").write_text("annotate:\n")
    line = ("annotate", pages, "--endpoint", endpoint, "--model", "m", "--config", "right.yaml", "--output", "out")
    wrong = ml_filter(*line, "--structured", "maybe", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "error: structured: Input should be 'auto', 'on' or 'off'\n")
    assert ml_filter(*line, "--max-failed-share", "0.5", cwd=tmp_path).returncode == 0


def test_a_full_disk_is_told_and_the_same_command_finishes_once_there_is_room(tmp_path):
    rows = [{"id": f"d{i}", "text": f"page {i} " * 200} for i in range(50)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("batch", "write", "pages.jsonl", "--model", "m", "--output", "out")
    command = [str(Path(sys.executable).with_name("ml-filter")), *line]
    limited = ["bash", "-c", 'ulimit -f 60; exec "$@"', "limited", *command]  # no file above 60 kB
    full = subprocess.run(limited, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (full.returncode, "Traceback" in full.stderr) == (2, False)
    assert "File too large" in full.stderr
    assert "Free space on the disk of --output" in full.stderr
    done = ml_filter(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "requests-00000.jsonl").read_text().splitlines()) == 50


def test_failures_above_the_share_end_with_1_and_below_it_with_0(endpoint, pages, tmp_path):
    line = ("annotate", pages, "--prompt", "educational_value", "--endpoint", endpoint, "--model", "m")
    strict = ml_filter(*line, "--output", str(tmp_path / "strict"), ML_FILTER_API_KEY=KEY)
    assert strict.returncode == 1
    assert "error: 1 of 4 answers failed (unparsable_score 1), more than max_failed_share=0.05" in strict.stderr
    lenient = ml_filter(
        "--verbose", *line, "--output", str(tmp_path / "out"), "--max-failed-share", "0.25", ML_FILTER_API_KEY=KEY
    )
    assert lenient.returncode == 0
    shown = [line.split() for line in lenient.stdout.splitlines()]
    assert ["scored", "3"] in shown
    assert ["failed", "1"] in shown
    assert ["in", str(tmp_path / "out")] in shown
    assert "DEBUG" in lenient.stderr
    assert "d1: unparsable_score" in lenient.stderr
    assert "DEBUG" not in strict.stderr
    assert KEY not in strict.stderr + strict.stdout + lenient.stderr + lenient.stdout


def test_the_key_may_stand_in_a_env_file_beside_the_work_and_is_shown_nowhere(endpoint, pages, tmp_path):
    (tmp_path / ".env").write_text(f"ML_FILTER_ENDPOINT={endpoint}\nML_FILTER_MODEL=m\nML_FILTER_API_KEY={KEY}\n")
    line = ("-v", "annotate", pages, "--prompt", "educational_value", "--max-failed-share", "1", "--output", "out")
    done = ml_filter(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not any(KEY.encode() in path.read_bytes() for path in files)
