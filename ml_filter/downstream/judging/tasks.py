"""The tasks that both models answer: the first message of conversations that the model was not trained on."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_records
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.data import TRAINED_ON_FILE, conversation_of, document_of, keys_of, sides_of
from ml_filter.downstream.tuning.result import TunedModel
from ml_filter.errors import InputError
from ml_filter.prepare.sampling import sampling_key

TASK_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "reference", "document")])
_FEW = "the data has no conversation of one task and one answer that the model was not trained on"


class _Drawn(NamedTuple):
    key: int
    id: str
    row: dict[str, str]


def held_out_tasks(data: SourceConfig, model: TunedModel, size: int, seed: int, output: str) -> Manifest:
    """A random choice of the held-out tasks, with the answers of the data as `reference`.

    A task is held out if the model was trained neither on it nor on another one of its document, wherever the data is
    from. Only conversations of one task and one answer are used, and one of each document and of each text, since the
    intervals of the figures take tasks as independent. The others, and those that were trained on, are counted.

    Raises:
        InputError: no task is left, or the record of what the model was trained on is missing.
    """
    shards, parents = list_shards(data)
    tuning, trained_on = model.result.config, model.trained_on()
    fixed = {
        "size": size,
        "seed": seed,
        "source": data.model_dump(mode="json", exclude={"paths"}),
        "tuning": tuning.model_dump(mode="json", include={"method", "document_column"}),
        "trained_on": model.result.files[TRAINED_ON_FILE],
    }
    with OutputDirectory(output, "tasks", fixed, parents) as out:
        if out.manifest:
            return out.manifest
        counts: Counter[str] = Counter(read=0, trained_on=0, other_forms=0, same_document=0, same_task=0, not_drawn=0)
        drawn: list[_Drawn] = []  # a heap whose first has the largest key
        documents: set[str] = set()  # of the tasks in the heap
        ids: set[str] = set()
        with out.new_shard("tasks", TASK_SCHEMA) as writer, out.new_rejects("tasks") as rejects:
            for shard, _ in sides_of(shards, tuning.method):
                for _, row in read_records(shard, data, rejects):
                    counts["read"] += 1
                    task = _task(row, tuning, trained_on, counts)
                    if task is None:
                        continue
                    if task["document"] in documents:
                        counts["same_document"] += 1
                        continue
                    if task["id"] in ids:
                        counts["same_task"] += 1
                        continue
                    documents.add(task["document"])
                    ids.add(task["id"])
                    # By the document, so that a later task of one that was dropped is dropped too.
                    heapq.heappush(drawn, _Drawn(-sampling_key(task["document"], seed, "sample"), task["id"], task))
                    if len(drawn) > size:
                        counts["not_drawn"] += 1
                        dropped = heapq.heappop(drawn)
                        documents.remove(dropped.row["document"])
                        ids.remove(dropped.id)
            if not drawn:
                detail = ", ".join(f"{name} {count:,}" for name, count in counts.items())
                raise InputError(f"{', '.join(data.paths)}: {_FEW} ({detail})")
            rows = [item.row for item in sorted(drawn, key=lambda item: item.id)]
            writer.write(pa.Table.from_pylist(rows, schema=TASK_SCHEMA))
        return out.finish([("tasks", out.commit("tasks", writer, rejects, counts))])


def _task(row: Any, tuning: TuneConfig, trained_on: NDArray[np.uint64], counts: Counter[str]) -> dict[str, str] | None:
    try:
        conversation = conversation_of(row)
    except ValueError:
        counts["other_forms"] += 1
        return None
    prompt, answer = conversation.prompt, conversation.answer
    document = document_of(row, conversation, tuning)
    if not prompt:
        prompt, answer = answer[:-1], answer[-1:]
    if len(prompt) != 1 or len(answer) != 1 or prompt[0]["role"] != "user":
        counts["other_forms"] += 1
        return None
    keys = np.array(keys_of(document, conversation), np.uint64)
    if (trained_on.take(np.searchsorted(trained_on, keys), mode="clip") == keys).any():
        counts["trained_on"] += 1
        return None
    text, reference = prompt[0]["content"], answer[0]["content"]
    return {"id": digest_of([text])[:16], "text": text, "reference": reference, "document": document}
