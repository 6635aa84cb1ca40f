"""The options of a run from the files of its pipeline and its stack, and what the active stack refuses."""

import pytest

from ml_filter.config import read_yaml
from ml_filter.errors import ConfigError
from ml_filter.pipeline.config import AnnotationPipelineConfig, ScoringPipelineConfig
from tools import run_options
from tools.run_options import check_inputs, check_locations, merged, read_run_options

SCORING = {
    "head": "s3://b/head",
    "filter": {"min_score": 3},
    "output": "s3://b/runs",
    "source": {"paths": ["s3://b/*"]},
}


@pytest.fixture
def pipeline(tmp_path):
    """Write the file of a pipeline."""

    def write(text):
        path = tmp_path / "scoring.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Write the file of a stack, in a directory of its own."""
    monkeypatch.setattr(run_options, "STACK_CONFIGS", tmp_path / "stacks")
    (tmp_path / "stacks").mkdir()
    return lambda text, name="mine": (tmp_path / "stacks" / f"{name}.yaml").write_text(text)


def read(path, stack=None):
    return read_run_options(path, ScoringPipelineConfig, stack)


def test_the_file_of_the_stack_is_laid_over_that_of_the_pipeline(pipeline, stack):
    path = pipeline("enable_cache: false\nsettings: {docker: {skip_build: false, parent_image: mine}}\nparameters: {}")
    stack("settings: {docker: {skip_build: true}}\nsteps: {score_corpus: {}}")
    assert read(path, "mine") == {
        "enable_cache": False,
        "settings": {"docker": {"skip_build": True, "parent_image": "mine"}},
        "steps": {"score_corpus": {}},
    }
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_variables_come_from_the_environment_or_their_default(pipeline, stack, monkeypatch):
    stack("settings: {docker: {parent_image: '${HERE}/ml@${DIGEST:-sha256:0}'}}")
    monkeypatch.setenv("HERE", "registry.example.com")
    assert (
        read(pipeline(""" {} """), "mine")["settings"]["docker"]["parent_image"] == "registry.example.com/ml@sha256:0"
    )
    monkeypatch.delenv("HERE")
    with pytest.raises(ConfigError, match="docker: parent_image: the environment variable HERE is not set"):
        read(pipeline("{}"), "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("failure_hook_source: hooks.tell", "ZenML ignores failure_hook_source in a file.*Alerts"),
        ("init_hook_kwargs: {}", "ZenML ignores init_hook_kwargs"),
        ("exekution_mode: fail_fast", r"unknown key 'exekution_mode' \(did you mean 'execution_mode'\?\)"),
        ("head: s3://b/head", "head is a setting of the pipeline; put it under `parameters:`"),
    ],
)
def test_what_would_be_ignored_is_refused(text, message, pipeline, stack):
    with pytest.raises(ConfigError, match=message):
        read(pipeline(text))
    stack(text)
    with pytest.raises(ConfigError, match=f"mine.yaml: .*{message}"):
        read(pipeline("{}"), "mine")


def test_an_unknown_stack_names_those_that_have_a_file(pipeline, stack):
    stack("{}")
    with pytest.raises(ConfigError, match=r"--stack other: .*other.yaml does not exist; create it, or .* mine"):
        read(pipeline("{}"), "other")


def test_the_files_of_the_stacks_are_valid(pipeline, monkeypatch):
    monkeypatch.setenv("ML_FILTER_IMAGE", "registry.example.com/ml-filter@sha256:0")
    for name in ("aws", "kubernetes", "local"):
        docker = read(pipeline("{}"), name)["settings"].get("docker", {})
        assert docker == {} or docker["parent_image"] == "registry.example.com/ml-filter@sha256:0"


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"output": "runs"}, "output is 'runs'"),
        ({"head": "runs/head-1"}, "head is 'runs/head-1'"),
        ({"source": {"paths": ["s3://b/a", "crawl/*.gz"]}}, r"source.paths is 'crawl/\*.gz'"),
    ],
)
def test_a_relative_path_is_refused_where_steps_run_on_other_machines(changes, setting):
    with pytest.raises(ConfigError, match=f"{setting}, a path that steps on other machines do not share.*a URL"):
        check_locations(ScoringPipelineConfig.model_validate({**SCORING, **changes}), "cluster")


@pytest.mark.parametrize("head", ["s3://b/head", "zenml:head@1", "hf://OWNER/NAME", "/mounted/head"])
def test_urls_versions_and_mounted_directories_are_not(head):
    check_locations(ScoringPipelineConfig.model_validate({**SCORING, "head": head}), "cluster")
    check_locations(ScoringPipelineConfig.model_validate({**SCORING, "source": {"paths": ["installed:"]}}), "cluster")


def test_the_paths_of_nested_sources_are_checked_too():
    config = {"sample": {"size": 5}, "output": "s3://b/runs", "jury": [{"ledger": "runs/ledger"}]}
    with pytest.raises(ConfigError, match=r"jury.1.ledger is 'runs/ledger'"):
        check_locations(AnnotationPipelineConfig.model_validate(config), "cluster")
    config = {"sample": {"size": 5}, "output": "s3://b/runs", "gate": {"gold": {"paths": ["gold.jsonl"]}}}
    with pytest.raises(ConfigError, match=r"gate.1.gold.paths is 'gold.jsonl'"):
        check_locations(AnnotationPipelineConfig.model_validate(config), "cluster")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "runs/head-1"}, "head: runs/head-1 does not exist; set head='PATH'"),
        (
            {"source": {"paths": ["s3://b/*", "a.jsonl"]}},
            r"source.paths: a.jsonl does not exist; set source",
        ),
        ({"source": {"paths": ["crawl/*.gz"]}}, r"source.paths: crawl/\*.gz does not exist"),
    ],
)
def test_a_missing_input_of_a_later_step_is_known_before_the_first_one(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jsonl").touch()
    present = {**SCORING, "output": "new", "source": {"paths": ["b.jsonl", "*.jsonl", "installed:"]}}
    check_inputs(ScoringPipelineConfig.model_validate(present))
    with pytest.raises(ConfigError, match=message):
        check_inputs(ScoringPipelineConfig.model_validate({**present, **changes}))


def test_a_file_that_is_not_yaml_is_one_line_without_its_content(tmp_path):
    path = tmp_path / "scoring.yaml"
    path.write_text("environment:\n  KEY: sk-secret: oops\n")
    with pytest.raises(ConfigError) as told:
        read_yaml(path)
    assert str(told.value) == (
        f"configuration file {path} is not YAML: mapping values are not allowed here (line 2, column 17)"
    )
