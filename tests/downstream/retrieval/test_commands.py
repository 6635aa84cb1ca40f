"""The commands on the real encoder and the embedded model."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
import pytest

from ml_filter.cli import main
from ml_filter.downstream.retrieval.answer import NO_CONTEXT


def test_bad_usage_ends_with_exit_code_2_and_a_reason(index_directory, tmp_path, capsys):
    for arguments, message in (
        (["ask", str(index_directory)], "give a QUESTION or --serve\n"),
        (["ask", str(index_directory), "What?", "--serve"], "give a QUESTION or --serve, not both"),
        (["ask", str(index_directory), " "], "QUESTION is empty"),
        (["ask", str(tmp_path), "What?"], "holds no manifest.json"),
        (["ask", str(tmp_path / "no"), "What?"], f"{tmp_path / 'no'} does not exist"),
        (["ask", str(index_directory), "What?", "--where", "color=red"], "the index has no column 'color'"),
        (["ask", str(index_directory), "What?", "--prompt", "none"], "unknown answer prompt 'none'; use one of answer"),
        (["evaluate-retrieval", str(index_directory), "-o", "x"], "give QUESTIONS or --generate"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_answers_are_served_until_sigterm(index_directory, llm):
    server = llm(lambda body: "Helium [1].")
    command = ["ask", str(index_directory), "--serve", "--port", "0", "--endpoint", server.url, "--model", "m"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ml_filter.cli", *command, "--mode", "bm25", "--min-similarity", "-1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    url = line.split(" at ")[1].strip()
    with httpx.stream("POST", f"{url}/ask", json={"question": "hydrogen", "stream": True}, timeout=60) as response:
        text = "".join(response.iter_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()
    assert line.startswith(f"answers from {index_directory} at http://127.0.0.1:")
    assert 'event: text\ndata: "Helium [1]."' in text


@pytest.mark.model
def test_documents_are_indexed_found_and_answered_from(corpus, tmp_path, capsys):
    index = str(tmp_path / "index")
    assert main(["index", str(corpus), "--output", index]) == 0
    assert "passages 4" in " ".join(capsys.readouterr().out.split())
    assert main(["ask", index, "Why do suns glow?", "--passages-only", "--min-similarity", "0.1"]) == 0
    assert capsys.readouterr().out.startswith("[1] https://example.org/stars (0.")
    assert main(["ask", index, "How are loaves made from dough?", "--limit", "2"]) == 0
    assert "[1] bread, https://example.org/bread" in capsys.readouterr().out
    assert main(["ask", index, "Which parliament passed the tariff act?"]) == 0
    assert capsys.readouterr().out.strip() == NO_CONTEXT
