"""The whole way with the real parts: the embedded LLM, the encoder, the ZenML store, real documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ml_filter.config import Settings
from ml_filter.documents.manifest import find_manifest, read_manifest

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "sample": "documents",
    "annotations": "annotations",
    "scores": "scores",
    "scored": "scored",
    "filtered": "filtered",
}

ASK_THE_STORE = """
import json, sys
from zenml.client import Client
run = next(iter(Client().list_pipeline_runs(size=1, sort_by="desc:created")))
run = Client().get_pipeline_run(run.id)
outputs = [a for step in run.steps.values() for made in step.outputs.values() for a in made]
print(json.dumps({
    "status": run.status.value,
    "runs": Client().list_pipeline_runs().total,
    "metadata": {name: {k: str(v) for k, v in step.run_metadata.items()} for name, step in run.steps.items()},
    "artifacts": {a.name: a.materializer.import_path for a in outputs},
    "pages": {a.name: [str(v.type) for v in a.visualizations or []] for a in outputs},
    "model_versions": [v.number for v in Client().list_model_versions(model="educational_value_head")],
}))
"""


class Workspace:
    """A home directory, a folder for the runs and the environment of a new user in them."""

    def __init__(self, root: Path) -> None:
        self.home, self.runs = root / "home", root / "runs"
        self.printed = ""
        self.home.mkdir()
        cache = os.environ.get("ML_FILTER_CACHE_DIR", str(Settings().cache_dir))  # the weights are fetched once
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZENML", "ML_FILTER"))}
        self.environment = {**kept, "HOME": str(self.home), "ML_FILTER_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.run", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def store(self) -> dict:
        command = [sys.executable, "-c", ASK_THE_STORE]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    def only(self, pattern: str) -> Path:
        [found] = self.runs.glob(pattern)
        return found


@pytest.fixture(scope="module")
def values(tmp_path_factory, documents) -> list[str]:
    """Settings of a small run on sixty real documents, one of which has no text."""
    source = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    rows = [{"id": row["id"], "text": row["text"][:3000]} for row in documents] + [{"id": "empty", "text": " "}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"source.paths=['{source}']",
        "sample.size=30",
        "sample.by=[]",
        "train.max_tokens=128",
        "filter.min_score=0",
    ]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, values) -> Workspace:
    """The workspace after one end-to-end run, with an offline Comet archive."""
    workspace = Workspace(tmp_path_factory.mktemp("end-to-end"))
    tracking = ["tracking.mode=offline", f"tracking.directory={workspace.runs}/comet"]
    done = workspace.run("end_to_end", f"output={workspace.runs}", *tracking, *values)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    workspace.printed = done.stdout
    return workspace


def test_it_leaves_complete_directories_whose_counts_add_up(workspace):
    counts = {kind: read_manifest(str(workspace.only(f"{stage}-*"))).counts for stage, kind in STAGES.items()}
    assert counts["documents"]["sampled"] == 30
    assert counts["documents"]["rejected"] == counts["documents"]["rejected_empty_text"] == 1
    deduplicated = read_manifest(str(workspace.only("deduplicated-*"))).counts
    asked = 30 - deduplicated["dropped"]
    assert counts["annotations"]["scored"] + counts["annotations"]["failed"] == asked == 30
    assert counts["scored"]["scored"] + counts["scored"]["failed"] == counts["scored"]["read"] == 60
    assert counts["filtered"]["kept"] == 60


def test_failed_annotations_have_an_error_and_no_score(workspace):
    rows = pq.read_table(workspace.only("annotations-*") / "shards").to_pylist()
    assert len({row["document_id"] for row in rows}) == 30
    for row in rows:
        assert (row["status"] == "scored") == (row["score"] is not None) == (row["error"] is None)


def test_the_filtered_corpus_is_parquet_with_scores_and_a_report_beside_it(workspace):
    filtered = workspace.only("filtered-*")
    table = pq.read_table(filtered / "shards")
    assert {"id", "text", "score", "int_score", "score_status"} <= set(table.column_names)
    page = (filtered / "report.html").read_text()
    assert "<svg" in page
    assert "60 of 60 documents kept" in page
    assert json.loads((filtered / "report.json").read_text())["corpus"]["documents"]
    assert (filtered / "DATASHEET.md").exists()


def test_the_run_is_in_the_zenml_store_with_metadata_pages_and_a_model_version(workspace):
    store = workspace.store()
    assert store["status"] == "completed"
    assert all(store["metadata"].values()), "every step logs metadata"
    assert store["model_versions"] == [1]
    for artifact in ("sample", "annotations", "scores", "head", "scored", "filtered", "report"):
        assert "html" in store["pages"][artifact]
    assert not [name for name, path in store["artifacts"].items() if "cloudpickle" in path.lower()]


def test_the_run_ends_with_a_table_that_says_where_everything_is(workspace):
    for stage in ("sample-", "annotations-", "head-", "filtered-", "report.html"):
        assert stage in workspace.printed


def test_comet_leaves_an_offline_archive(workspace):
    assert list((workspace.runs / "comet").glob("*.zip"))


def test_a_second_run_repeats_no_work_and_another_threshold_only_filters_again(workspace, values):
    before = {path: path.stat().st_mtime_ns for path in workspace.runs.glob("*/shards/*.parquet")}
    done = workspace.run("end_to_end", f"output={workspace.runs}", *values, "filter.min_score=5.0")
    assert done.returncode == 0, done.stderr[-3000:]
    after = {path: path.stat().st_mtime_ns for path in workspace.runs.glob("*/shards/*.parquet")}
    assert {path: after[path] for path in before} == before
    assert {path.parents[1].name.split("-")[0] for path in after.keys() - before.keys()} <= {"filtered"}
    assert len(list(workspace.runs.glob("filtered-*"))) == 2
    assert len(list(workspace.runs.glob("annotations-*"))) == 1


def test_the_head_scores_other_documents_in_the_scoring_pipeline(workspace, values):
    head = workspace.only("head-*")
    done = workspace.run("scoring", f"head={head}", values[0], f"output={workspace.runs}/other", "filter.min_score=0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((workspace.runs / "other").glob("filtered-*/report.html"))) == 1


def test_groups_of_shards_scored_by_steps_of_their_own_make_the_same_shards(workspace, values, tmp_path):
    for number in range(3):
        rows = [{"text": f"Water boils at {degrees} degrees."} for degrees in range(number, number + 4)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [f"head={workspace.only('head-*')}", f"source.paths=['{tmp_path}/*.jsonl']", "filter.min_score=0"]
    scored = []
    for groups in (1, 2):
        output = workspace.runs / f"groups-{groups}"
        done = workspace.run("scoring", *arguments, f"output={output}", f"shard_groups={groups}")
        assert done.returncode == 0, done.stderr[-3000:]
        [directory] = output.glob("scored-*")
        scored.append((find_manifest(str(directory)).digest, sorted(read_manifest(str(directory)).counts.items())))
    assert scored[0] == scored[1]
    assert dict(scored[0][1])["scored"] == 12


def test_a_bad_shard_in_one_group_stops_no_other_group_and_the_step_behind_them_judges(workspace, tmp_path):
    for number in range(3):
        rows = [{"text": f"Water boils at {degrees} degrees."} for degrees in range(number, number + 4)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "0.jsonl").rename(tmp_path / "0.parquet")  # of the first group, and no Parquet
    arguments = [f"head={workspace.only('head-*')}", f"source.paths=['{tmp_path}']", "filter.min_score=0"]
    arguments += [f"output={workspace.runs / 'damaged'}", "shard_groups=2"]
    done = workspace.run("scoring", *arguments)
    assert done.returncode == 1
    assert "1 of 3 shards failed, more than max_failed_shards=0 allows" in done.stderr
    [directory] = (workspace.runs / "damaged").glob("scored-*")
    assert read_manifest(str(directory)).counts["scored"] == 8
    tolerated = workspace.run("scoring", *arguments, "score.max_failed_shards=0.4")
    assert tolerated.returncode == 0, tolerated.stderr[-3000:]


def test_the_scores_train_a_head_in_the_training_pipeline(workspace, values):
    scores = workspace.only("scores-*")
    arguments = [f"labels.paths=['{scores}']", "train.max_tokens=64", f"output={workspace.runs}/trained"]
    done = workspace.run("training", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    [head] = (workspace.runs / "trained").glob("head-*")
    assert (head / "model.safetensors").exists()
    assert find_manifest(str(head)) is None
    assert workspace.store()["model_versions"] == [1, 2, 3]


@pytest.fixture
def gold(tmp_path_factory, documents) -> str:
    """Forty documents with scores that no reader gave: a judge that reads cannot agree with them."""
    path = tmp_path_factory.mktemp("gold") / "gold.jsonl"
    rows = [{"id": row["id"], "text": row["text"][:600], "human_score": i % 6} for i, row in enumerate(documents[:40])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_gate_stops_a_judge_before_the_sample_is_paid_for_and_lets_one_through(tmp_path, values, gold):
    workspace = Workspace(tmp_path)
    arguments = [f"output={workspace.runs}", values[0], "sample.size=24", "sample.by=[]", f"gate.gold.paths=['{gold}']"]
    stopped = workspace.run("annotation", *arguments)
    assert stopped.returncode == 1
    assert "does not pass the gate: scores-" in stopped.stderr
    assert "its lower bound is below 0.6" in stopped.stderr
    annotated = workspace.only("annotations-*")
    assert read_manifest(str(annotated)).counts["documents"] == 40
    assert workspace.only("agreement-*/agreement.html").exists()

    passed = workspace.run("annotation", *arguments, "gate.min_agreement=-1", "publish.license=odc-by")
    assert passed.returncode == 0, passed.stderr[-3000:]
    labelled = workspace.only("labelled-*")
    published = {row["id"] for file in labelled.glob("data/*.parquet") for row in pq.read_table(file).to_pylist()}
    assert published
    assert not published & {json.loads(line)["id"] for line in Path(gold).read_text().splitlines()}
    assert "Against human_score" in (labelled / "README.md").read_text()
    assert len(list(workspace.runs.glob("annotations-*"))) == 2  # the gold's are not made again


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample.size=none"], "sample.size"),
        (["sample.sise=5"], "sample.sise: Extra inputs are not permitted"),
        (["sample"], "'sample' is not of the form NAME=VALUE"),
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["source.paths=[nowhere.jsonl]"], "nowhere.jsonl does not exist"),
    ],
)
def test_a_wrong_setting_ends_with_exit_code_2_and_names_it(arguments, says, tmp_path):
    done = Workspace(tmp_path).run("end_to_end", f"output={tmp_path}/runs", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_each_pipelines_help_says_what_it_does_and_has_an_example():
    for name in ("annotation", "training", "scoring", "end_to_end"):
        command = [sys.executable, "-m", "tools.run", name, "--", "--help"]
        text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert "example: poetry poe run-" in text
