"""The command and the pipeline of instruction data, also killed in the middle."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ml_filter.cli import main
from ml_filter.documents.manifest import read_manifest
from ml_filter.downstream.instruct.report import read_report
from tests.annotation.misbehaving import Reply
from tests.downstream.instruct.author import PAGES, sensible
from tests.pipelines.conftest import _source_root, run, store  # noqa: F401 - fixtures


@pytest.fixture
def pages(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(page) + "\n" for page in PAGES))
    return str(path)


def arguments(pages: str, server, output: Path) -> list[str]:
    options = ["--endpoint", server.url, "--model", "m", "--max-concurrency", "2", "--license", "odc-by"]
    return ["instruct", pages, *options, "--output", str(output)]


def only(pattern: str, directory: Path):
    [path] = directory.glob(pattern)
    return read_manifest(path)


def test_the_command_prints_what_each_stage_kept_and_dropped(serve, tmp_path, pages, capsys):
    server = serve(sensible)
    assert main(arguments(pages, server, tmp_path / "out")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "triples-0 8 refusal 1, number not in source 3" in printed
    report = read_report(only("report-*", tmp_path / "out"))
    assert f"{report.instructions:,} instructions, 0 preference pairs, {15 * len(server.requests):,} tokens" in printed


def test_a_wrong_setting_is_one_line_before_anything_is_asked(serve, tmp_path, pages, capsys):
    server = serve(sensible)
    wrong = ["--set", "write.prompt=nothing_of_the_kind"]
    assert main([*arguments(pages, server, tmp_path / "out"), *wrong]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: unknown generation prompt 'nothing_of_the_kind'; use one of compare_answers, ")
    assert server.requests == []


@pytest.mark.slow
def test_a_killed_run_continues_pays_for_nothing_twice_and_ends_the_same(serve, tmp_path, pages):
    whole = serve(sensible)
    assert main(arguments(pages, whole, tmp_path / "whole")) == 0
    process: list[subprocess.Popen] = []

    def killing(request):
        if len(killed.requests) == 9 and process:  # while instructions are evolved
            process.pop().send_signal(signal.SIGKILL)
        return Reply(sensible(request), delay_s=0.05)

    killed = serve(killing)
    command = [sys.executable, "-m", "ml_filter.cli", *arguments(pages, killed, tmp_path / "killed")]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    process.append(child)
    assert child.wait(timeout=120) == -signal.SIGKILL
    assert main(arguments(pages, killed, tmp_path / "killed")) == 0
    shards = [[shard.digest for shard in only("data-*", tmp_path / name).shards] for name in ("whole", "killed")]
    assert shards[0] == shards[1] != []
    assert len(whole.requests) <= len(killed.requests) <= len(whole.requests) + 2  # only those in flight are repeated


@pytest.mark.slow
@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")  # ZenML's own
def test_the_pipeline_makes_what_the_command_makes(serve, tmp_path, pages, run):  # noqa: F811
    server = serve(sensible)
    write = {"endpoints": [server.url], "model": "m", "max_concurrency": 2}
    prefer = {"answerers": [write, {**write, "temperature": 1.0}], "judge": write}
    instruct = {"write": write, "prefer": prefer, "publish": {"license": "odc-by"}}
    parameters = {"source": {"paths": [pages]}, "instruct": instruct, "output": str(tmp_path / "runs")}
    config = tmp_path / "instruct.yaml"
    config.write_text(json.dumps({"parameters": parameters}))
    assert main(["instruct", pages, "--config", str(config), "--output", str(tmp_path / "out")]) == 0
    asked = len(server.requests)
    code, printed = run("instruct", "--config", str(config))
    assert code == 0, printed
    assert len(server.requests) == 2 * asked
    made = [only("data-*", tmp_path / name) for name in ("out", "runs")]
    assert [shard.digest for shard in made[0].shards] == [shard.digest for shard in made[1].shards]
    assert "data/preferences/train.parquet" in [shard.path for shard in made[1].shards]

    from zenml.client import Client

    steps = Client().get_pipeline("instruct").last_successful_run.steps
    assert steps["publish_instructions"].output.load().digest == made[1].digest
    assert {name for outputs in steps.values() for name in outputs.outputs} == {
        *("chunks", "written_instructions", "evolved_instructions", "rated_instructions", "instruction_data"),
        *("preferences", "instruct_report", "instruct_page", "tracking"),
    }
