"""The annotation pipeline: checks before it runs, the order of its steps, and a run with two annotators."""

import csv
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import ConfigError
from ml_filter.pipeline.config import (
    AnnotationPipelineConfig,
    EndToEndPipelineConfig,
    check_criteria,
    held_out_documents,
)
from ml_filter.pipeline.proof import ProofPipelineConfig
from tests.annotation.misbehaving import PROMPT, MisbehavingServer, chat
from tests.test_tracking import read_archive
from tools.run import read_config

TWO = "annotate.prompts=[educational_value, adult_content]"


def config(tmp_path, *overrides, config_type=AnnotationPipelineConfig):
    """The configuration of a run with a sample of five documents and these overrides."""
    path = tmp_path / "annotation.yaml"
    path.write_text(json.dumps({"parameters": {"sample": {"size": 5}}}))
    return read_config(path, overrides, config_type)


def against(tmp_path, *overrides, config_type=AnnotationPipelineConfig):
    held_out = held_out_documents(config(tmp_path, *overrides, config_type=config_type))
    return held_out and [source.paths for source in held_out.against]


# --- Several criteria ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gate.gold.paths=[gold.jsonl]"], "gate.criterion is not set, and the prompts score educational_value, adult"),
        (
            ["gate=[{gold: {paths: [g.jsonl]}, criterion: adult_content}, {gold: {paths: [g.jsonl]}}]"],
            r"gate.criterion \(of gate 2\) is not set",
        ),
        (["publish.criterion=beauty"], "publish.criterion is 'beauty', but the prompts score educational_value, adult"),
        (["publish.criterion=[adult_content, beauty]"], "publish.criterion is 'beauty', but the prompts score educat"),
    ],
)
def test_a_missing_or_unknown_criterion_is_an_error_before_anything_is_paid_for(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_criteria(config(tmp_path, TWO, *overrides))


def test_one_criterion_needs_no_name_and_several_need_none_where_nothing_chooses(tmp_path):
    check_criteria(config(tmp_path, "publish.seed=1", "gate.gold.paths=[gold.jsonl]"))
    check_criteria(config(tmp_path, TWO))
    check_criteria(config(tmp_path, TWO, "publish.seed=1"))


def test_prompts_of_the_jury_count_and_languages_are_one_criterion(tmp_path):
    german = "annotate.prompts=[educational_value, educational_value_de]"
    check_criteria(config(tmp_path, german, "gate.gold.paths=[gold.jsonl]"))
    with pytest.raises(ConfigError, match="the prompts score educational_value, adult_content"):
        check_criteria(config(tmp_path, german, "gate.gold.paths=[gold.jsonl]", "jury=[{prompts: [adult_content]}]"))


def test_the_end_to_end_pipeline_needs_the_criterion_to_filter_by(tmp_path):
    def check(*overrides):
        check_criteria(config(tmp_path, TWO, "filter.min_score=3", *overrides, config_type=EndToEndPipelineConfig))

    with pytest.raises(ConfigError, match=r"filter\.criterion is not set"):
        check()
    check("filter.criterion=adult_content")
    check("train.criterion=adult_content")
    with pytest.raises(ConfigError, match=r"train\.criterion is 'beauty'"):
        check("train.criterion=beauty")


# --- Gold stays out of the sample ------------------------------------------------------------------------------------


def test_the_gold_of_the_gates_is_held_out_together_with_configured_texts(tmp_path):
    gold = "gate.gold.paths=[gold.jsonl]"
    assert against(tmp_path) is None
    assert against(tmp_path, gold) == [["gold.jsonl"]]
    assert against(tmp_path, gold, "decontaminate=null") == [["gold.jsonl"]]
    texts = "decontaminate={against: [{paths: [eval.jsonl]}], ngram_words: 8}"
    assert against(tmp_path, gold, texts) == [["eval.jsonl"], ["gold.jsonl"]]
    assert held_out_documents(config(tmp_path, gold, texts)).ngram_words == 8
    assert against(tmp_path, gold, "decontaminate.against=[{paths: [gold.jsonl]}]") == [["gold.jsonl"]]
    gates = "gate=[{gold: {paths: [a.jsonl]}}, {gold: {paths: [b.jsonl]}}, {gold: {paths: [a.jsonl]}}]"
    assert against(tmp_path, gates) == [["a.jsonl"], ["b.jsonl"]]


def test_what_the_ablation_is_measured_on_is_held_out_of_the_sample_of_the_proof(tmp_path):
    ablate = "ablate={gold: {paths: [gold.jsonl]}, targets: {wiki: {paths: [wiki.jsonl]}}}"
    filtered = "filter={keep_fraction: 0.3, dropped: true}"
    assert against(tmp_path, ablate, filtered, config_type=ProofPipelineConfig) == [["gold.jsonl"], ["wiki.jsonl"]]


# --- Several gates ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.zenml
def test_every_gate_stands_before_the_sample_and_gold_that_gates_share_is_annotated_once(tmp_path):
    from pipelines.annotation import annotation_pipeline

    checked = config(
        tmp_path,
        TWO,
        "jury=[{prompts: [educational_value, adult_content]}]",
        "gate=[{gold: {paths: [a.jsonl]}, criterion: adult_content},"
        " {gold: {paths: [a.jsonl]}, criterion: educational_value},"
        " {gold: {paths: [b.jsonl]}, criterion: educational_value, metric: kappa}]",
        "publish.criterion=[educational_value]",
    )
    pipeline = annotation_pipeline.copy()
    pipeline.prepare(checked)
    steps = {name: step.upstream_steps for name, step in pipeline.invocations.items()}
    gates = {"gate_on_agreement", "gate_on_agreement_2", "gate_on_agreement_3"}
    assert {name for name in steps if "gold" in name} == {
        *(f"annotate_gold_{n}" for n in range(1, 5)),
        "aggregate_gold",
        "aggregate_gold_2",
    }
    assert [steps[name] for name in sorted(gates)] == [{"aggregate_gold"}, {"aggregate_gold"}, {"aggregate_gold_2"}]
    assert gates <= steps["annotate_documents_1"]
    assert gates <= steps["annotate_documents_2"]
    assert steps["publish_labels"] & gates == {"gate_on_agreement_2", "gate_on_agreement_3"}


# --- A run -----------------------------------------------------------------------------------------------------------


def page(name):
    return f"[{name}] " + " ".join(f"{name}word{n}" for n in range(30))


def score_of(name, criterion):
    number = int(name[1:])
    return number % 6 if criterion == "quality" else number % 2


@pytest.fixture
def annotator():
    """The URL of a server that gives each page its score, and is silent about the danger of every tenth."""

    def answer(asked):
        criterion = "danger" if "danger" in json.dumps(asked.body) else "quality"
        if criterion == "danger" and asked.document.endswith("0"):
            return chat("I cannot say.")
        return chat(f"Score: {score_of(asked.document, criterion)}")

    with serving(answer) as server:
        yield server.url


@contextmanager
def serving(answer):
    server = MisbehavingServer(answer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def asked():
    """A server that gives every page the score 3."""
    with serving(lambda request: chat("Score: 3")) as server:
        yield server


@pytest.fixture
def prompt(tmp_path):
    (tmp_path / "short.yaml").write_text(json.dumps(PROMPT))
    return tmp_path / "short.yaml"


@pytest.fixture
def two_criteria(tmp_path, annotator):
    """Settings of a run over sixty pages, with gold of forty in CSV, that asks two annotators for two criteria."""
    prompts = []
    for criterion, highest, words in (("quality", 5, "Judge"), ("danger", 1, "Judge the danger of")):
        prompts.append(str(tmp_path / f"{criterion}.yaml"))
        asked = {"name": criterion, "criterion": criterion, "score": {"min": 0, "max": highest}}
        Path(prompts[-1]).write_text(json.dumps({**PROMPT, **asked, "text": f"{words} this page:\n{{text}}\nScore: "}))
    names = [f"d{n}" for n in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": n, "text": page(n)}) + "\n" for n in names))
    with (tmp_path / "gold.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "quality", "danger"])
        rows.writerows(
            [n, page(n), score_of(n, "quality"), score_of(n, "danger")] for n in (f"g{n}" for n in range(40))
        )
    gold = f"gold: {{paths: ['{tmp_path}/gold.csv']}}"
    return [
        f"output={tmp_path}/runs",
        f"source.paths=['{tmp_path}/in.jsonl']",
        "sample={size: 60}",
        f"annotate={{prompts: {json.dumps(prompts)}, endpoints: ['{annotator}'], model: m, max_failed_share: 0.2}}",
        f"jury=[{{prompts: {json.dumps(prompts)}, endpoints: ['{annotator}'], model: n, max_failed_share: 0.2}}]",
        f"gate=[{{{gold}, criterion: quality, gold_column: quality}},"
        f" {{{gold}, criterion: danger, gold_column: danger, metric: agreement_at_threshold, threshold: 1}}]",
        "publish.license=odc-by",
        "tracking.mode=offline",
        f"tracking.directory={tmp_path}/comet",
    ]


@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")  # ZenML's own
def test_several_criteria_are_gated_published_exported_and_tracked_in_one_run(tmp_path, two_criteria, run, warehouse):
    collections = [f"warehouse.{name}={warehouse.location(name)}" for name in ("annotations", "scores")]
    code, printed = run("annotation", *two_criteria, *collections)
    assert code == 0, printed
    assert warehouse.database.annotations.count_documents({"annotator": "n", "status": "scored"}) == 114
    assert warehouse.database.scores.find_one({"document_id": "d3", "criterion": "quality"})["score"] == 3
    [labelled] = (tmp_path / "runs").glob("labelled-*")
    published = {row["id"]: row for file in labelled.glob("data/*.parquet") for row in pq.read_table(file).to_pylist()}
    assert {n: (row["score_quality"], row["score_danger"]) for n, row in published.items()} == {
        f"d{n}": (n % 6, n % 2 if n % 10 else None) for n in range(60)
    }
    assert {row["votes_quality"] for row in published.values()} == {2}
    card = (labelled / "README.md").read_text()
    assert "quality: agreement with quality, with" in card
    assert "danger: agreement with danger, with" in card
    [archive] = (tmp_path / "comet").glob("*.zip")
    content = read_archive(str(archive))
    assert {name: content["metrics"][f"scores_{name}"] for name in ("criteria", "annotators", "scored", "failed")} == {
        "criteria": 2,
        "annotators": 2,
        "scored": 114,
        "failed": 6,
    }
    assert content["parameters"]["prompt"] == "quality, danger"
    assert content["parameters"]["annotator"] == "m, n"


@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")  # ZenML's own
def test_of_a_source_that_grew_only_new_documents_are_asked(tmp_path, prompt, asked, run):
    def put(numbers):
        for number in numbers:
            rows = [{"id": f"d{number}{n}", "text": page(f"d{number}{n}")} for n in range(4)]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"page-{number}.parquet")

    arguments = [
        f"output={tmp_path}/runs",
        f"source.paths=['{tmp_path}/*.parquet']",
        "sample={size: 100}",
        "deduplicate=null",
        f"annotate={{prompts: ['{prompt}'], endpoints: ['{asked.url}'], model: m}}",
    ]
    put(range(1, 6))
    code, printed = run("annotation", *arguments)
    assert (code, len(asked.requests)) == (0, 20), printed
    assert "answers asked 20" in printed
    put([0, 6])
    code, printed = run("annotation", *arguments)
    assert (code, len(asked.requests)) == (0, 28), printed
    assert "answers asked 8, answers from ledger 20" in printed
    assert set(asked.asked.values()) == {1}
    assert len(list((tmp_path / "runs").glob("annotations-*"))) == 2
    assert len(list((tmp_path / "runs" / "ledgers").glob("*.sqlite"))) == 1


@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")  # ZenML's own
def test_a_gate_stops_an_annotator_before_the_sample_is_paid_for_and_lets_one_pass(tmp_path, two_criteria, run):
    rows = [{"id": f"g{n}", "text": page(f"g{n}"), "opposite": 5 - n % 6} for n in range(40)]
    (tmp_path / "opposite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = f"gate={{gold: {{paths: ['{tmp_path}/opposite.jsonl']}}, criterion: quality, gold_column: opposite}}"
    arguments = [*two_criteria[:4], gate]
    code, printed = run("annotation", *arguments)
    assert code == 1
    assert "the gate" in printed
    [annotated] = (tmp_path / "runs").glob("annotations-*")
    assert read_manifest(str(annotated)).counts["documents"] == 40
    assert len(list((tmp_path / "runs").glob("agreement-*/agreement.html"))) == 1

    code, printed = run("annotation", *arguments, "gate.min_agreement=-1", "publish.license=odc-by")
    assert code == 0, printed
    [labelled] = (tmp_path / "runs").glob("labelled-*")
    published = {row["id"] for file in labelled.glob("data/*.parquet") for row in pq.read_table(file).to_pylist()}
    assert published == {f"d{n}" for n in range(60)}
    assert "greement with opposite" in (labelled / "README.md").read_text()
    assert len(list((tmp_path / "runs").glob("annotations-*"))) == 2  # the gold is not annotated again
