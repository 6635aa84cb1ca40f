"""Where heads come from: our own layout, published classifiers, and names of the Hub."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertForSequenceClassification, BertModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import ConfigError
from ml_filter.heads.config import EMBEDDED_ENCODER, HeadSettings, TrainConfig
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.info import CalibratedCriterion, HeadInfo, head_origin
from ml_filter.heads.kinds import load_head
from ml_filter.heads.model import HeadConfig, HeadModel, load_model, register
from ml_filter.heads.store import read_head
from ml_filter.heads.train import train_head
from ml_filter.heads.trained import head_files
from ml_filter.scoring.config import ScoreConfig
from tests import small
from tests.publishing.hub_server import TOKEN, Hub, commit_of

pytestmark = pytest.mark.model

FLOAT32 = ScoreConfig(dtype="float32")
TEXTS = ["Water boils at 100 degrees at sea level.", "Buy now!", "A triangle has three sides, and its angles sum up."]


@pytest.fixture(scope="module")
def tokenizer():
    return load_encoder(EMBEDDED_ENCODER).tokenizer


@pytest.fixture
def save(tokenizer, tmp_path):
    """Saves a small model with random weights the way transformers does, with a tokenizer beside it."""

    def save(model, name="published", **options):
        model.eval().save_pretrained(tmp_path / name, **options)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def small_bert(**changes):
    torch.manual_seed(0)
    return small.small_bert(max_position_embeddings=128, **changes)


def test_the_layout_of_fineweb_edus_classifier_scores_exactly_as_transformers_own_forward(save):
    directory = save(BertForSequenceClassification(small_bert(num_labels=1, problem_type="regression")))
    own = BertForSequenceClassification.from_pretrained(directory).eval()
    batch = AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    model, tokenizer = load_model(directory)
    with torch.inference_mode():
        wanted = own(**batch).logits
        made = model(batch["input_ids"], batch["attention_mask"])
    assert len(set(wanted.flatten().tolist())) == 3
    assert torch.equal(made, wanted)
    assert tokenizer(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(directory)(TEXTS)["input_ids"]


def test_its_output_is_read_as_a_score_from_0_to_5_with_threshold_3(save):
    model, _ = load_model(save(BertForSequenceClassification(small_bert(num_labels=1))))
    assert model.config.info.criteria == [CalibratedCriterion(name="score", low=0, high=5, threshold=3)]
    assert model.config.max_tokens == 128
    assert not model.training


def test_loaded_and_saved_in_our_layout_it_scores_the_same_and_names_no_path(save, tokenizer, tmp_path):
    model, _ = load_model(save(BertForSequenceClassification(small_bert(num_labels=1))))
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    again, _ = load_model(tmp_path / "ours")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = [of(batch["input_ids"], batch["attention_mask"]) for of in (model, again)]
    assert torch.allclose(*scores, atol=1e-7)  # equal weights, but elsewhere in memory: the last bit may differ
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()


def test_our_own_layout_is_loaded_whole(tmp_path):
    encoder = load_encoder(EMBEDDED_ENCODER)
    info = HeadInfo(engine="encoder", criteria=[CalibratedCriterion(name="clarity", low=1, high=4, threshold=2)])
    model = HeadModel.from_encoder(encoder, layers=1, max_tokens=64, head=info.model_dump(mode="json"))
    model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert loaded.config.info == info
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("kind", "tokens"), [("xlm-roberta", 126), ("modernbert", 2048)])
def test_other_encoders_load_and_read_as_many_tokens_as_they_have_positions(kind, tokens, save, tmp_path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    positions = 128 if kind == "xlm-roberta" else 2048
    config = AutoConfig.for_model(
        kind, vocab_size=30522, pad_token_id=1, max_position_embeddings=positions, num_labels=1, **shape
    )
    torch.manual_seed(0)
    directory = save(AutoModelForSequenceClassification.from_config(config))
    told = directory / "tokenizer_config.json"
    told.write_text(told.read_text().replace('"model_max_length": 512', '"model_max_length": 8192'))
    model, _ = load_model(directory)
    assert model.config.max_tokens == tokens
    ids = torch.full((1, tokens), 1000)
    with torch.inference_mode():
        own = AutoModelForSequenceClassification.from_pretrained(directory).eval()(ids, torch.ones_like(ids)).logits
        assert torch.equal(model(ids, torch.ones_like(ids)), own)


def test_several_outputs_are_refused(save):
    with pytest.raises(ConfigError, match=r"has 3 outputs.*num_labels 1"):
        load_model(save(BertForSequenceClassification(small_bert(num_labels=3))))


def test_an_encoder_without_a_head_is_refused_and_not_given_a_random_one(save):
    with pytest.raises(
        ConfigError, match=r"is not a head \(BertModel\); train one on this encoder with ml-filter train"
    ):
        load_model(save(BertModel(small_bert())))


def test_a_checkpoint_without_its_head_is_refused(save):
    from safetensors.torch import load_file, save_file

    directory = save(BertForSequenceClassification(small_bert(num_labels=1)))
    weights = load_file(directory / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights of .* are missing: classifier\.weight"):
        load_model(directory)


def test_pickled_weights_are_not_read(save):
    model = BertForSequenceClassification(small_bert(num_labels=1))
    directory = save(model)
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights as safetensors"):
        load_model(directory)


def test_a_model_with_code_of_its_own_is_refused(save):
    directory = save(BertForSequenceClassification(small_bert(num_labels=1)))
    config = directory / "config.json"
    config.write_text(
        config.read_text().replace('"model_type": "bert"', '"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}')
    )
    (directory / "own.py").write_text("raise SystemExit('code of the model was run')")
    with pytest.raises(ConfigError, match="need no code of its own"):
        load_model(directory)


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing-here"):
        load_model(tmp_path / "nothing-here")


# --- By name ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels(documents, tmp_path_factory) -> SourceConfig:
    path = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    path.write_text("".join(json.dumps({**row, "label": i % 5}) + "\n" for i, row in enumerate(documents)))
    return SourceConfig(paths=[str(path)])


@pytest.fixture(scope="module")
def head(labels, tmp_path_factory) -> Path:
    """A small one."""
    config = TrainConfig(label_column="label", kind="hashing")
    return Path(train_head(labels, config, tmp_path_factory.mktemp("heads") / "head").origin)


@pytest.fixture(scope="module")
def encoder_head(labels, small_encoder, tmp_path_factory) -> Path:
    linear = HeadSettings(model="linear")
    config = TrainConfig(label_column="label", encoder=small_encoder, max_tokens=32, layers=1, head=linear)
    return Path(train_head(labels, config, tmp_path_factory.mktemp("heads") / "encoder").origin)


@pytest.fixture
def run(tmp_path):
    """Runs Python with a Hub and a cache of its own."""

    def run(hub: Hub | None, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
        inherited = {name: value for name, value in os.environ.items() if name not in names}
        own = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200"}
        at = {"HF_ENDPOINT": hub.url} if hub else {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *command],
            env={**inherited, **own, **at, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


READ = "import sys; from ml_filter.heads.store import read_head; print(read_head(sys.argv[1]).origin)"
RESOLVE = """
import sys
from ml_filter.errors import MlFilterError
from ml_filter.heads.store import fetch_head
reasons = []
for name in sys.argv[1:]:
    try:
        print(fetch_head(name).directory)
    except MlFilterError as error:
        reasons.append(str(error))
if reasons:
    sys.exit("\\0".join(reasons))
"""


def files_of(directory: Path) -> dict[str, bytes]:
    """What a repository with this directory in it holds."""
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in head_files(directory)}


def test_a_head_of_the_hub_is_downloaded_once_by_commit_and_found_again_without_a_network(head, run):
    name = "hf://owner/head@v1"
    with Hub() as hub:
        first = files_of(head)
        hub.tags["owner/head"] = {"v1": {**first, "pytorch_model.bin": b"pickled", "own.py": b"raise SystemExit"}}
        hub.models["owner/head"] = {**first, "README.md": b"newer"}
        wanted = commit_of(hub.tags["owner/head"]["v1"])
        assert run(hub, "-c", READ, name).stdout == f"{name.partition('@')[0]}@{wanted}\n"
        assert sorted(hub.downloads) == sorted(file for file in first if file.endswith(".json"))  # no weights
        found = run(hub, "-c", RESOLVE, name)
        assert found.returncode == 0, found.stderr
        assert sorted(hub.downloads) == sorted(first)
        assert run(hub, "-c", RESOLVE, name).stdout == found.stdout
        assert len(hub.downloads) == len(first)
    directory = Path(found.stdout.strip())
    assert head_origin(directory) == f"hf://owner/head@{wanted}"
    assert files_of(directory) == first
    assert read_head(directory).digest == read_head(head).digest
    assert run(None, "-c", RESOLVE, name).stdout == found.stdout


UNKNOWN = {
    "hf://owner/none": r"hf://owner/none: RepositoryNotFoundError: .*Check the name, the revision, the network",
    "hf://owner/head@v9": r"hf://owner/head@v9: RevisionNotFoundError",
    "hf://owner/secret": r"hf://owner/secret: HfHubHTTPError: .*401.* for a private repository, HF_TOKEN",
    "hf:/owner/head": r"'hf:/owner/head' is not a Hub name; write hf://OWNER/NAME",
    "hf://owner": r"'hf://owner' is not a Hub name; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION",
    "zenml:model@1": r"'zenml:model@1' is in ZenML's model store, which only pipelines can read; use its directory",
    "owner/head": r"owner/head has no trained head: the directory does not exist; train one .* hf://OWNER/NAME",
}


def test_an_unknown_name_is_an_error_with_the_reason(run):
    with Hub() as hub:
        hub.models |= {"owner/head": {}, "owner/secret": {}}
        hub.private["owner/secret"] = True
        done = run(hub, "-c", RESOLVE, *UNKNOWN)
    assert done.returncode == 1
    for says, reason in zip(UNKNOWN.values(), done.stderr.strip().split("\0"), strict=True):
        assert re.match(says, reason, re.DOTALL)


def test_a_private_head_is_had_with_the_token(head, run):
    with Hub() as hub:
        hub.models["owner/head"], hub.private["owner/head"] = files_of(head), True
        assert run(hub, "-c", RESOLVE, "hf://owner/head", HF_TOKEN=TOKEN).returncode == 0


def test_score_and_evaluate_take_a_head_of_the_hub_and_their_lineage_names_repository_and_commit(
    head, labels, run, tmp_path
):
    name, command = "hf://owner/head", ["-m", "ml_filter.cli"]
    with Hub() as hub:
        hub.models["owner/head"] = files_of(head)
        origin = f"{name}@{commit_of(hub.models['owner/head'])}"
        scored = run(hub, *command, "score", name, *labels.paths, "--output", str(tmp_path / "scored"))
        assert scored.returncode == 0, scored.stderr
        evaluate = [*command, "evaluate", name, *labels.paths, "--label-column", "label", "--compare", str(head)]
        evaluated = run(hub, *evaluate, "--output", str(tmp_path / "evaluation"))
        assert evaluated.returncode == 0, evaluated.stderr
    for output in ("scored", "evaluation"):
        parents = read_manifest(str(tmp_path / output)).parents
        assert origin in [parent.path for parent in parents]
        assert read_head(head).digest in [parent.digest for parent in parents]
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert (evaluation["head"], evaluation["compared_with"]) == (origin, str(head))
    assert evaluation["comparison"]["differences"]["spearman"]["value"] == 0


LOAD_AND_SCORE = """
import sys
from ml_filter.cli import main
from ml_filter.heads.model import HeadModel
print(HeadModel.from_pretrained("owner/head").width)
sys.exit(main(sys.argv[1:]))
"""


def test_from_pretrained_takes_the_name_of_a_repository_and_fineweb_edus_classifier_is_scored_with_from_the_hub(
    encoder_head, save, run, tmp_path
):
    directory = save(BertForSequenceClassification(small_bert(num_labels=1)))
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    score = ["-c", LOAD_AND_SCORE, "score", "hf://owner/classifier", str(tmp_path / "pages.jsonl")]
    with Hub() as hub:
        hub.models["owner/head"] = files_of(encoder_head)
        hub.models["owner/classifier"] = {**files_of(directory), "pytorch_model.bin": b"pickled"}
        done = run(hub, *score, "--dtype", "float32", "--output", str(tmp_path / "scored"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("32\n")
        assert "pytorch_model.bin" not in hub.downloads
        commit = commit_of(hub.models["owner/classifier"])
    wanted = load_head(directory, FLOAT32).score(TEXTS)[:, 0].tolist()
    manifest = read_manifest(str(tmp_path / "scored"))
    assert pq.read_table(tmp_path / "scored" / "shards")["score"].to_pylist() == pytest.approx(wanted, abs=1e-6)
    assert manifest.parents[-1].path == f"hf://owner/classifier@{commit}"


def test_transformers_own_classes_give_heads_once_they_are_registered(encoder_head):
    head = encoder_head
    register()
    assert isinstance(AutoConfig.from_pretrained(head), HeadConfig)
    model = AutoModel.from_pretrained(head)
    tokenizer = AutoTokenizer.from_pretrained(head)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        made = model(batch["input_ids"], batch["attention_mask"])[:, 0].clamp(0, 5)
    assert made.tolist() == pytest.approx(load_head(head, FLOAT32).score(TEXTS)[:, 0].tolist(), abs=1e-5)
