"""Runs that are repeated, from a step and with other settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from tools import rerun as task
from tools.run import main

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings


@dataclass
class Corpus:
    """Labelled documents in two files, and a head trained on them."""

    directory: Path
    name: str = ""

    @property
    def overrides(self) -> list[str]:
        return [
            f"head={self.directory}/head",
            f"source.paths=['{self.directory}/corpus.jsonl']",
            "filter.min_score=0",
            f"output={self.directory}/runs",
        ]


@pytest.fixture(scope="module")
def corpus(store, tmp_path_factory, documents) -> Corpus:
    directory = tmp_path_factory.mktemp("corpus")
    rows = [{"id": row["id"], "text": f"{i} {row['text'][:300]}", "label": i % 5} for i, row in enumerate(documents)]
    for name, part in (("labels", rows[:40]), ("gold", rows[40:])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (directory / "corpus.jsonl").write_bytes((directory / "gold.jsonl").read_bytes())
    settings = TrainConfig(kind="hashing", label_column="label")
    train_head(SourceConfig(paths=[str(directory / "labels.jsonl")]), settings, directory / "head")
    return Corpus(directory)


@pytest.fixture
def rerun(capsys):
    """Repeat a run; returns the exit code and what is printed."""

    def run_again(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = task.main(arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run_again


def latest_run() -> Any:
    from zenml.client import Client

    run = next(iter(Client().list_pipeline_runs(size=1, sort_by="desc:created")))
    return Client().get_pipeline_run(run.id)


def statuses(run: Any) -> dict[str, str]:
    return {name: step.status.value for name, step in run.steps.items()}


@pytest.fixture(scope="module")
def nightly(corpus) -> str:
    """The name of a finished run."""
    assert main(["scoring", *corpus.overrides, "--run-name", "nightly"]) == 0
    return latest_run().name


def test_a_run_and_its_rerun_are_repeated_from_a_step_with_another_setting(nightly, corpus, rerun):
    scored = {path: path.stat().st_mtime_ns for path in corpus.directory.glob("runs/scored-*/**/*.parquet")}
    assert nightly.startswith("nightly-")
    name = nightly
    for threshold in (4.5, 4.6):
        code, printed = rerun(
            name, "--from", "filter_corpus", f"filter.min_score={threshold}", "--run-name", "stricter"
        )
        assert code == 0, printed
        again = latest_run()
        assert again.original_run.name == name
        assert again.config.parameters["config"]["filter"] == {"min_score": threshold}
        name = again.name
    assert name.startswith("stricter-")
    assert f"{name}: completed" in printed
    assert statuses(again) == {
        "load_head": "skipped",
        "score_corpus": "skipped",
        "filter_corpus": "completed",
        "track_run": "completed",
        "write_report": "completed",
    }
    assert {path: path.stat().st_mtime_ns for path in scored} == scored
    assert len([*corpus.directory.glob("runs/filtered-*")]) == 3
    code, printed = rerun("stricter")
    assert code == 2
    assert "error: several runs match 'stricter'; give more of the name: stricter-" in printed


def test_a_failed_run_goes_on_from_the_step_that_failed(corpus, run, rerun, tmp_path):
    late = tmp_path / "late"
    late.mkdir()
    code, printed = run("scoring", *corpus.overrides, f"source.paths=['{late}']", "--run-name", "late")
    assert code == 2
    failed = latest_run().name
    (late / "gold.jsonl").write_bytes((corpus.directory / "gold.jsonl").read_bytes())
    code, printed = rerun(failed, "--from", "filter_corpus")
    assert (code, printed.splitlines()[-1]) == (
        2,
        f"error: score_corpus of {failed} returned nothing to reuse; use --from score_corpus",
    )
    code, printed = rerun(failed, "--from", "score_corpus")
    assert code == 0, printed
    assert statuses(latest_run())["load_head"] == "skipped"


def test_a_head_that_is_evaluated_again_becomes_a_version_with_this_head(corpus, run, rerun):
    from zenml.client import Client

    labels, gold = (f"['{corpus.directory}/{name}.jsonl']" for name in ("labels", "gold"))
    settings = ["train.kind=hashing", "train.label_column=label", "gold_label_column=label"]
    code, printed = run(
        "training", f"labels.paths={labels}", f"gold.paths={gold}", *settings, f"output={corpus.directory}/runs"
    )
    assert code == 0, printed
    promote = "promote={min_agreement: -1, min_documents: 10}"
    code, printed = rerun(latest_run().name, "--from", "evaluate_head", promote)
    assert code == 0, printed
    assert statuses(latest_run()) | {"train_head": "skipped", "promote_head": "completed"} == statuses(latest_run())
    versions = Client().list_model_versions(model="educational_value_head", hydrate=True).items
    assert [(version.number, version.stage) for version in versions] == [(1, None), (2, "staging")]
    assert versions[1].get_artifact("head").id == versions[0].get_artifact("head").id
    assert versions[1].run_metadata["lineage"] == versions[0].run_metadata["lineage"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "unknown run 'nowhere'; the latest runs: "),
        (["nightly", "--from", "filter"], "has no step 'filter'; its steps: load_head, score_corpus, filter_corpus"),
        (["nightly", "filter.min_scor=1"], "filter.min_scor: unknown key 'min_scor' (did you mean 'min_score'?)"),
        (
            ["nightly", "--from", "filter_corpus", "head=x"],
            "--from filter_corpus reuses the output of load_head, whose settings change; use --from load_head",
        ),
        (["nightly", "--server"], "this ZenML server starts no runs (ZenML Pro does"),
    ],
)
def test_what_cannot_be_repeated_ends_with_exit_code_2_and_says_why(nightly, arguments, message, rerun):
    from zenml.client import Client

    before = Client().list_pipeline_runs(size=1).total
    code, printed = rerun(*arguments)
    assert code == 2
    assert message in printed
    assert "Traceback" not in printed
    assert Client().list_pipeline_runs(size=1).total == before
