"""Generation against a server that writes what the schema asks for, or something else."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.generate import generate, load_generation_prompt, read_fields
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.responses import Answer
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError, TooManyFailures
from tests.annotation.misbehaving import chat, refused

PROMPT = {
    "name": "questions",
    "system": "You write questions.",
    "text": "Write questions about this page:\n=====\n{text}\n=====\nAnswer in JSON.",
    "max_tokens": 200,
    "schema": {
        "type": "object",
        "properties": {
            "topic": {"type": "string", "minLength": 1},
            "level": {"type": "integer"},
            "share": {"type": ["number", "null"]},
            "is_clear": {"type": "boolean"},
            "pairs": {
                "type": "array",
                "items": {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}},
            },
        },
    },
}
GOOD = {"topic": "ferns", "level": 3, "share": None, "is_clear": True, "pairs": [{"q": "What?", "a": "That."}]}


@pytest.fixture
def prompt(tmp_path):
    """Write the prompt, with some fields changed, and give its path."""

    def write(**changes) -> str:
        path = tmp_path / "questions.yaml"
        path.write_text(yaml.safe_dump({**PROMPT, **changes}, sort_keys=False))
        return str(path)

    return write


def config(server, **changes) -> AskConfig:
    fields = {"endpoints": [server.url], "model": "m", "max_concurrency": 4, "timeout_s": 20.0, "max_retries": 0}
    return AskConfig.model_validate({**fields, "max_failed_share": 1.0, **changes})


def source_of(tmp_path: Path, rows: list[dict]) -> SourceConfig:
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


def reading(text: str, prompt: str, *, cut_off: bool = False):
    return read_fields(Answer(text, cut_off=cut_off), load_generation_prompt(prompt))


def test_the_fields_of_the_answer_become_columns_beside_those_of_the_document(serve, tmp_path, prompt):
    rows = [
        {"id": "d0", "text": "[d0] ferns", "url": "https://a.org", "topic": "mine", "n": 1},
        {"id": "d1", "text": ""},
    ]
    server = serve(lambda request: chat(json.dumps(GOOD)))
    manifest = generate(source_of(tmp_path, rows), prompt(), config(server), tmp_path / "out")
    table = pq.read_table(manifest.shard_paths()[0])
    assert table.schema.field("level").type == pa.int64()
    assert table.schema.field("share").type == pa.float64()
    assert table.schema.field("pairs").type.value_type == pa.struct([("q", pa.string()), ("a", pa.string())])
    first, empty = table.to_pylist()
    status = {"generated_by": "m", "generation_status": "generated", "generation_error": None}
    kept = {"id": "d0", "text": "[d0] ferns", "url": "https://a.org", "input_topic": "mine", "n": 1}
    assert first == {**kept, **GOOD, **status, "generation_reason": None}
    assert (empty["generation_status"], empty["generation_error"], empty["topic"]) == ("failed", "no_text", None)
    assert (manifest.kind, manifest.counts["generated"], manifest.counts["failed"]) == ("generated", 1, 1)
    assert [entry["name"] for entry in manifest.config["prompts"]] == ["questions"]
    [kept_prompt] = (tmp_path / "out" / "prompts").glob("*.yaml")
    assert load_generation_prompt(str(kept_prompt)).digest == load_generation_prompt(prompt()).digest


def test_the_server_is_held_to_the_closed_schema_and_may_refuse_it(serve, tmp_path, prompt):
    def answer(request):
        if "response_format" in request.body:
            return refused(400, "response_format is not supported")
        return chat(f"Here it is:\n```json\n{json.dumps(GOOD)}\n```")

    server = serve(answer)
    pages = source_of(tmp_path, [{"id": "d0", "text": "[d0] ferns"}])
    manifest = generate(pages, prompt(), config(server), tmp_path / "out")
    assert manifest.counts["generated"] == 1
    schema = server.requests[0].body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(GOOD)
    pair = schema["properties"]["pairs"]["items"]
    assert (pair["required"], pair["additionalProperties"]) == (["q", "a"], False)
    assert server.requests[0].body["messages"][0] == {"role": "system", "content": "You write questions."}


def test_a_second_run_asks_nothing_and_another_prompt_is_asked_anew(serve, tmp_path, prompt):
    server = serve(lambda request: chat(json.dumps(GOOD)))
    pages, ledgers = source_of(tmp_path, [{"id": "d0", "text": "[d0] ferns"}]), str(tmp_path / "ledgers")
    first = generate(pages, prompt(), config(server), tmp_path / "a", ledgers=ledgers)
    again = generate(pages, prompt(), config(server), tmp_path / "b", ledgers=ledgers)
    assert len(server.requests) == 1
    assert again.digest == first.digest
    generate(pages, prompt(max_tokens=100), config(server), tmp_path / "c", ledgers=ledgers)
    assert len(server.requests) == 2


def test_a_column_can_choose_the_prompt_of_each_document(serve, tmp_path, prompt):
    server = serve(lambda request: chat(json.dumps(GOOD)))
    rows = [{"id": f"d{i}", "text": f"[d{i}] ferns", "way": way} for i, way in enumerate(["deep", "broad", "deep"])]
    prompts = {"deep": load_generation_prompt(prompt(system="Deep.")), "broad": load_generation_prompt(prompt())}
    manifest = generate(source_of(tmp_path, rows), prompts, config(server), tmp_path / "out", by="way")
    asked = {request.document: request.body["messages"][0]["content"] for request in server.requests}
    assert asked == {"d0": "Deep.", "d1": "You write questions.", "d2": "Deep."}
    assert manifest.counts["generated"] == 3
    other = {"type": "object", "properties": {"a": {"type": "string"}}}
    prompts["deep"] = load_generation_prompt(prompt(schema=other))
    with pytest.raises(ConfigError, match="different schemas"):
        generate(source_of(tmp_path, rows), prompts, config(server), tmp_path / "out", by="way")


def test_answers_that_do_not_fit_are_failed_with_the_place_and_never_repaired(serve, tmp_path, prompt):
    server = serve(lambda request: chat(json.dumps({**GOOD, "level": "three"})))
    pages = source_of(tmp_path, [{"id": "d0", "text": "[d0] ferns"}])
    with pytest.raises(TooManyFailures, match="schema_mismatch 1"):
        generate(pages, prompt(), config(server, max_failed_share=0), tmp_path / "out")
    manifest = generate(pages, prompt(), config(server), tmp_path / "out")
    [row] = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    assert row["generation_error"] == "schema_mismatch"
    assert row["generation_reason"] == "$.level: 'three' is not of type 'integer'"
    assert [row[name] for name in GOOD] == [None] * 5


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_answer"),
        ("<think>I wonder", "only_reasoning"),
        ("I cannot do that.", "unparsable_json"),
        (json.dumps({**GOOD, "more": 1}), "schema_mismatch"),
        (json.dumps({**GOOD, "level": 2**70}), "schema_mismatch"),
        (json.dumps({**GOOD, "share": float("nan")}), "schema_mismatch"),
        (json.dumps({**GOOD, "topic": ""}), "schema_mismatch"),
        (json.dumps({name: value for name, value in GOOD.items() if name != "topic"}), "schema_mismatch"),
    ],
)
def test_every_unusable_answer_has_its_code(prompt, text, code):
    with pytest.raises(AnswerError) as failure:
        reading(text, prompt())
    assert failure.value.code == code


def test_an_answer_that_was_cut_off_counts_only_if_it_is_whole(prompt):
    whole = json.dumps(GOOD)
    assert reading(whole + "\n\nI hope", prompt(), cut_off=True) == GOOD
    with pytest.raises(AnswerError) as failure:
        reading(whole[:-1], prompt(), cut_off=True)
    assert failure.value.code == "cut_off"


def test_the_order_of_the_properties_belongs_to_the_question(prompt):
    first = load_generation_prompt(prompt())
    schema = {**PROMPT["schema"], "properties": dict(reversed(PROMPT["schema"]["properties"].items()))}
    assert load_generation_prompt(prompt(schema=schema)).digest != first.digest


def test_lone_surrogates_are_replaced_and_the_last_object_counts(prompt):
    text = json.dumps({**GOOD, "topic": "draft"}) + json.dumps({**GOOD, "topic": "a\ud800b"})
    assert reading(text, prompt())["topic"] == "a?b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": {"type": "array", "items": {"type": "string"}}}, "must be that of an object"),
        ({"schema": {"type": "object", "properties": {"text": {"type": "string"}}}}, "'text' has the name of another"),
        ({"schema": {"type": "object", "properties": {"a": {"enum": [1, "x"]}}}}, "a: type must be one of string"),
        ({"schema": {"type": "object", "properties": {"a": {"type": "strin"}}}}, "not a JSON schema"),
        ({"text": "no placeholder"}, "placeholder"),
    ],
)
def test_a_wrong_prompt_file_is_one_line_that_names_the_file(prompt, changes, message):
    with pytest.raises(ConfigError, match=message) as failure:
        load_generation_prompt(path := prompt(**changes))
    assert path in str(failure.value)
    assert "\n" not in str(failure.value)
