import json
import re
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.agreement import measure_agreement
from ml_filter.agreement.config import AggregateConfig, AgreementConfig
from ml_filter.annotation.prompts import Prompt, keep_prompts, load_prompt
from ml_filter.cli import main
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.labels import LabelledDocuments
from ml_filter.prepare.config import DeduplicateConfig
from ml_filter.prepare.deduplicate import deduplicate_documents
from ml_filter.publishing.config import PublishConfig
from ml_filter.publishing.labelled import SPLITS, publish_labels
from tests.kills import Killed, kill_at
from tests.publishing.hub_server import TOKEN, Hub
from tests.written import DANGER, prompt, write_annotations


def corpus(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(directory: Path, source: Path, votes: list[tuple], **options) -> Path:
    """Aggregate annotations of a corpus with the given votes."""
    write_annotations(directory / "annotations", votes, source=source, **options)
    aggregate_annotations([directory / "annotations"], AggregateConfig(), directory / "scores")
    return directory / "scores"


def rows_of(directory: Path) -> dict[str, list[dict]]:
    """The rows of each split."""
    rows = {}
    for split in SPLITS:
        file = directory / f"data/{split}-00000-of-00001.parquet"
        rows[split] = pq.read_table(file).to_pylist() if file.exists() else []
    return rows


def split_of(directory: Path) -> dict[str, str]:
    return {row["id"]: split for split, rows in rows_of(directory).items() for row in rows}


@pytest.fixture
def pages(documents) -> list[dict]:
    """100 documents: 60 real texts, near-duplicates of 20 of them, and 4 hosts with 5 pages each."""
    rows = [{"id": f"d{i}", "text": row["text"], "url": f"https://site{i}.org/"} for i, row in enumerate(documents)]
    rows += [{"id": f"copy{i}", "text": f"{documents[i]['text']} The end.", "url": None} for i in range(20)]
    texts = [" ".join(f"page{i}word{n}" for n in range(20)) for i in range(20)]
    return rows + [{"id": f"h{i}", "text": text, "url": f"http://h{i % 4}.org/{i}"} for i, text in enumerate(texts)]


@pytest.fixture
def scores(tmp_path, pages) -> Path:
    source = corpus(tmp_path / "in.jsonl", pages)
    return scored(tmp_path, source, [(row["id"], i % 5) for i, row in enumerate(pages)])


# --- Rows and columns ------------------------------------------------------------------------------------------------


def test_documents_with_a_score_are_published_and_the_others_are_counted(tmp_path, pages):
    source = corpus(tmp_path / "in.jsonl", [*pages, pages[0]])
    votes = [(row["id"], i % 5) for i, row in enumerate(pages[:-2])] + [(pages[-2]["id"], None), ("elsewhere", 3)]
    manifest = publish_labels(scored(tmp_path, source, votes), PublishConfig(), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    left_out = ("read", "labelled", "failed", "not_annotated", "repeated", "scores_without_document")
    assert [manifest.counts[name] for name in left_out] == [101, 98, 1, 1, 1, 1]
    assert {name: manifest.counts[name] for name in SPLITS} == {name: len(rows[name]) for name in SPLITS}
    published = {row["id"]: row for split_rows in rows.values() for row in split_rows}
    assert len(published) == manifest.rows == 98
    assert published["d7"] == {**pages[7], "score": 2.0, "votes": 1, "disagreement": 0.0}


def test_a_published_data_set_loads_with_the_datasets_library(tmp_path, scores):
    import datasets

    publish_labels(scores, PublishConfig(), tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: data.to_list() for split, data in loaded.items()} == rows_of(tmp_path / "out")


def test_a_published_data_set_is_a_source(tmp_path, scores, pages):
    publish_labels(scores, PublishConfig(), tmp_path / "out")
    source = SourceConfig(paths=[str(tmp_path / "out")])
    read = [
        row
        for shard in list_shards(source)[0]
        for table in read_shard(shard, source, RejectsLog())
        for row in table.to_pylist()
    ]
    assert sorted(row["id"] for row in read) == sorted(row["id"] for row in pages)


def test_columns_that_only_some_documents_have_are_in_every_split(tmp_path, pages):
    pages[3]["score"] = "mine"
    pages[9]["tags"] = ["a"]
    source = corpus(tmp_path / "in.jsonl", pages)
    more = tmp_path / "more.parquet"
    pq.write_table(pa.table({"id": ["z"], "text": ["Another text altogether."], "n": [7]}), more)
    votes = [(row["id"], 1) for row in [*pages, {"id": "z"}]]
    documents = SourceConfig(paths=[str(source), str(more)])
    publish_labels(scored(tmp_path, source, votes), PublishConfig(), tmp_path / "out", documents)
    schemas = [pq.read_schema(file) for file in sorted((tmp_path / "out/data").glob("*.parquet"))]
    assert len(schemas) == 3
    assert schemas[0] == schemas[1] == schemas[2]
    rows = {row["id"]: row for rows in rows_of(tmp_path / "out").values() for row in rows}
    assert (rows["d3"]["input_score"], rows["d3"]["score"], rows["d9"]["tags"]) == ("mine", 1.0, ["a"])
    assert (rows["z"]["n"], rows["z"]["url"]) == (7, None)


def test_several_criteria_become_columns_of_the_same_rows(tmp_path, pages):
    asked = [prompt("quality"), prompt("danger")]
    source = corpus(tmp_path / "in.jsonl", [{**row, "votes_danger": "mine"} for row in pages])
    votes = [(row["id"], i % 5, None, "quality") for i, row in enumerate(pages[:-1])]
    votes += [(row["id"], i % 2 if i % 4 else None, None, "danger") for i, row in enumerate(pages[:-2])]
    directory = scored(tmp_path, source, votes, asked=asked)
    for criterion, shift in (("quality", 0), ("danger", 1)):
        gold = [{"id": row["id"], "human_score": (i + shift) % 2} for i, row in enumerate(pages)]
        measured = AgreementConfig(
            gold=SourceConfig(paths=[str(corpus(tmp_path / f"{criterion}.jsonl", gold))]),
            criterion=criterion,
            resamples=100,
        )
        measure_agreement([str(directory)], measured, tmp_path / criterion)
    config = PublishConfig(agreement=[str(tmp_path / "quality"), str(tmp_path / "danger")])
    manifest = publish_labels(directory, config, tmp_path / "out")
    rows = {row["id"]: row for rows in rows_of(tmp_path / "out").values() for row in rows}
    assert len(rows) == manifest.rows == manifest.counts["labelled_quality"] == 99
    assert manifest.counts["labelled_danger"] == 73
    assert list(rows["d1"])[-7:] == [
        "input_votes_danger",
        *(f"{name}_{criterion}" for criterion in ("danger", "quality") for name in ("score", "votes", "disagreement")),
    ]
    scores_of = [(rows[name]["score_quality"], rows[name]["score_danger"]) for name in ("d4", "d3")]
    assert scores_of == [(4, None), (3, 1)]
    last = pages[-2]["id"]
    assert (rows[last]["score_danger"], rows[last]["votes_danger"], rows[last]["input_votes_danger"]) == (
        None,
        None,
        "mine",
    )
    card = (tmp_path / "out/README.md").read_text()
    assert "99 documents with scores for **danger**, **quality**" in card
    assert "| danger | documents | score 0 | score 1 |" in card
    assert "quality: agreement with human_score, with 95%" in card


def test_a_data_set_of_several_criteria_labels_a_head_with_several_criteria(tmp_path, pages):
    source = corpus(tmp_path / "in.jsonl", pages)
    votes = [(row["id"], i % 2, None, name) for name in ("quality", "danger") for i, row in enumerate(pages)]
    directory = scored(tmp_path, source, votes, asked=[prompt("quality"), prompt("danger")])
    publish_labels(directory, PublishConfig(), tmp_path / "out")
    columns = ["score_quality", "score_danger"]
    data = LabelledDocuments(SourceConfig(paths=[str(tmp_path / "out")]), TrainConfig(label_column=columns))
    labels = {name: row.tolist() for chunk in data for name, row in zip(chunk.ids, chunk.labels, strict=True)}
    assert labels == {row["id"]: [i % 2, i % 2] for i, row in enumerate(pages)}
    assert data.criteria == [Criterion(name="quality", low=0, high=5, threshold=3), DANGER]


def test_one_of_several_criteria_can_be_published_alone(tmp_path, pages):
    asked = [prompt("quality"), prompt("toxicity")]
    source = corpus(tmp_path / "in.jsonl", pages)
    votes = [(row["id"], score, None, name) for row in pages for name, score in [("quality", 4), ("toxicity", 1)]]
    directory = scored(tmp_path, source, votes, asked=asked)
    with pytest.raises(InputError, match="has no scores of 'beauty'; it has quality, toxicity"):
        publish_labels(directory, PublishConfig(criterion=["toxicity", "beauty"]), tmp_path / "out")
    publish_labels(directory, PublishConfig(criterion=["toxicity"]), tmp_path / "out")
    assert {row["score"] for row in rows_of(tmp_path / "out")["train"]} == {1.0}
    assert "quality_en" not in (tmp_path / "out/README.md").read_text()


# --- Splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_and_documents_of_a_host_are_in_the_same_split(tmp_path, scores, pages, seed):
    config = PublishConfig(seed=seed, validation_share=0.25, test_share=0.25)
    manifest = publish_labels(scores, config, tmp_path / "out")
    split = split_of(tmp_path / "out")
    long_copies = [i for i in range(20) if len(pages[i]["text"]) > 500]
    assert len(long_copies) > 10
    assert all(split[f"d{i}"] == split[f"copy{i}"] for i in long_copies)
    assert all(split[f"h{i}"] == split[f"h{j}"] for i, j in combinations(range(20), 2) if i % 4 == j % 4)
    assert [manifest.counts[name] for name in SPLITS] == pytest.approx([50, 25, 25], abs=3)
    assert manifest.counts["documents_in_largest_group"] == 5


def test_documents_linked_by_a_dropped_duplicate_are_in_the_same_split(tmp_path):
    start = [f"word{i}" for i in range(200)]
    middle = [*start[:-10], *(f"end{i}" for i in range(10))]
    end = [*(f"start{i}" for i in range(10)), *middle[10:]]
    rows = [
        {"id": f"{n}-{k}", "text": f"{n} ".join(text)} for n in range(15) for k, text in enumerate([start, middle, end])
    ]
    config = DeduplicateConfig(threshold=0.86)
    deduplicate_documents(SourceConfig(paths=[str(corpus(tmp_path / "in.jsonl", rows))]), config, tmp_path / "kept")
    kept = pq.read_table(tmp_path / "kept/shards").to_pylist()
    directory = scored(tmp_path, tmp_path / "kept", [(row["id"], 1) for row in kept])
    # At this similarity only the clusters of the deduplication link the documents.
    publish_labels(directory, PublishConfig(near_duplicates=1, test_share=0.4), tmp_path / "out")
    split = split_of(tmp_path / "out")
    linked = [(a, b) for a, b in combinations(kept, 2) if a["duplicate_cluster"] == b["duplicate_cluster"]]
    assert len(linked) > 5
    assert all(split[a["id"]] == split[b["id"]] for a, b in linked)
    assert len(set(split.values())) == 3


def test_the_splits_do_not_depend_on_the_order_of_the_documents(tmp_path, scores, pages):
    publish_labels(scores, PublishConfig(), tmp_path / "a")
    other = SourceConfig(paths=[str(corpus(tmp_path / "other.jsonl", pages[::-1]))])
    publish_labels(scores, PublishConfig(), tmp_path / "b", other)
    publish_labels(scores, PublishConfig(seed=1), tmp_path / "c")
    assert split_of(tmp_path / "a") == split_of(tmp_path / "b") != split_of(tmp_path / "c")


def test_a_host_larger_than_a_split_is_counted_and_empty_splits_are_left_out(tmp_path, pages):
    rows = [{**row, "url": "https://one.org/"} for row in pages]
    directory = scored(tmp_path, corpus(tmp_path / "in.jsonl", rows), [(row["id"], 1) for row in rows])
    manifest = publish_labels(directory, PublishConfig(), tmp_path / "out")
    assert manifest.counts["documents_in_largest_group"] >= 80
    assert manifest.counts["groups_larger_than_a_split"] == 1
    assert [shard.path for shard in manifest.shards] == ["data/train-00000-of-00001.parquet"]
    assert "validation" not in (tmp_path / "out/README.md").read_text()


# --- The card --------------------------------------------------------------------------------------------------------


def test_the_card_states_labels_splits_agreement_and_lineage(tmp_path, pages, scores):
    gold = corpus(
        tmp_path / "gold.jsonl", [{"id": row["id"], "text": "t", "human_score": i % 4} for i, row in enumerate(pages)]
    )
    measured = AgreementConfig(gold=SourceConfig(paths=[str(gold)]), resamples=100)
    agreement, _ = measure_agreement([str(scores)], measured, tmp_path / "agreement")
    config = PublishConfig(agreement=str(tmp_path / "agreement"), license="odc-by", title="Pages: *marked*")
    manifest = publish_labels(scores, config, tmp_path / "out")
    _, header, card = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "odc-by",
        "pretty_name": "Pages: *marked*",
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in SPLITS],
            }
        ],
    }
    spearman = agreement.overall.compared(agreement.gold)[0].figures["spearman"]
    annotations = read_manifest(str(tmp_path / "annotations"))
    for stated in (
        "| m | 1 | quality | quality_en | en | 0 to 5 | `digest of quality_en` |",
        f"{spearman.value:.3f} [{spearman.low:.3f}, {spearman.high:.3f}]",
        f"| scores | `{read_manifest(str(scores)).digest}` |",
        f"| annotations | `{annotations.digest}` |",
        f"| train | {manifest.counts['train']} |",
        f"{manifest.counts['groups']} groups",
    ):
        assert stated in card
    assert str(tmp_path) not in card


def test_the_card_states_prompts_and_sampling_settings(tmp_path, pages):
    asked = load_prompt("educational_value_json").model_copy(update={"description": "With a fence: ```"})
    entry = {**prompt("educational_value"), "name": asked.name, "digest": asked.digest}
    source = corpus(tmp_path / "in.jsonl", pages)
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "extra_body": {}, "structured": "auto"}
    votes = [(row["id"], 3) for row in pages]
    directory = scored(tmp_path, source, votes, asked=[entry], settings=sampling)
    with OutputDirectory(tmp_path / "kept", "prompts", {}, []) as kept:
        keep_prompts(kept, [asked])
    (tmp_path / "kept/prompts").rename(tmp_path / "annotations/prompts")
    publish_labels(directory, PublishConfig(), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "temperature 0.7, top p 0.9, seed 3, structured auto |" in card
    [block] = re.findall("\n````yaml\n(.*?)\n````\n", card, re.DOTALL)
    assert Prompt.model_validate(yaml.safe_load(block)) == asked


def test_the_card_says_that_the_text_of_a_prompt_was_not_kept(tmp_path, scores):
    publish_labels(scores, PublishConfig(), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "The text of this prompt (digest `digest of quality_en`) was not kept with the annotations." in card
    assert "| `digest of quality_en` | not recorded |" in card


def test_the_card_says_that_agreement_and_license_are_missing(tmp_path, scores):
    publish_labels(scores, PublishConfig(), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "license: unknown" in card
    assert "Not measured." in card


# --- Errors and resuming ---------------------------------------------------------------------------------------------


def test_unusable_input_is_an_error_that_names_it(tmp_path, pages, scores):
    with pytest.raises(InputError, match="holds annotations, not aggregated scores"):
        publish_labels(tmp_path / "annotations", PublishConfig(), tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere/agreement\.json is not the result of an agreement measurement"):
        publish_labels(scores, PublishConfig(agreement="nowhere"), tmp_path / "out")
    other = SourceConfig(paths=[str(corpus(tmp_path / "other.jsonl", [{"id": "x", "text": "t"}]))])
    with pytest.raises(InputError, match=r"no document of .*other\.jsonl has a score of quality in .*scores"):
        publish_labels(scores, PublishConfig(), tmp_path / "out", other)


@pytest.mark.parametrize("commit_point", ["data/train-.*", "data/test-.*", "README.md", "manifest.json"])
def test_a_killed_run_gives_the_same_result_when_it_is_repeated(tmp_path, scores, commit_point):
    with pytest.raises(Killed), kill_at("before", commit_point):
        publish_labels(scores, PublishConfig(), tmp_path / "killed")
    assert find_manifest(str(tmp_path / "killed")) is None
    resumed = publish_labels(scores, PublishConfig(), tmp_path / "killed")
    undisturbed = publish_labels(scores, PublishConfig(), tmp_path / "undisturbed")
    assert resumed.digest == undisturbed.digest
    cards = [(tmp_path / name / "README.md").read_bytes() for name in ("killed", "undisturbed")]
    assert cards[0] == cards[1]


# --- The Hub ---------------------------------------------------------------------------------------------------------


def publish(scores: Path, output: Path, *options: str) -> int:
    return main(["publish", str(scores), "--output", str(output), *options])


def test_a_push_uploads_data_and_card_but_no_local_paths(tmp_path, scores, hub: Hub, capsys):
    hub.data_sets["owner/set"], hub.private["owner/set"] = {"data/train-00000-of-00002.parquet": b"older"}, True
    assert publish(scores, tmp_path / "out", "--push", "owner/set", "--private") == 0
    assert publish(scores, tmp_path / "out", "--push", "owner/new") == 0
    assert publish(scores, tmp_path / "out", "--push", "owner/new", "--private") == 2
    captured = capsys.readouterr()
    assert "owner/new is public on the Hub, but the data set must be private; nothing was uploaded" in captured.err
    files = ["README.md", *(f"data/{name}-00000-of-00001.parquet" for name in SPLITS)]
    local = {name: (tmp_path / "out" / name).read_bytes() for name in files}
    assert publish(scores, f"memory://{tmp_path.name}/out", "--push", "owner/from-url") == 0
    assert hub.data_sets == {"owner/set": local, "owner/new": local, "owner/from-url": local}
    assert hub.private == {"owner/set": True, "owner/new": False, "owner/from-url": False}
    assert len(hub.commits) == 3
    assert TOKEN not in captured.out + captured.err


def test_a_failed_push_says_why_and_leaves_the_data_set_complete(tmp_path, scores, hub: Hub, capsys):
    hub.refuse = 403
    assert publish(scores, tmp_path / "out", "--push", "o/n") == 2
    captured = capsys.readouterr()
    assert "o/n could not be pushed: HfHubHTTPError: 403 Forbidden" in captured.err
    assert "this token may not write" in captured.err
    assert TOKEN not in captured.out + captured.err
    assert find_manifest(str(tmp_path / "out")) is not None


def test_a_hub_that_cannot_be_reached_is_an_error(tmp_path, scores, hub: Hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert publish(scores, tmp_path / "out", "--push", "o/n") == 2
    assert "o/n could not be pushed: ConnectError" in capsys.readouterr().err


def test_a_missing_token_is_an_error_before_any_work(tmp_path, scores, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="pushing to o/n requires a token with write access: set HF_TOKEN"):
        publish_labels(scores, PublishConfig(push="o/n"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
