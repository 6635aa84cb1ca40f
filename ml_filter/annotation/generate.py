"""Let an LLM write something structured about each document: the fields of a JSON schema become columns.

What is asked is a prompt file with the schema of the answer. Servers with structured output enforce it; every answer is
checked against it anyway, and is failed if it does not fit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from ml_filter.annotation.asking import Asking
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.parsing import json_objects
from ml_filter.annotation.plan import Call, Plan, Task
from ml_filter.annotation.prompt_files import GENERATION, shipped_file
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.reasoning import without_reasoning
from ml_filter.annotation.responses import Answer, storable
from ml_filter.annotation.run import run
from ml_filter.config import Settings, problems_in, read_yaml
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, digest_of
from ml_filter.documents.readers import InputShard
from ml_filter.documents.tables import rename_clashing_columns
from ml_filter.errors import ConfigError

GENERATED = "generated"
"""Status of a row whose answer fits the schema, and kind of the directory."""
STATUS_COLUMNS = ("generated_by", "generation_status", "generation_error", "generation_reason")
_SCALARS = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}


class GenerationPrompt(Question):
    """A question whose answer is a JSON object.

    In the file, `schema` is the JSON schema of the answer: an object whose properties are strings, integers, numbers,
    booleans, arrays or objects of these. Properties are required, and others are not allowed, unless the schema says
    `required` or `additionalProperties` itself.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    mode: Literal["json"] = "json"
    top_logprobs: int = 0
    language: str = "en"
    answer_schema: dict[str, Any] = Field(alias="schema")

    @model_validator(mode="before")
    @classmethod
    def _is_its_own_criterion(cls, fields: Any) -> Any:
        return {"criterion": fields.get("name"), **fields} if isinstance(fields, dict) else fields

    @field_validator("answer_schema")
    @classmethod
    def _gives_columns(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from error
        if schema.get("type") != "object":
            raise ValueError("the schema must be that of an object (type: object)")
        taken = [name for name in schema.get("properties", {}) if name in ("id", "text", *STATUS_COLUMNS)]
        if taken:
            raise ValueError(f"the property {taken[0]!r} has the name of another column; rename it")
        _arrow_type("the schema", schema)
        return schema

    @cached_property
    def digest(self) -> str:
        """As of every question, and of the order of the properties, in which a server has them written."""
        return digest_of([self.model_dump(exclude={"description"}), json.dumps(self.answer_schema)])

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of an answer, with every object closed, as strict structured output requires."""
        closed: dict[str, Any] = _closed(self.answer_schema)
        return closed

    @cached_property
    def fields(self) -> pa.Schema:
        """The columns of an answer."""
        return pa.schema(list(_arrow_type("the schema", self.answer_schema)))

    @cached_property
    def validator(self) -> Any:
        """Checks answers."""
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self.json_schema)


def _arrow_type(name: str, schema: Mapping[str, Any]) -> pa.DataType:
    """The type of a value; raises ValueError for what is not a column."""
    kinds = schema.get("type")
    [kind, *others] = [kind for kind in kinds if kind != "null"] if isinstance(kinds, list) else [kinds]
    if kind in _SCALARS and not others:
        return _SCALARS[kind]
    if kind == "array" and isinstance(schema.get("items"), dict):
        return pa.list_(_arrow_type(f"items of {name}", schema["items"]))
    if kind == "object" and schema.get("properties"):
        return pa.struct([(field, _arrow_type(field, inner)) for field, inner in schema["properties"].items()])
    raise ValueError(
        f"{name}: type must be one of {', '.join(_SCALARS)}, array with items, or object with properties, or a list of "
        "one of these and null"
    )


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(inner) for name, inner in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type", "object") == "object":
        closed = {"required": list(schema["properties"]), "additionalProperties": False} | closed
    return closed


def load_generation_prompt(name_or_file: str, like: Sequence[str] = ()) -> GenerationPrompt:
    """Load a prompt by the name of a shipped one (configs/prompts/generation) or by the path of a YAML file.

    Args:
        like: names of shipped prompts; the answers must have the columns of one of them, for code that reads them.

    Raises:
        ConfigError: the prompt does not exist, or a field of the file is invalid.
    """
    path = shipped_file(name_or_file, GENERATION, "generation prompt")
    try:
        prompt = GenerationPrompt.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"prompt file {path}: {problems_in(error, 'prompt')}") from error
    known = {name: load_generation_prompt(name).fields for name in like}
    if known and not any(_has_columns(prompt.fields, fields) for fields in known.values()):
        columns = (", ".join(f"{field.name}: {field.type}" for field in fields) for fields in known.values())
        needed = ", or of ".join(f"{name} ({text})" for name, text in zip(known, columns, strict=True))
        raise ConfigError(f"prompt file {path}: its schema must have the properties of the prompt {needed}")
    return prompt


def require_same_columns(prompts: Sequence[GenerationPrompt]) -> None:
    """Check that the answers to all prompts have the same columns.

    Raises:
        ConfigError: they do not.
    """
    first = prompts[0]
    for other in prompts:
        if not (_has_columns(first.fields, other.fields) and _has_columns(other.fields, first.fields)):
            raise ConfigError(f"the prompts {first.name} and {other.name} have different schemas")


def _has_columns(given: pa.Schema, needed: pa.Schema) -> bool:
    """Whether a schema has the columns of another, with whatever others and in whatever order."""
    return _has_type(pa.struct(list(given)), pa.struct(list(needed)))


def _has_type(given: pa.DataType, needed: pa.DataType) -> bool:
    if pa.types.is_struct(given) and pa.types.is_struct(needed):
        names = {field.name for field in given}
        return all(field.name in names and _has_type(given.field(field.name).type, field.type) for field in needed)
    if pa.types.is_list(given) and pa.types.is_list(needed):
        return _has_type(given.value_type, needed.value_type)
    return bool(given == needed)


def generate(
    source: SourceConfig,
    prompt: GenerationPrompt | str | Mapping[str, GenerationPrompt | str],
    config: AskConfig,
    output: str | Path,
    settings: Settings | None = None,
    *,
    by: str = "prompt",
    ledgers: str | None = None,
    kept_from: str | None = None,
) -> Manifest:
    """Ask one question about every document. Every answer is in the ledger before it counts.

    Writes all columns of the documents, the fields of the answer (null if it failed), `generated_by`,
    `generation_status` (`generated` or `failed`), `generation_error` and `generation_reason`; an input column with such
    a name becomes `input_<name>`.

    Args:
        prompt: or the name or file of one; or several with the same schema, by the value of the column `by`.
        ledgers: directory of ledgers that outputs share, one for each set of questions.
        kept_from: what follows this mark in a document is not cut (see `Windows`).

    Raises:
        ConfigError: the prompt or a setting is wrong.
        TooManyFailures, EndpointError, InputError: see `run`.
    """
    settings = settings or Settings()
    prompts = prompt if isinstance(prompt, Mapping) else {"": prompt}
    questions = {
        value: load_generation_prompt(named) if isinstance(named, str) else named for value, named in prompts.items()
    }
    annotator = annotator_name(config, settings)
    task = _GenerationTask(questions, by if isinstance(prompt, Mapping) else None, annotator)
    task.kept_from = kept_from
    return run(Plan(source, config, task, annotator), Asking(settings), output, ledgers)


class _GenerationTask(Task):
    """One prompt for all documents, or one for each value of a column.

    Raises:
        ConfigError: the prompts have different schemas.
    """

    kind, shard, done, doing = GENERATED, "documents", GENERATED, "Generating"
    schema = None

    def __init__(self, prompts: Mapping[str, GenerationPrompt], by: str | None, annotator: str) -> None:
        self.prompts, self.by, self.annotator = prompts, by, annotator
        self.questions: Sequence[GenerationPrompt] = list(prompts.values())
        self.fields = self.questions[0].fields
        require_same_columns(self.questions)

    @cached_property
    def identity(self) -> dict[str, Any]:
        prompts = [{"name": question.name, "digest": question.digest} for question in self.questions]
        return {"prompts": prompts, "by": self.by}

    def choices(self, documents: pa.Table) -> Sequence[str | None]:
        return [""] * documents.num_rows if self.by is None else list(documents[self.by].to_pylist())

    def questions_for(self, choice: str | None) -> Sequence[GenerationPrompt]:
        return self.questions[:1] if choice is None else [self.prompts[choice]]

    def read(self, answer: Answer, call: Call) -> dict[str, Any]:
        assert isinstance(call.question, GenerationPrompt)
        return {"fields": read_fields(answer, call.question)}

    def table(
        self, shard: InputShard, documents: pa.Table, rows: list[dict[str, Any]], counts: Counter[str]
    ) -> pa.Table:
        by_id = {row["document_id"]: row for row in rows}
        results = [by_id.get(document_id, {}) for document_id in documents["id"].to_pylist()]
        answers = [row.get("fields") or {} for row in results]
        states = {
            "generated_by": [self.annotator if row.get("status") == self.done else None for row in results],
            "generation_status": [row.get("status") for row in results],
            "generation_error": [row.get("error") for row in results],
            "generation_reason": [row.get("reason") for row in results],
        }
        added = {
            field.name: pa.array([answer.get(field.name) for answer in answers], field.type) for field in self.fields
        } | {name: pa.array(values, pa.string()) for name, values in states.items()}
        table = rename_clashing_columns(documents, list(added))
        for name, column in added.items():
            table = table.append_column(name, column)
        return table


def read_fields(answer: Answer, question: GenerationPrompt) -> dict[str, Any]:
    """The last JSON object in an answer.

    Raises:
        AnswerError: `empty_answer`, `only_reasoning`, `cut_off`, `unparsable_json` or `schema_mismatch`.
    """
    text = without_reasoning(answer.text)
    written = [json.loads(storable(json.dumps(value, ensure_ascii=False))) for value in json_objects(text or "")]
    fields: dict[str, Any] | None = written[-1] if written else None
    problem = None if fields is None else _problem(fields, question)
    if fields is not None and problem is None:
        return fields
    if answer.cut_off:
        raise AnswerError("cut_off", f"the answer reached max_tokens ({question.max_tokens:,}) before its end")
    if not answer.text.strip():
        raise AnswerError("empty_answer", "the answer is empty")
    if text is None or not text.strip():
        raise AnswerError("only_reasoning", "the answer is only reasoning")
    if problem is None:
        raise AnswerError("unparsable_json", f"the answer has no JSON object; it begins with {text.strip()[:100]!r}")
    raise AnswerError("schema_mismatch", problem)


def _problem(value: dict[str, Any], question: GenerationPrompt) -> str | None:
    """Why a value does not fit the schema or its columns; None: it does."""
    from jsonschema.exceptions import best_match

    error = best_match(question.validator.iter_errors(value))
    if error is not None:
        return f"{error.json_path}: {error.message[:300]}"
    try:
        json.dumps(value, allow_nan=False)  # the decoder reads NaN, which is not JSON
        for field in question.fields:
            pa.array([value.get(field.name)], field.type)
    except (ValueError, OverflowError, pa.ArrowException) as failure:
        return str(failure)
    return None
