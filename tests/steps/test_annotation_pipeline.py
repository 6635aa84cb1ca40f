"""What the annotation pipeline is told before it runs, and how its steps hang together."""

import json

import pytest

from ml_filter.errors import ConfigError
from ml_filter.settings import AnnotationPipelineConfig, EndToEndPipelineConfig
from tools.run import merged_config

TWO = "annotate.prompts=[educational_value, adult_content]"


def config(tmp_path, *values, of=AnnotationPipelineConfig):
    """The checked parameters of a run on a file of settings and values as on the command line."""
    path = tmp_path / "annotation.yaml"
    path.write_text(json.dumps({"parameters": {"sample": {"size": 5}}}))
    return of.model_validate(merged_config(path, values, of)["parameters"])


def against(tmp_path, *values):
    decontaminate = config(tmp_path, *values).decontaminate
    return decontaminate and [source.paths for source in decontaminate.against]


# --- Several criteria ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["publish.seed=1"], "publish.criterion is unset, and the prompts score educational_value, adult_content: set"),
        (["gate.gold.paths=[gold.jsonl]"], "gate.criterion is unset, and the prompts score educational_value, adult_c"),
        (
            ["gate=[{gold: {paths: [g.jsonl]}, criterion: adult_content}, {gold: {paths: [g.jsonl]}}]"],
            r"gate.criterion \(of gate 2\) is unset",
        ),
        (["publish.criterion=beauty"], "publish.criterion is 'beauty', and the prompts score educational_value, adult"),
    ],
)
def test_which_of_several_criteria_is_meant_is_asked_before_anything_is_paid_for(values, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        config(tmp_path, TWO, *values)


def test_one_criterion_needs_no_name_and_several_need_none_where_nothing_chooses(tmp_path):
    assert config(tmp_path, "publish.seed=1", "gate.gold.paths=[gold.jsonl]").gate[0].criterion is None
    assert config(tmp_path, TWO).publish is None


def test_the_prompts_of_the_jury_count_and_languages_are_one_criterion(tmp_path):
    german = "annotate.prompts=[educational_value, educational_value_de]"
    assert config(tmp_path, german, "publish.seed=1").publish
    with pytest.raises(ConfigError, match="the prompts score educational_value, adult_content"):
        config(tmp_path, german, "publish.seed=1", "jury=[{prompts: [adult_content]}]")


def test_the_whole_way_asks_by_which_criterion_to_filter(tmp_path):
    values = [TWO, "filter.min_score=3"]
    with pytest.raises(ConfigError, match=r"filter\.criterion is unset"):
        config(tmp_path, *values, of=EndToEndPipelineConfig)
    assert config(tmp_path, *values, "filter.criterion=adult_content", of=EndToEndPipelineConfig).filter
    assert config(tmp_path, *values, "train.criterion=adult_content", of=EndToEndPipelineConfig).filter
    with pytest.raises(ConfigError, match=r"train\.criterion beauty is 'beauty'"):
        config(tmp_path, *values, "train.criterion=beauty", of=EndToEndPipelineConfig)


# --- Gold stays out of the sample ------------------------------------------------------------------------------------


def test_the_gold_of_the_gates_is_kept_out_of_the_sample_whatever_else_is(tmp_path):
    gold = "gate.gold.paths=[gold.jsonl]"
    assert against(tmp_path) is None
    assert against(tmp_path, gold) == [["gold.jsonl"]]
    assert against(tmp_path, gold, "decontaminate=null") == [["gold.jsonl"]]
    elsewhere = "decontaminate={against: [{paths: [eval.jsonl]}], ngram_words: 8}"
    assert against(tmp_path, gold, elsewhere) == [["eval.jsonl"], ["gold.jsonl"]]
    assert config(tmp_path, gold, elsewhere).decontaminate.ngram_words == 8
    assert against(tmp_path, gold, "decontaminate.against=[{paths: [gold.jsonl]}]") == [["gold.jsonl"]]
    gates = "gate=[{gold: {paths: [a.jsonl]}}, {gold: {paths: [b.jsonl]}}, {gold: {paths: [a.jsonl]}}]"
    assert against(tmp_path, gates) == [["a.jsonl"], ["b.jsonl"]]


# --- Several gates ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_every_gate_stands_before_the_sample_and_gold_that_gates_share_is_annotated_once(tmp_path):
    from pipelines.annotation import annotation_pipeline

    checked = config(
        tmp_path,
        TWO,
        "jury=[{prompts: [educational_value, adult_content]}]",
        "gate=[{gold: {paths: [a.jsonl]}, criterion: adult_content},"
        " {gold: {paths: [a.jsonl]}, criterion: educational_value},"
        " {gold: {paths: [b.jsonl]}, criterion: educational_value, metric: kappa}]",
        "publish.criterion=educational_value",
    )
    pipeline = annotation_pipeline.copy()
    pipeline.prepare(**{name: getattr(checked, name) for name in AnnotationPipelineConfig.model_fields})
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
    assert "gate_on_agreement_2" in steps["publish_labels"]
