"""Instruction data as tokens: read rows of any known form, hold out documents, write what the trainer maps into memory.

Known forms, by their columns: `messages`; `prompt` and `completion`; `instruction`, `input` and `output` (Alpaca); and
the pairs `prompt`, `chosen` and `rejected`. A prompt or an answer is text or a list of messages, and a list may be JSON
text. SFT learns the chosen answers of pairs, and every answer of `messages`.
"""

from __future__ import annotations

import heapq
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from loguru import logger
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.readers import InputShard, read_records
from ml_filter.documents.rejects import RejectsLog, describe_counts
from ml_filter.downstream.tuning.chat import Message, Tokens, shared_length, tokens_of
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.errors import InputError
from ml_filter.location import Location, write_atomically
from ml_filter.prepare.sampling import sampling_key
from ml_filter.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN_FILE, HELD_OUT_FILE = "train.arrow", "held-out.arrow"
REJECTS_FILE = "rejects.jsonl"
TRAINED_ON_FILE = "trained_on.arrow"
"""The `keys_of` the conversations that are trained on, in the column `key`."""
_SUMMARY_FILE = "data.json"
_FORMS = "messages; prompt, completion; instruction, input, output; and for dpo prompt, chosen, rejected"
_ROLES = ("system", "user", "assistant")
_BATCH = 256
_IDS = pa.list_(pa.int32())
_SCHEMAS = {
    "sft": pa.schema({"input_ids": _IDS, "labels": _IDS, "document": pa.string()}),
    "dpo": pa.schema({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS, "document": pa.string()}),
}
_KEYS = pa.schema({"key": pa.uint64()})


_PUBLISHED = re.compile(r"/data/(?P<view>messages|alpaca|preferences)/(?P<split>train|validation)\.\w+$")
"""Files of the directories that `instruct` publishes: the same rows in several forms, split by document."""
_VIEWS = {"sft": "messages", "dpo": "preferences"}
_WRITERS = ("generated_by", "chosen_by", "rejected_by")


class DataSummary(BaseModel):
    """What became of the rows: counts, and how many answers each model in columns such as `generated_by` wrote.

    `read` rows are `rejected`, `train`, `held_out`, or `unused`: not drawn for the held-out set of `max_held_out`.
    `truncated` of them were longer than `max_tokens`. `learned_tokens` count for the loss, out of `train_tokens`.
    """

    counts: dict[str, int]
    generated_by: dict[str, int] = {}


class Conversation(NamedTuple):
    """A prompt and its answer, perhaps with a rejected one. Without a prompt, all answers in `answer` are learned."""

    prompt: list[Message]
    answer: list[Message]
    rejected: list[Message] | None = None


class _Rejected(ValueError):
    """Why a row cannot be used."""

    def __init__(self, detail: str, reason: str = "not_a_conversation") -> None:
        super().__init__(detail)
        self.reason = reason


def write_tokens(
    shards: Sequence[InputShard],
    source: SourceConfig,
    config: TuneConfig,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    base_trained_on: Path | None,
) -> DataSummary:
    """Write the tokens of all rows as Arrow streams for training and held out, what is trained on, and the rejects.

    A directory that already has them is unchanged.

    Args:
        base_trained_on: the file of the base, if `tune` wrote it; its keys are copied.

    Raises:
        InputError: no row is a conversation, or none is left for training or held out.
    """
    summary_file = directory / _SUMMARY_FILE
    if not summary_file.exists():
        summary = _write(shards, source, config, tokenizer, directory, base_trained_on)
        write_atomically(summary_file, summary.model_dump_json(indent=1).encode())
    return DataSummary.model_validate_json(summary_file.read_bytes())


def sides_of(shards: Sequence[InputShard], method: str) -> list[tuple[InputShard, str | None]]:
    """Each shard to read, and its side of the split: train, validation, or None: by the document of each row.

    Of what `instruct` has published, only the form for the method is read, with its own split.

    Raises:
        InputError: it was published without this form.
    """
    matches = {shard: _PUBLISHED.search(shard.uri) for shard in shards}
    chosen = [(shard, match) for shard, match in matches.items() if match is None or match["view"] == _VIEWS[method]]
    if not chosen:
        given = ", ".join(sorted({match["view"] for match in matches.values() if match is not None}))
        raise InputError(f"{method} needs {_VIEWS[method]}, but the published data has only {given}")
    is_split = any(match is not None and match["split"] == "validation" for _, match in chosen)
    return [(shard, match["split"] if match is not None and is_split else None) for shard, match in chosen]


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """The conversation in a row of any known form.

    Raises:
        ValueError: the row is not a conversation; says why.
    """
    if row.get("messages") is not None:
        return Conversation([], _ending_in_answer(_messages(row["messages"], "messages")))
    if row.get("chosen") is not None and row.get("rejected") is not None:
        chosen, rejected = (_messages(row[name], name, "assistant") for name in ("chosen", "rejected"))
        if row.get("prompt") is not None:
            return _pair(_messages(row["prompt"], "prompt", "user"), chosen, rejected)
        # Without a prompt, it is what both have in common.
        return _pair(chosen[: shared_length(chosen, rejected)], chosen, rejected)
    if row.get("instruction") is not None and row.get("output") is not None:
        parts = {"instruction": _text(row["instruction"], "instruction"), "input": str(row.get("input") or "").strip()}
        prompt: Message = {"role": "user", "content": "\n\n".join(filter(None, parts.values())), **parts}
        return Conversation([prompt], [{"role": "assistant", "content": _text(row["output"], "output")}])
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt_messages = _messages(row["prompt"], "prompt", "user")
        return Conversation(prompt_messages, _ending_in_answer(_messages(row["completion"], "completion", "assistant")))
    raise _Rejected(f"the columns are {', '.join(row)}; known forms are {_FORMS}")


def _pair(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Conversation:
    if not prompt:
        raise _Rejected("chosen and rejected have no prompt")
    chosen, rejected = (side[len(prompt) :] if side[: len(prompt)] == prompt else side for side in (chosen, rejected))
    if chosen == rejected:
        raise _Rejected("chosen and rejected are equal")
    return Conversation(prompt, _ending_in_answer(chosen), _ending_in_answer(rejected))


def _messages(value: Any, name: str, role: str | None = None) -> list[Message]:
    """A list of messages, perhaps as JSON; with a role, other text is the only message, of this role."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        if role is None or _has_message(parsed):
            value = parsed
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": _text(value, name)}]
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise _Rejected(f"{name} is not a list of messages")
    unknown = [item.get("role") for item in value if item.get("role") not in _ROLES]
    if unknown:
        raise _Rejected(f"{name} has the role {unknown[0]!r}; roles are {', '.join(_ROLES)}")
    return [{"role": item["role"], "content": _text(item.get("content"), name)} for item in value]


def _has_message(value: Any) -> bool:
    """Whether a value of JSON is a list with a message; another list is an answer that is JSON."""
    return isinstance(value, list) and any(
        isinstance(item, dict) and "content" in item and item.get("role") in _ROLES for item in value
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Rejected(f"{name} has no text")
    return value.strip()


def _ending_in_answer(messages: list[Message]) -> list[Message]:
    if not messages or messages[-1]["role"] != "assistant":
        raise _Rejected("the last message is not of the assistant")
    return messages


def _write(
    shards: Sequence[InputShard],
    source: SourceConfig,
    config: TuneConfig,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    base_trained_on: Path | None,
) -> DataSummary:
    names = ("read", "rejected", "truncated", "train", "held_out", "unused", "train_tokens", "learned_tokens")
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    generated_by: Counter[str] = Counter()
    schema = _SCHEMAS[config.method]
    named = 0  # rows with a document
    drawn: list[tuple[int, int, dict[str, Any]]] = []  # a heap of the held-out rows whose first has the largest rank
    with ExitStack() as stack:
        rejects = stack.enter_context(RejectsLog(directory / REJECTS_FILE))
        train = stack.enter_context(_StreamFile(directory / TRAIN_FILE, schema))
        held_out = stack.enter_context(_StreamFile(directory / HELD_OUT_FILE, schema))
        trained_on = stack.enter_context(_StreamFile(directory / TRAINED_ON_FILE, _KEYS))
        if base_trained_on is not None:
            with pa.ipc.open_stream(Location(base_trained_on).read_bytes()) as batches:
                for batch in batches:
                    trained_on.write(batch)
        bar = stack.enter_context(progress("Tokenising"))
        for shard, side in sides_of(shards, config.method):
            for location, row in read_records(shard, source, rejects):
                bar.advance()
                try:
                    conversation = conversation_of(row)
                    sides = _sides(tokenizer, conversation, config, counts)
                except _Rejected as error:
                    rejects.add(shard.uri, location, error.reason, str(error))
                    continue
                generated_by.update(str(row[name]) for name in _WRITERS if row.get(name))
                named += row.get(config.document_column) not in (None, "")
                document = document_of(row, conversation, config)
                columns = {**_columns(sides), "document": document}
                if not (is_held_out(document, config) if side is None else side == "validation"):
                    train.add(columns)
                    for key in keys_of(document, conversation):
                        trained_on.add({"key": key})
                    counts["train_tokens"] += sum(len(side.ids) for side in sides)
                    counts["learned_tokens"] += sum(side.learned for side in sides)
                    continue
                rank = sampling_key(digest_of([document, *map(_said, conversation)]), config.seed, "sample")
                heapq.heappush(drawn, (-rank, bar.done, columns))
                if len(drawn) > config.max_held_out:
                    heapq.heappop(drawn)
                    counts["unused"] += 1
        for *_, columns in sorted(drawn, reverse=True):
            held_out.add(columns)
    counts.update(rejected=rejects.total, train=train.rows, held_out=held_out.rows)
    counts["read"] = sum(counts[name] for name in ("rejected", "train", "held_out", "unused"))
    _check(counts, rejects, source, config)
    default = TuneConfig.model_fields["document_column"].default
    if not named and config.document_column != default:
        raise InputError(
            f"{', '.join(source.paths)}: no row has a value in the column {config.document_column!r}, which "
            "--document-column names"
        )
    return DataSummary(counts=dict(counts), generated_by=dict(generated_by))


def _check(counts: Counter[str], rejects: RejectsLog, source: SourceConfig, config: TuneConfig) -> None:
    paths, used = ", ".join(source.paths), counts["train"] + counts["held_out"]
    if not used:
        detail = f" ({rejects.first})" if rejects.first else ""
        raise InputError(f"{paths} has no conversation for {config.method}: {describe_counts(rejects.counts)}{detail}")
    if not counts["train"] or not counts["held_out"]:
        raise InputError(
            f"{paths}: none of {used} conversations is left {'to train on' if not counts['train'] else 'to hold out'} "
            f"with held_out_share {config.held_out_share:g}: each document is drawn on its own; provide more documents "
            f"or {'lower' if not counts['train'] else 'raise'} --held-out-share"
        )
    if counts["rejected"]:
        logger.warning(f"{counts['rejected']:,} of {counts['read']:,} rows are rejected; see {REJECTS_FILE}")


def document_of(row: Mapping[str, Any], conversation: Conversation, config: TuneConfig) -> str:
    """The document of a row; without one, its prompt stands for it, so that all answers to it are on the same side."""
    named = row.get(config.document_column)
    if named is None or named == "":
        return digest_of(_said(conversation.prompt or conversation.answer[:-1]))
    return str(named)


def keys_of(document: str, conversation: Conversation) -> list[int]:
    """64-bit hashes of the document and of the first message of the user, by which a conversation is recognized."""
    messages = [*conversation.prompt, *conversation.answer]
    tasks = [["task", message["content"]] for message in messages if message["role"] == "user"]
    return [int(digest_of(part)[:16], 16) for part in (["document", document], *tasks[:1])]


def _said(messages: Sequence[Message] | None) -> list[list[str]]:
    """Roles and contents, which are the same for a row in every form."""
    return [[message["role"], message["content"]] for message in messages or ()]


def is_held_out(document: str, config: TuneConfig) -> bool:
    """Whether the conversations of a document are held out; depends only on the document and the seed."""
    position = int(digest_of(["held out", config.seed, document])[:15], 16) / 16**15
    return position < config.held_out_share


def _sides(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, config: TuneConfig, counts: Counter[str]
) -> list[Tokens]:
    """The tokens of the conversation; of a pair for dpo, those with the chosen and with the rejected answer."""
    prompt, answer, rejected = conversation
    answers = [answer]
    if config.method == "dpo":
        if rejected is None:
            raise _Rejected("dpo needs the columns prompt, chosen and rejected")
        answers.append(rejected)
    whole = [tokens_of(tokenizer, [*prompt, *messages], len(prompt)) for messages in answers]
    sides = [Tokens(side.ids[: config.max_tokens], side.labels[: config.max_tokens]) for side in whole]
    if not all(side.learned for side in sides):
        raise _Rejected(f"no token of an answer is among the first {config.max_tokens} tokens", "too_long")
    counts["truncated"] += any(len(side.ids) > config.max_tokens for side in whole)
    return sides


def _columns(sides: Sequence[Tokens]) -> dict[str, NDArray[np.int32]]:
    if len(sides) == 1:
        columns = {"input_ids": sides[0].ids, "labels": sides[0].labels}
    else:
        chosen, rejected = sides
        shared = min(side.start for side in sides)
        columns = {
            "prompt_ids": chosen.ids[:shared],
            "chosen_ids": chosen.ids[shared:],
            "rejected_ids": rejected.ids[shared:],
        }
    return {name: np.array(ids, np.int32) for name, ids in columns.items()}


class _StreamFile:
    """An Arrow stream that gets its name when it is complete. `datasets` maps it into memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.rows = path, schema, 0
        self._pending: list[dict[str, Any]] = []

    def __enter__(self) -> _StreamFile:
        self._file = pa.OSFile(str(self.path.with_suffix(".tmp")), "wb")
        self._writer = pa.ipc.new_stream(self._file, self.schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        self._file.close()
        if kind is None:
            os.replace(self.path.with_suffix(".tmp"), self.path)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) >= _BATCH:
            self._flush()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        self._writer.write_batch(batch)

    def _flush(self) -> None:
        if self._pending:
            self.write(pa.RecordBatch.from_pylist(self._pending, self.schema))
        self._pending = []
