"""The pipelines with real parts: the embedded annotator, the encoder, a ZenML store, real documents."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ml_filter.documents.manifest import find_manifest, read_manifest
from tests.pipelines.secrets_in import PLANTED, has_secret, leaks
from tools.run import main

pytestmark = [pytest.mark.zenml, pytest.mark.model, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings

STAGES = {
    "sample": "documents",
    "annotations": "annotations",
    "scores": "scores",
    "scored": "scored",
    "filtered": "filtered",
}


@dataclass
class Workspace:
    """The directory of the results of an end-to-end run, its overrides, and what it printed and logged."""

    runs: Path
    overrides: list[str]
    printed: str
    log: str

    def only(self, pattern: str) -> Path:
        [path] = self.runs.glob(pattern)
        return path


@pytest.fixture(scope="module")
def workspace(store, tmp_path_factory, documents) -> Workspace:
    """The workspace after one end-to-end run on sixty short documents, one of them empty, with a Comet archive, secrets
    in the environment and a webhook that cannot be reached."""
    root = tmp_path_factory.mktemp("end-to-end")
    rows = [{"id": row["id"], "text": row["text"][:500]} for row in documents] + [{"id": "empty", "text": " "}]
    (root / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        f"source.paths=['{root}/documents.jsonl']",
        "sample.size=30",
        "sample.by=[]",
        "train.max_tokens=64",
        "filter.min_score=0",
    ]
    runs = root / "runs"
    tracking = ["tracking.mode=offline", f"tracking.directory={runs}/comet"]
    printed, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name, secret in {**PLANTED, "ML_FILTER_ALERT_ON": "success,failure"}.items():
            patch.setenv(name, secret)
        code = main(["end_to_end", f"output={runs}", *tracking, *overrides])
    logging.getLogger().removeHandler(handler)
    assert code == 0, printed.getvalue()
    return Workspace(runs, overrides, printed.getvalue(), log.getvalue())


def last_run() -> Any:
    """The latest run in the store."""
    from zenml.client import Client

    run = next(iter(Client().list_pipeline_runs(size=1, sort_by="desc:created")))
    return Client().get_pipeline_run(run.id)


def model_versions() -> list[int]:
    from zenml.client import Client

    return [version.number for version in Client().list_model_versions(model="educational_value_head")]


# --- The end-to-end pipeline -----------------------------------------------------------------------------------------


def test_the_run_is_in_the_store_with_metadata_pages_and_a_model_version(workspace):
    run = last_run()
    assert run.status.value == "completed"
    assert all(step.run_metadata for step in run.steps.values()), "every step logs metadata"
    artifacts = [artifact for step in run.steps.values() for outputs in step.outputs.values() for artifact in outputs]
    pages = {artifact.name: [str(page.type) for page in artifact.visualizations or []] for artifact in artifacts}
    for artifact in ("sample", "annotations", "scores", "head", "scored", "filtered", "report"):
        assert "html" in pages[artifact]
    assert not [a.name for a in artifacts if "cloudpickle" in a.materializer.import_path.lower()]
    assert model_versions() == [1]


def test_no_secret_is_in_any_log_artifact_manifest_or_report(workspace, store, tmp_path):
    assert "was not delivered" in workspace.log
    assert not has_secret((workspace.log + workspace.printed).encode())
    assert leaks(workspace.runs, store) == []
    (tmp_path / "log").write_text(f"a request with {PLANTED['ML_FILTER_API_KEY']}")  # so the search can find one
    assert leaks(tmp_path) == [str(tmp_path / "log")]


def test_it_leaves_complete_directories_whose_counts_add_up(workspace):
    counts = {kind: read_manifest(str(workspace.only(f"{stage}-*"))).counts for stage, kind in STAGES.items()}
    assert counts["documents"]["sampled"] == 30
    assert counts["documents"]["rejected"] == counts["documents"]["rejected_empty_text"] == 1
    deduplicated = read_manifest(str(workspace.only("deduplicated-*"))).counts
    annotated = 30 - deduplicated["dropped"]
    assert counts["annotations"]["scored"] + counts["annotations"]["failed"] == annotated == 30
    assert counts["scored"]["scored"] + counts["scored"]["failed"] == counts["scored"]["read"] == 60
    assert counts["filtered"]["kept"] == 60


def test_failed_annotations_have_an_error_and_no_score(workspace):
    rows = pq.read_table(workspace.only("annotations-*") / "shards").to_pylist()
    assert len({row["document_id"] for row in rows}) == 30
    for row in rows:
        assert (row["status"] == "scored") == (row["score"] is not None) == (row["error"] is None)


def test_the_filtered_corpus_has_scores_and_a_report(workspace):
    filtered = workspace.only("filtered-*")
    table = pq.read_table(filtered / "shards")
    assert {"id", "text", "score", "int_score", "score_status"} <= set(table.column_names)
    page = (filtered / "report.html").read_text()
    assert "<svg" in page
    assert "60 of 60 documents kept" in page
    assert json.loads((filtered / "report.json").read_text())["corpus"]["documents"]
    assert (filtered / "DATASHEET.md").exists()


def test_the_run_ends_with_a_table_of_results_and_leaves_a_comet_archive(workspace):
    for stage in ("sample-", "annotations-", "head-", "filtered-", "report.html"):
        assert stage in workspace.printed
    assert list((workspace.runs / "comet").glob("*.zip"))


def test_a_second_run_repeats_no_work_and_another_threshold_only_filters_again(workspace, run):
    before = {path: path.stat().st_mtime_ns for path in workspace.runs.glob("*/shards/*.parquet")}
    code, printed = run("end_to_end", f"output={workspace.runs}", *workspace.overrides, "filter.min_score=5.0")
    assert code == 0, printed
    after = {path: path.stat().st_mtime_ns for path in workspace.runs.glob("*/shards/*.parquet")}
    assert {path: after[path] for path in before} == before
    assert {path.parents[1].name.split("-")[0] for path in after.keys() - before.keys()} <= {"filtered"}
    assert len(list(workspace.runs.glob("filtered-*"))) == 2
    assert len(list(workspace.runs.glob("annotations-*"))) == 1


# --- The other pipelines on its results ------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Three files of four documents each."""
    for number in range(3):
        rows = [{"text": f"Water boils at {degrees} degrees."} for degrees in range(number, number + 4)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_shard_groups_give_the_same_shards_and_a_report_and_a_grown_corpus_is_scored_into_them(
    workspace, corpus, run, warehouse
):
    arguments = [f"head={workspace.only('head-*')}", f"source.paths=['{corpus}/*.jsonl']", "filter.min_score=0"]
    arguments += [f"warehouse.{name}={warehouse.location(name)}" for name in ("scored", "filtered")]
    scored = []
    for groups in (1, 2):
        output = workspace.runs / f"groups-{groups}"
        code, printed = run("scoring", *arguments, f"output={output}", f"shard_groups={groups}")
        assert code == 0, printed
        [directory] = output.glob("scored-*")
        scored.append((find_manifest(str(directory)).digest, sorted(read_manifest(str(directory)).counts.items())))
        assert len(list(output.glob("filtered-*/report.html"))) == 1
    assert scored[0] == scored[1]
    assert dict(scored[0][1])["scored"] == 12
    assert warehouse.database.scored.count_documents({"score_status": "scored"}) == 6  # the files share documents
    assert warehouse.database.filtered.count_documents({}) == 6

    (corpus / "00.jsonl").write_text(json.dumps({"text": "Ice melts at 0 degrees."}))  # sorts between the others
    code, printed = run("scoring", *arguments, f"output={output}", "shard_groups=2")
    assert code == 0, printed
    assert re.findall(r"(\w+) .*shards new 1, shards reused 3", printed) == ["score_shard_group_1", "filter_corpus"]
    assert list(output.glob("scored-*")) == [directory]
    assert len(list(output.glob("filtered-*"))) == 1


def test_a_bad_shard_does_not_stop_other_groups_and_fails_the_run_at_the_end(workspace, corpus, run):
    (corpus / "0.jsonl").write_bytes(b"PAR1, and no Parquet after it")  # in the first group
    arguments = [f"head={workspace.only('head-*')}", f"source.paths=['{corpus}']", "filter.min_score=0"]
    arguments += [f"output={workspace.runs / 'damaged'}", "shard_groups=2"]
    code, printed = run("scoring", *arguments)
    assert code == 1
    assert "1 of 3 shards failed" in printed
    [directory] = (workspace.runs / "damaged").glob("scored-*")
    assert read_manifest(str(directory)).counts["scored"] == 8
    code, printed = run("scoring", *arguments, "score.max_failed_shards=0.4")
    assert code == 0, printed


def test_scores_train_a_head_in_the_training_pipeline(workspace, run):
    versions = model_versions()
    arguments = [f"labels.paths=['{workspace.only('scores-*')}']", "train.max_tokens=32"]
    code, printed = run("training", *arguments, f"output={workspace.runs}/trained")
    assert code == 0, printed
    [head] = (workspace.runs / "trained").glob("head-*")
    assert (head / "model.safetensors").exists()
    assert find_manifest(str(head)) is None
    assert model_versions() == [*versions, len(versions) + 1]


# --- Bad usage and help ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample.size=none"], "sample.size: Input should be a valid integer"),
        (["sample.sise=5"], "error: sample.sise: unknown key 'sise' (did you mean 'size'?)"),
        (["sampel.size=5"], "error: sampel.size: unknown key 'sampel' (did you mean 'sample'?)"),
        (["sample"], "'sample' is not of the form NAME=VALUE, as in sample.size=500"),
        (["output=runs", "output.x=5"], "output.x: output is a value, not a section with settings"),
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--config", "CONFIG"], "sample is a setting of the pipeline; put it under `parameters:`"),
        (["source.paths=[nowhere.jsonl]"], "source.paths: nowhere.jsonl does not exist; set source.paths='[PATH]'"),
    ],
)
def test_a_wrong_setting_ends_with_exit_code_2_and_names_it(arguments, message, tmp_path, run):
    config = tmp_path / "wrong.yaml"
    config.write_text("sample: {size: 5}\n")
    arguments = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    code, printed = run("end_to_end", f"output={tmp_path}/runs", *arguments)
    assert code == 2
    assert message in printed


@pytest.mark.parametrize("name", ["annotation", "training", "scoring", "end_to_end"])
def test_help_describes_the_pipeline_and_has_an_example(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--", "--help"])
    assert "example: poetry poe run-" in capsys.readouterr().out
