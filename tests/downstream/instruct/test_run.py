"""The chain from documents to data sets against a server that answers sensibly."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ml_filter.annotation.embedded import MODEL_LICENSE, MODEL_NAME
from ml_filter.annotation.prompt_files import GENERATION
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.downstream.instruct.report import PAGE_NAME, read_report
from ml_filter.downstream.instruct.run import make_instructions
from ml_filter.errors import MlFilterError, TooManyFailures
from tests.annotation.misbehaving import chat
from tests.downstream.instruct.author import PAGES, sensible

EVOLUTIONS = [f"instruct_evolve_{way}" for way in ("constraints", "deepen", "breadth")]
SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=None)


@pytest.fixture
def pages(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(page) + "\n" for page in PAGES))
    return SourceConfig(paths=[str(path)])


def asked(server, **changes) -> dict:
    return {"endpoints": [server.url], "model": "m", "max_concurrency": 4, "max_retries": 0, **changes}


def configured(server, **changes) -> InstructConfig:
    fields = {"write": asked(server), "evolve": {"prompts": EVOLUTIONS}}
    return InstructConfig.model_validate({**fields, "publish": {"validation_share": 0.3}, **changes})


def rows_of(manifest, view: str) -> list[dict]:
    paths = [shard.path for shard in manifest.shards if shard.path.startswith(f"data/{view}/")]
    return [row for path in paths for row in pq.read_table(manifest.path_of(path)).to_pylist()]


def test_only_as_many_passages_as_size_are_written_about(serve, tmp_path, pages):
    server = serve(sensible)
    run = make_instructions(
        pages, configured(server, size=2, evolve={"generations": 0}), str(tmp_path / "out"), SETTINGS
    )
    rows = {stage.name: stage.rows for stage in read_report(run.report).stages}
    assert rows["chunks"] > rows["sample"] == rows["written"] == 2


def test_documents_become_data_sets_and_everything_that_is_dropped_has_a_reason(serve, tmp_path, pages):
    server = serve(sensible)
    run = make_instructions(pages, configured(server), str(tmp_path / "out"), SETTINGS)
    report = read_report(run.report)
    stages = {stage.name: stage for stage in report.stages}
    assert stages["triples-0"].rows == 8
    assert stages["triples-0"].dropped == {"refusal": 1, "number_not_in_source": 3}
    ways = Counter(row["evolution"] for row in rows_of(run.published, "messages"))
    evolved = pq.read_table(Path(stages["evolving-1"].path) / "shards").to_pylist()
    deepened = sum(row["evolution"] == "deepen" for row in evolved)
    assert len(evolved) == 8
    assert stages["triples-1"].dropped == ({"unchanged": deepened} if deepened else {})
    assert stages["triples-1"].rows == 8 - deepened
    assert 0 < deepened < 8
    # the vague ones are rated 1 and dropped; their evolutions still say "grow fast"
    assert stages["rated"].dropped["low_rating"] == stages["deduplicated"].rows - stages["rated"].rows > 4
    assert ways[None] == 4
    assert report.instructions == sum(ways.values()) == stages["rated"].rows
    assert report.prompt_tokens == 10 * len(server.requests)
    assert report.completion_tokens == 5 * len(server.requests)

    messages, alpaca = rows_of(run.published, "messages"), rows_of(run.published, "alpaca")
    assert [turn["role"] for turn in messages[0]["messages"]] == ["user", "assistant"]
    assert all(row["rating"] == 4 and row["generated_by"] == "m" for row in messages)
    lineage = [
        (row["id"], row["parent_id"], row["evolution"], row["generation"]) for row in messages if row["parent_id"]
    ]
    assert lineage
    assert all((new, number) == (f"{parent}+{way}", 1) for new, parent, way, number in lineage)
    assert {parent for _, parent, _, _ in lineage} < {row["parent_id"] for row in evolved}
    assert {(row["instruction"], row["output"]) for row in alpaca} == {
        (row["messages"][0]["content"], row["messages"][1]["content"]) for row in messages
    }
    by_split = {
        split: {
            row["document_id"]
            for row in pq.read_table(tmp_path / run.published.path_of(f"data/messages/{split}.parquet")).to_pylist()
        }
        for split in ("train", "validation")
    }
    assert not by_split["train"] & by_split["validation"]

    page = Path(run.report.path_of(PAGE_NAME)).read_text()
    assert "Explain where" in page
    assert "m: 4. Clear." in page
    assert "triples-0: number not in source (1987)" in page
    card = Path(run.published.path_of("README.md")).read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "unknown"
    assert [config["config_name"] for config in header["configs"]] == ["messages", "alpaca"]
    assert "terms of a model may forbid" in card
    assert f"Written by: m ({report.instructions})." in card
    assert "Rated by: m." in card


def test_a_second_run_asks_nothing_and_a_higher_rating_rates_nothing_again(serve, tmp_path, pages):
    server = serve(sensible)
    first = make_instructions(pages, configured(server), str(tmp_path / "out"), SETTINGS)
    count = len(server.requests)
    again = make_instructions(pages, configured(server), str(tmp_path / "out"), SETTINGS)
    assert again.published.digest == first.published.digest
    strict = make_instructions(pages, configured(server, min_rating=4.5), str(tmp_path / "out"), SETTINGS)
    assert len(server.requests) == count
    assert read_report(strict.report).instructions == 0
    assert "No instruction was kept" in Path(strict.report.path_of(PAGE_NAME)).read_text()
    assert strict.published.shards == []


def test_a_writer_that_writes_nothing_usable_ends_with_a_report_that_says_so(serve, tmp_path, pages):
    empty = [{"instruction": "Write", "input": "", "output": "..."}, {"instruction": "", "input": "", "output": ""}]
    server = serve(lambda request: chat(json.dumps({"triples": empty})))
    run = make_instructions(pages, configured(server), str(tmp_path / "out"), SETTINGS)
    report = read_report(run.report)
    assert len(server.requests) == len(PAGES)  # nothing was evolved or rated
    assert [stage.name for stage in report.stages] == ["chunks", "written", "triples-0", "data"]
    assert report.stages[2].dropped == {"instruction_length": 4, "empty": 4}
    assert {example.reason for example in report.dropped} == {"instruction_length", "empty"}


def test_one_budget_holds_for_all_stages_and_a_higher_one_continues(serve, tmp_path, pages):
    usage = {"prompt_tokens": 300, "completion_tokens": 200, "total_tokens": 500}
    server = serve(lambda request: {**sensible(request), "usage": usage})
    with pytest.raises(TooManyFailures, match="budget"):
        make_instructions(pages, configured(server, budget_tokens=5_000), str(tmp_path / "out"), SETTINGS)
    spent = len(server.requests)
    assert len(PAGES) < spent <= 5_000 / 500  # it ended while instructions were evolved
    whole = make_instructions(pages, configured(server, budget_tokens=50_000), str(tmp_path / "out"), SETTINGS)
    report = read_report(whole.report)
    assert report.prompt_tokens + report.completion_tokens == 500 * len(server.requests) > 5_000
    bodies = Counter(json.dumps(request.body, sort_keys=True) for request in server.requests)
    assert max(bodies.values()) == 1  # nothing was paid for twice


@pytest.mark.parametrize(("answerer", "license"), [("m", "unknown"), (MODEL_NAME, MODEL_LICENSE)])
def test_preference_pairs_keep_only_what_is_preferred_in_both_orders(answerer, license, serve, tmp_path, pages):
    server = serve(sensible)
    answerers = [asked(server, model=answerer, temperature=temperature) for temperature in (0, 1)]
    prefer = {"answerers": answerers, "judge": asked(server)}
    config = configured(
        server,
        write=asked(server, model=MODEL_NAME),
        prefer=prefer,
        evolve={"generations": 0},
        publish={"format": "jsonl", "license": "odc-by"},
    )
    run = make_instructions(pages, config, str(tmp_path / "out"), SETTINGS)
    [path] = [shard.path for shard in run.published.shards if "preferences" in shard.path]
    rows = [json.loads(line) for line in Path(run.published.path_of(path)).read_text().splitlines()]
    assert len(rows) == read_report(run.report).preferences == 4
    for row in rows:
        assert row["prompt"][0]["content"].startswith("Explain where")
        assert "gravel" in row["chosen"][0]["content"]
        assert "gravel" not in row["rejected"][0]["content"]
        by = f"{answerer} at temperature 0", f"{answerer} at temperature 1"
        assert (row["chosen_by"], row["rejected_by"]) == by
    card = Path(run.published.path_of("README.md")).read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["license_name"]) == ("other", f"documents-odc-by-generated-{license}")
    assert f"Answers of pairs by: {by[0]} (4), {by[1]} (4)." in card


def test_answers_pass_the_checks_of_outputs_and_are_decontaminated_before_they_are_compared(serve, tmp_path, pages):
    gold = "The famous flower of these meadows opens every morning before the bees of the valley wake up."
    (tmp_path / "gold.jsonl").write_text(json.dumps({"text": gold}) + "\n")
    answers = {
        "Ferns": json.dumps({"answer": "I'm sorry, but I cannot say where they grow."}),
        "Lilies": json.dumps({"answer": f"In meadows. {gold}"}),
        "Thistles": "In pastures, I guess.",
        "Orchids": json.dumps({"answer": "In damp forests, with more water than elsewhere in the valley, and shade."}),
    }

    def careless(request):
        question = request.body["messages"][-1]["content"]
        return chat(next(answer for plant, answer in answers.items() if plant in question))

    server, other = serve(sensible), serve(careless)
    answerers = [asked(server), asked(other, model="n", max_failed_share=1)]
    config = configured(
        server,
        prefer={"answerers": answerers, "judge": asked(server)},
        evolve={"generations": 0},
        decontaminate={"against": [{"paths": [str(tmp_path / "gold.jsonl")]}]},
    )
    run = make_instructions(pages, config, str(tmp_path / "out"), SETTINGS)
    report = read_report(run.report)
    checked = [stage for stage in report.stages if stage.name == "checked-answers"]
    assert [stage.rows for stage in checked] == [4, 2]
    assert checked[1].dropped == {"refusal": 1, "generation_unparsable_json": 1}
    assert [sum(s.dropped.values()) for s in report.stages if s.name == "decontaminated-answers"] == [0, 1]
    assert "I'm sorry, but I cannot say" in next(e.output for e in report.dropped if e.stage == "checked-answers")
    [row] = rows_of(run.published, "preferences")
    assert "Orchids" in row["prompt"][0]["content"]
    assert sum('"winner"' in str(request.body) for request in server.requests) == 2


def test_answers_that_are_all_dropped_are_in_the_report(serve, tmp_path, pages):
    server = serve(sensible)
    refusing = serve(lambda request: chat(json.dumps({"answer": "I'm sorry, I cannot help you with plants."})))
    prefer = {"answerers": [asked(refusing), asked(refusing, temperature=1)], "judge": asked(server)}
    config = configured(server, prefer=prefer, evolve={"generations": 0})
    report = read_report(make_instructions(pages, config, str(tmp_path / "out"), SETTINGS).report)
    assert report.preferences == 0
    assert [s.dropped for s in report.stages if s.name == "checked-answers"] == [{"refusal": 4}] * 2
    assert report.prompt_tokens == 10 * (len(server.requests) + len(refusing.requests))


def test_the_data_sets_are_uploaded_and_load_by_their_names(serve, tmp_path, pages, hub):
    from datasets import load_dataset

    publish = {"push": "owner/set", "private": True, "license": "odc-by", "model_license": "odc-by"}
    config = configured(serve(sensible), evolve={"generations": 0}, publish=publish)
    run = make_instructions(pages, config, str(tmp_path / "out"), SETTINGS)
    assert hub.private["owner/set"]
    assert set(hub.data_sets["owner/set"]) == {"README.md", *(shard.path for shard in run.published.shards)}
    assert b"license: odc-by\n" in hub.data_sets["owner/set"]["README.md"]
    cache = str(tmp_path / "cache")
    messages = load_dataset(run.published.root, "messages", cache_dir=cache)
    assert sum(split.num_rows for split in messages.values()) == read_report(run.report).instructions == 4
    assert load_dataset(run.published.root, "alpaca", split="train", cache_dir=cache).column_names == [
        *("instruction", "input", "output")
    ]


def write_prompt(path: Path, shipped: str, **changes) -> str:
    """A copy of a shipped prompt with other fields."""
    fields = yaml.safe_load((GENERATION / f"{shipped}.yaml").read_text())
    path.write_text(yaml.safe_dump({**fields, **changes}))
    return str(path)


def test_prompts_in_files_of_the_user_write_evolve_and_answer(serve, tmp_path, pages):
    own = {
        name: write_prompt(tmp_path / f"{name}.yaml", shipped, name=name, system=f"You are the {name}.")
        for name, shipped in (
            *(("author", "instruct_write"), ("editor", "instruct_evolve_constraints"), ("expert", "instruct_answer")),
        )
    }
    server = serve(sensible)
    config = configured(
        server,
        write=asked(server, prompt=own["author"]),
        evolve={"prompts": [own["editor"]]},
        prefer={"answerers": [asked(server, prompt=own["expert"])], "judge": asked(server)},
    )
    run = make_instructions(pages, config, str(tmp_path / "out"), SETTINGS)
    assert {row["evolution"] for row in rows_of(run.published, "messages")} == {None, "editor"}
    systems = Counter(request.body["messages"][0]["content"] for request in server.requests)
    assert systems["You are the author."] == 4
    assert systems["You are the editor."] == 8
    assert systems["You are the expert."] == read_report(run.report).instructions


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"write": {"model": None}}, "--model"),
        ({"write": {"prompt": "instruct_answer"}}, r"the properties of the prompt instruct_write \(triples: list"),
        ({"evolve": {"prompts": ["instruct_answer"]}}, "the properties of the prompt instruct_evolve_breadth"),
        ({"evolve": {"prompts": EVOLUTIONS[:1] * 2}}, "two prompts have the name instruct_evolve_constraints"),
        ({"judges": [{"prompts": ["nothing"]}]}, "unknown prompt 'nothing'"),
        ({"prefer": {"answerers": [{}], "prompt": "instruct_answer"}}, "the properties of the prompt compare_answers"),
        ({"prefer": {"answerers": [{"prompt": "no.yaml"}]}}, r"no\.yaml"),
        ({"decontaminate": {"against": [{"paths": ["no.jsonl"]}]}}, r"no\.jsonl does not exist"),
        ({"judges": [{"prompts": ["instruction_quality"], "model": "n"}]}, "the model n needs an endpoint"),
        ({"publish": {"push": "owner/name"}}, "pushing to owner/name requires a token"),
    ],
)  # fmt: skip
def test_what_is_wrong_for_a_later_stage_is_an_error_before_anything_is_asked(
    serve, tmp_path, pages, monkeypatch, changes, says
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    server = serve(sensible)
    config = configured(server, **{**changes, "write": {**asked(server), **changes.get("write", {})}})
    with pytest.raises(MlFilterError, match=says):
        make_instructions(pages, config, str(tmp_path / "out"), SETTINGS)
    assert server.requests == []
    assert not (tmp_path / "out").exists()


def test_a_keyword_that_is_no_regular_expression_and_a_repository_without_an_owner_are_errors():
    with pytest.raises(ValueError, match=r"'\(a' is not a regular expression"):
        InstructConfig.model_validate({"check": {"keywords": ["(a"]}})
    with pytest.raises(ValueError, match="'noslash' is not OWNER/NAME"):
        InstructConfig.model_validate({"publish": {"push": "noslash"}})


def test_a_jury_is_aggregated_and_evaluation_texts_are_kept_out(serve, tmp_path, pages):
    def harsh(request):
        return chat(json.dumps({"reason": "No.", "score": 1})) if "score" in str(request.body) else sensible(request)

    server, other = serve(sensible), serve(harsh)
    jury = [
        {**asked(server), "prompts": ["instruction_quality", "instruction_grounding"]},
        {**asked(other, model="n"), "prompts": ["instruction_quality"]},
    ]
    (tmp_path / "gold.jsonl").write_text(
        json.dumps({"text": "Explain where Lilies grow and why they do well there."}) + "\n"
    )
    decontaminate = {"against": [{"paths": [str(tmp_path / "gold.jsonl")]}], "ngram_words": 8}
    config = configured(
        server,
        judges=jury,
        aggregate={"method": "mean"},
        min_rating=2.5,
        decontaminate=decontaminate,
        evolve={"generations": 0},
    )
    run = make_instructions(pages, config, str(tmp_path / "out"), SETTINGS)
    report = read_report(run.report)
    assert report.instructions == 3
    assert all(example.rating == 2.5 and len(example.reasons) == 3 for example in report.kept)
    [rated] = (tmp_path / "out").glob("rated-*")
    ratings = pq.read_table(rated / "shards").select(["rating_instruction_quality", "rating_instruction_grounding"])
    assert ratings.to_pylist() == [{"rating_instruction_quality": 2.5, "rating_instruction_grounding": 4.0}] * 3
    assert {row["rating"] for row in rows_of(run.published, "messages")} == {2.5}
    assert next(stage for stage in report.stages if stage.name == "decontaminated").dropped


def test_a_passage_is_the_output_of_an_instruction_that_was_written_for_it(serve, tmp_path, pages):
    def author(request):
        if "to which this text is a good answer" in request.body["messages"][-1]["content"]:
            return chat('{"instruction": "What happens in this place, and why is it so?"}')
        return sensible(request)

    server = serve(author)
    write = asked(server, prompt="instruct_for_passage")
    config = configured(server, write=write, evolve={"generations": 0}, min_rating=1)
    rows = rows_of(make_instructions(pages, config, str(tmp_path / "out"), SETTINGS).published, "alpaca")
    assert {row["output"] for row in rows} <= {page["text"] for page in PAGES}
    assert rows
