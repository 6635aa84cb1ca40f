"""Stages of the versions of a head in a real ZenML store: promotion, its conditions, and rollback."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from ml_filter.commit import code_commit
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Parent, read_manifest
from ml_filter.documents.readers.installed import read_installed
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.labels import text_keys
from ml_filter.heads.store import fetch_head
from ml_filter.heads.train import train_head
from tests.test_tracking import read_archive
from tools.promote import main
from tools.run import main as run_pipeline

if TYPE_CHECKING:
    from zenml.models import ArtifactVersionResponse

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # warnings of ZenML itself


@pytest.fixture(scope="module")
def head(store, tmp_path_factory, documents) -> ArtifactVersionResponse:
    """A small head in the store."""
    from zenml import save_artifact

    from steps.materializers import HeadMaterializer

    path = tmp_path_factory.mktemp("labels") / "labelled.jsonl"
    path.write_text("".join(json.dumps({**row, "label": i % 5}) + "\n" for i, row in enumerate(documents)))
    config = TrainConfig(kind="hashing", label_column="label")
    trained = train_head(SourceConfig(paths=[str(path)]), config, path.parent / "head")
    return save_artifact(trained, "head", materializer=HeadMaterializer)


class Versions:
    """A model for a test, and its versions."""

    def __init__(self, model: str) -> None:
        from zenml.client import Client

        self.model, self.client = model, Client()
        self.client.create_model(model)

    def add(self, head: ArtifactVersionResponse | None, **decision) -> int:
        """Add a version with a head and the decision that its training run recorded; returns its number."""
        from zenml import link_artifact_to_model, log_metadata

        version = self.client.create_model_version(self.model)
        if head is not None:
            link_artifact_to_model(head, version.to_model_class())
        if decision:
            log_metadata(metadata={"decision": decision}, model_version_id=version.id)
        return version.number

    def stages(self) -> dict[int, str | None]:
        return {version.number: version.stage for version in self.client.list_model_versions(model=self.model).items}

    def metadata(self, number: int) -> dict:
        return dict(self.client.get_model_version(self.model, number).run_metadata)


@pytest.fixture
def versions(store, request) -> Versions:
    return Versions(re.sub(r"\W+", "_", request.node.name))


@pytest.fixture
def run(capsys):
    """Run a command; returns its exit code and what it printed."""

    def run_command(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        printed = capsys.readouterr()
        return code, (printed.out + printed.err).strip()

    return run_command


PROMOTED = {"promoted": True, "reasons": ["it is better"]}


def test_versions_are_promoted_and_rolled_back_and_their_history_is_recorded(versions, head, run):
    model = versions.model
    for compared in (None, 1, 2):
        versions.add(head, **PROMOTED, compared_with=compared)
    assert run("promote", model, "1", "--to", "staging") == (0, f"version 1 of {model} is now in staging")
    assert run("promote", model, "staging") == (0, f"version 1 of {model} is now in production")
    second = f"version 2 of {model} is now in production; version 1 is archived"
    assert run("promote", model, "2", "--reason", "more recipes") == (0, second)
    assert run("promote", model, "3") == (0, f"version 3 of {model} is now in production; version 2 is archived")
    assert versions.stages() == {1: "archived", 2: "archived", 3: "production"}
    history = versions.metadata(3)["production_history"]
    assert [(entry["version"], entry["reason"]) for entry in history] == [
        (1, "it is better"),
        (2, "more recipes"),
        (3, "it is better"),
    ]
    back = f"version 2 of {model} is in production again; version 3 is archived"
    assert run("rollback", model, "--reason", "fewer recipes") == (0, back)
    assert versions.metadata(3)["rolled_back"]["reason"] == "fewer recipes"
    assert run("rollback", model)[1] == f"version 1 of {model} is in production again; version 2 is archived"
    assert versions.stages() == {1: "production", 2: "archived", 3: "archived"}
    code, why = run("rollback", model)
    assert code == 2
    assert f"nothing to roll back to: version 1 of {model} is the first in production; promote another version" in why
    assert versions.stages()[1] == "production"


def test_a_rolled_back_version_is_promoted_again_only_with_force(versions, head, run):
    model = versions.model
    for compared in (None, 1):
        versions.add(head, **PROMOTED, compared_with=compared)
    for arguments in (("promote", model, "1"), ("promote", model, "2"), ("rollback", model, "--reason", "forums")):
        assert run(*arguments)[0] == 0
    message = "version 2 of MODEL was rolled back (reason: forums); use --force with --reason"
    assert_rejected(versions, run("promote", model, "2"), message, {1: "production", 2: "archived"})
    assert run("promote", model, "2", "--force", "--reason", "forums are wanted now")[0] == 0


def test_a_version_that_was_in_production_twice_is_rolled_back_step_by_step(versions, head, run):
    for _ in range(2):
        versions.add(head)
    for number in ("1", "2", "1"):
        assert run("promote", versions.model, number, "--force", "--reason", "by hand")[0] == 0
    assert run("rollback", versions.model)[0] == 0
    assert versions.stages() == {1: "archived", 2: "production"}
    assert run("rollback", versions.model)[0] == 0
    assert versions.stages() == {1: "production", 2: "archived"}
    assert run("rollback", versions.model)[0] == 2


def test_a_rollback_returns_to_a_version_that_was_set_in_the_dashboard(versions, head, run):
    for _ in range(2):
        versions.add(head)
    versions.client.get_model_version(versions.model, 1).set_stage("production")
    assert run("promote", versions.model, "2", "--force", "--reason", "by hand")[0] == 0
    assert run("rollback", versions.model)[0] == 0
    assert versions.stages() == {1: "production", 2: "archived"}


# --- Conditions ------------------------------------------------------------------------------------------------------


def assert_rejected(versions: Versions, answer: tuple[int, str], reason: str, stages: dict[int, str | None]) -> None:
    """The command exited with 2 and this reason, and no version has moved."""
    code, why = answer
    assert (code, why) == (2, f"error: {reason.replace('MODEL', versions.model)}")
    assert versions.stages() == stages


def test_a_negative_decision_is_overridden_with_force_and_a_reason(versions, head, run):
    model = versions.model
    versions.add(head, promoted=False, reasons=["it is worse", "humans disagree"], compared_with=None)
    message = (
        "version 1 of MODEL was not promoted: it is worse; humans disagree. Train a better head, or use --force with "
        "--reason"
    )
    assert_rejected(versions, run("promote", model, "1"), message, {1: None})
    message = "--force requires --reason, which is recorded with the version"
    assert_rejected(versions, run("promote", model, "1", "--force"), message, {1: None})
    assert run("promote", model, "1", "--force", "--reason", "the gold is wrong")[0] == 0
    assert versions.metadata(1)["production_history"][0]["reason"] == "the gold is wrong"


def test_a_decision_must_compare_with_the_version_in_production(versions, head, run):
    model = versions.model
    versions.add(head, **PROMOTED, compared_with=None)
    versions.add(head, **PROMOTED, compared_with=1)
    versions.add(head, **PROMOTED, compared_with=1)
    versions.add(head, **PROMOTED, compared_with=None)
    assert run("promote", model, "1")[0] == run("promote", model, "2")[0] == 0
    stages = {1: "archived", 2: "production", 3: None, 4: None}
    message = (
        "version 3 of MODEL was compared with version 1, but version 2 is in production now; run the training "
        "pipeline again, or use --force with --reason"
    )
    assert_rejected(versions, run("promote", model, "3"), message, stages)
    assert_rejected(
        versions,
        run("promote", model, "4"),
        message.replace("version 3", "version 4").replace("version 1,", "no head,"),
        stages,
    )


def test_versions_that_cannot_be_promoted_are_rejected_with_the_reason(versions, head, run):
    model = versions.model
    versions.add(head, **PROMOTED, compared_with=None)
    versions.add(head)
    versions.add(None, **PROMOTED, compared_with=1)
    assert run("promote", model, "1")[0] == 0
    stages = {1: "production", 2: None, 3: None}
    for arguments, reason in {
        ("1",): "version 1 of MODEL is already in production",
        ("1", "--to", "staging"): "version 1 of MODEL is in production; to replace it, roll back or promote another "
        "version",
        (
            "2",
        ): "version 2 of MODEL has not been compared with another head; run the training pipeline with the settings "
        "gold and promote, or use --force with --reason",
        ("3",): "version 3 of MODEL has no head because its training did not finish",
        ("7",): "MODEL has no version '7'; existing versions: 1 (production), 2, 3",
        ("staging",): "no version of MODEL is in staging; run poetry poe promote MODEL VERSION --to staging "
        "(existing versions: 1 (production), 2, 3)",
    }.items():
        assert_rejected(versions, run("promote", model, *arguments), reason, stages)


def test_the_error_about_an_unknown_model_lists_the_existing_ones(versions, run):
    for command in (["promote", "nowhere", "1"], ["rollback", "nowhere"]):
        code, why = run(*command)
        assert code == 2
        assert re.fullmatch(rf"error: unknown model 'nowhere'; existing models: .*{versions.model}.*", why)


def test_a_rollback_needs_a_version_in_production_and_an_earlier_one(versions, head, run):
    model = versions.model
    for _ in range(3):
        versions.add(head)
    message = "nothing to roll back: no version of MODEL is in production; existing versions: 1, 2, 3"
    assert_rejected(versions, run("rollback", model), message, {1: None, 2: None, 3: None})
    for number in ("1", "2"):
        assert run("promote", model, number, "--force", "--reason", "by hand")[0] == 0
    versions.client.delete_model_version(versions.client.get_model_version(model, 1).id)
    message = (
        "version 1 of MODEL, which was in production before, has been deleted; promote another version "
        "(existing versions: 2 (production), 3)"
    )
    assert_rejected(versions, run("rollback", model), message, {2: "production", 3: None})


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_the_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--", "--help"])
    assert ended.value.code == 0
    assert re.search(rf"examples?: poetry poe {command} educational_value_head", capsys.readouterr().out)


# --- By name ---------------------------------------------------------------------------------------------------------


def test_a_head_is_found_by_its_model_and_version_or_stage(versions, head, run):
    from steps.registry import find_head

    for _ in range(2):
        versions.add(head)
    name = f"zenml:{versions.model}"
    with pytest.raises(
        InputError, match=rf"no version of {versions.model} is in production or staging; choose a version, as in"
    ):
        find_head(name)
    assert run("promote", versions.model, "2", "--to", "staging", "--force", "--reason", "by hand")[0] == 0
    heads = [find_head(version) for version in (name, f"{name}@staging", f"{name}@2", f"{name}@1")]
    assert {item.digest for item in heads} == {head.load().digest}
    with pytest.raises(InputError, match=rf"{versions.model} has no version '7'; existing versions: 1, 2 \(staging\)"):
        find_head(f"{name}@7")
    with pytest.raises(InputError, match="unknown model 'nowhere'"):
        find_head("zenml:nowhere@1")
    with pytest.raises(InputError, match="nowhere has no trained head"):
        find_head("nowhere")


def test_a_corpus_is_scored_with_a_version_whose_directory_is_gone(versions, head, run, tmp_path):
    from zenml.client import Client

    versions.add(head)
    trained = head.load()
    moved = Path(trained.origin).rename(f"{trained.origin}-moved")
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": f"Page {n} on cells."}) + "\n" for n in range(9)))
    values = (f"output={tmp_path}/runs", f"source.paths=['{tmp_path}/pages.jsonl']", "filter.min_score=0")
    try:
        assert run_pipeline(["scoring", f"head=zenml:{versions.model}@1", *values]) == 0
    finally:
        moved.rename(trained.origin)
    [scored] = tmp_path.glob("runs/scored-*")
    manifest = read_manifest(str(scored))
    assert manifest.counts["scored"] == 9
    assert manifest.parents[-1] == Parent(path=f"zenml:{versions.model}@1", digest=trained.digest)
    [report] = tmp_path.glob("runs/filtered-*/report.json")
    stages = {stage["name"]: stage["path"] for stage in json.loads(report.read_text())["stages"]}
    assert stages["head"] == f"zenml:{versions.model}@1"
    assert manifest.commit == code_commit()
    [run] = Client().list_pipeline_runs(pipeline="scoring", size=1, sort_by="desc:created").items
    assert f"commit:{code_commit()}" in [tag.name for tag in run.tags]


# --- In the training pipeline ----------------------------------------------------------------------------------------

LABELS = {"licence": 0, "description": 1, "module": 3, "reference": 5}


class Training:
    """Runs the training pipeline on random labels (`wild`) or correct ones (`right`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        by_source: dict[str, list[dict]] = {}
        for row in islice(read_installed(), 500):
            by_source.setdefault(row["source"], []).append({"id": row["id"], "text": row["text"][:300]})
        random = Random(0)
        train, gold = [], []
        for source, label in LABELS.items():
            train += [{**row, "right": label, "wild": random.randint(0, 5)} for row in by_source[source][:20]]
            seen = {key for one in by_source.values() for key in text_keys([row["text"] for row in one[:20]])}
            new = [row for row in by_source[source][20:] if text_keys([row["text"]])[0] not in seen]
            gold += [{**row, "human_score": label} for row in new[:15]]
        self.labels, self.gold = self._written("labels", train), self._written("gold", gold)
        self.config = directory / "training.yaml"
        model = {"name": "head_of_the_test"}
        self.config.write_text(json.dumps({"parameters": {"tracking": {"mode": "off"}}, "model": model}))

    def _written(self, name: str, rows: list[dict]) -> Path:
        path = self.directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def run(self, label_column: str, *values: str) -> int:
        values = (
            f"output={self.directory}/runs",
            f"labels.paths=['{self.labels}']",
            f"train.label_column={label_column}",
            "train.kind=hashing",
            f"gold.paths=['{self.gold}']",
            *values,
        )
        return run_pipeline(["training", "--config", str(self.config), *values])


def assert_tracked(version) -> None:
    """The run's archive holds the head's figures and settings, the digests, the evaluation's page and matrix."""
    run = next(iter(version.pipeline_runs.values()))
    archive = run.steps["track_run"].run_metadata["experiment"]
    content = read_archive(archive)
    evaluation = run.steps["evaluate_head"].run_metadata
    assert content["metrics"]["gold_spearman"] == pytest.approx(evaluation["figures"]["spearman"])
    assert content["parameters"]["head_digest"] == version.run_metadata["weights_digest"]
    assert content["parameters"]["train_kind"] == "hashing"
    assert content["parameters"]["labels_digest"] in version.run_metadata["lineage"]["labels"].values()
    assert content["files"]["evaluation.html"] == (Path(evaluation["path"]) / "evaluation.html").read_text()
    assert sum(map(sum, json.loads(content["files"]["confusion-gold.json"])["matrix"])) == 60
    assert "confusion-test.json" in content["files"]


@pytest.mark.slow
def test_the_pipeline_promotes_a_better_head_and_no_other(store, tmp_path, run, capsys, caplog):
    from zenml.client import Client

    training, model = Training(tmp_path), "head_of_the_test"

    def version(number: int):
        return Client().get_model_version(model, number)

    assert training.run("wild", "promote.min_agreement=-1") == 0
    assert version(1).stage == "staging"
    assert run("promote", model, "1") == (0, f"version 1 of {model} is now in production")

    tracking = ("tracking.mode=offline", f"tracking.directory={tmp_path}/comet")
    assert training.run("right", "promote.min_agreement=0.5", *tracking) == 0
    assert version(2).stage == "staging"
    assert caplog.text.count("are reused from") == 1
    assert steps_of(version(2))["evaluate_head"].run_metadata["compared_with"] == 1
    page = steps_of(version(2))["promote_head"].outputs["comparison"][0].load()
    assert "compared" in page.lower()
    decision = version(2).run_metadata["decision"]
    assert decision["compared_with"] == 1
    assert decision["comparisons"]["gold"]["spearman"]["low"] > 0
    assert decision["reasons"][0].startswith(
        "Spearman on gold (60 documents) differs from version 1 (production)'s by +"
    )
    lineage = version(2).run_metadata["lineage"]
    assert list(lineage["labels"]) == [str(training.labels)]
    assert lineage["weights_digest"] == version(2).get_artifact("head").run_metadata["digest"]
    assert_tracked(version(2))
    assert run("promote", model, "staging")[1] == f"version 2 of {model} is now in production; version 1 is archived"

    assert training.run("right", "promote.min_agreement=0.5") == 0
    assert version(3).stage is None
    assert "not an improvement" in version(3).run_metadata["decision"]["reasons"][0]
    assert run("promote", model, "3")[0] == 2

    assert training.run("wild", "promote.required=true", "promote.min_agreement=0.5") == 1
    why = capsys.readouterr().err
    assert "error: version 4 is not promoted: Spearman on gold (60 documents) differs from version 2" in why
    assert "the lower bound is below the margin of 0" in why
    assert version(4).run_metadata["decision"]["promoted"] is False
    assert steps_of(version(4))["track_run"].status == "completed"
    assert run("rollback", model)[1] == f"version 1 of {model} is in production again; version 2 is archived"


def steps_of(version) -> dict:
    return next(iter(version.pipeline_runs.values())).steps


@pytest.mark.slow
def test_without_promotion_a_head_is_still_compared_and_its_lineage_recorded(store, tmp_path):
    from zenml.client import Client

    training, model = Training(tmp_path), "head_without_promotion"
    training.config.write_text(json.dumps({"parameters": {"tracking": {"mode": "off"}}, "model": {"name": model}}))
    assert training.run("right") == 0
    first = Client().get_model_version(model, 1)
    assert "compared_with" not in steps_of(first)["evaluate_head"].run_metadata
    assert list(first.run_metadata["lineage"]["labels"]) == [str(training.labels)]
    first.set_stage("production")
    assert training.run("right", "train.seed=1") == 0
    second = steps_of(Client().get_model_version(model, 2))
    assert second["evaluate_head"].run_metadata["compared_with"] == 1
    assert "promote_head" not in second


@pytest.mark.slow
def test_a_head_with_several_criteria_is_evaluated_on_each_with_a_gold_column(store, tmp_path, capsys):
    from zenml.client import Client

    training, model = Training(tmp_path), "head_of_two_criteria"
    training.config.write_text(json.dumps({"parameters": {"tracking": {"mode": "off"}}, "model": {"name": model}}))
    assert training.run("[right,wild]") == 2
    assert "the head has the criteria right, wild: set gold_label_column to {criterion: column}" in (
        capsys.readouterr().err
    )
    columns = "gold_label_column={right: human_score, wild: human_score}"
    assert training.run("[right,wild]", columns, "promote.criterion=right", "promote.min_agreement=-1") == 0
    version = Client().get_model_version(model, 1)
    assert version.stage == "staging"
    right, wild = (version.run_metadata[f"gold_figures_{name}"]["spearman"] for name in ("right", "wild"))
    assert right > wild
    figure = version.run_metadata["decision"]["gate"]["figure"]["value"]
    assert figure == pytest.approx(right)
    assert training.run("[right,wild]", columns, "promote.min_agreement=-1") == 2
    assert "promote.criterion: choose one of right, wild, which gold has labels for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gold": {"paths": ["gold.jsonl"]}}, "gold is a setting of the pipeline; put it under `parameters:`"),
        ({"parameter": {}}, "unknown key 'parameter' (did you mean 'parameters'?)"),
        ({"modell": {"name": "m"}}, "unknown key 'modell' (did you mean 'model'?)"),
        ({"nothing_like_it": 1}, "unknown key 'nothing_like_it'"),
    ],
)
def test_an_unknown_key_of_the_yaml_is_an_error(content, message, tmp_path, capsys):
    path = tmp_path / "training.yaml"
    path.write_text(json.dumps({"parameters": {"labels": {"paths": ["labels.jsonl"]}}, **content}))
    assert run_pipeline(["training", "--config", str(path)]) == 2
    assert f"{path}: {message}" in capsys.readouterr().err


def test_a_head_whose_files_were_changed_is_fetched_from_the_store(store, tmp_path, documents):
    from zenml import save_artifact

    from steps.materializers import HeadMaterializer

    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps({**row, "label": i % 5}) + "\n" for i, row in enumerate(documents)))
    config = TrainConfig(kind="hashing", label_column="label")
    trained = train_head(SourceConfig(paths=[str(path)]), config, tmp_path / "head")
    saved = save_artifact(trained, "head_of_changed_weights", materializer=HeadMaterializer)
    assert saved.load().origin == trained.origin
    weights = tmp_path / "head" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    local = fetch_head(saved.load())
    assert (local.origin, local.digest) == (trained.origin, trained.digest)
    assert local.directory == Path(saved.uri)


def test_promotion_without_gold_is_an_error_before_anything_runs(capsys):
    assert run_pipeline(["training", "promote.margin=0.1"]) == 2
    assert "promote requires gold" in capsys.readouterr().err
