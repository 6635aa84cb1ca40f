"""Ratings are read in the order of the instructions, also by a run that continues in the middle."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.agreement.config import AggregateConfig
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.config import Settings
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.downstream.instruct.rate import rate_triples
from ml_filter.downstream.instruct.triples import TRIPLE_SCHEMA, TRIPLES
from ml_filter.errors import InputError
from tests.annotation.misbehaving import chat

SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=None)


def write_triples(directory, passage="") -> Manifest:
    """Three shards of four instructions."""
    with OutputDirectory(directory, TRIPLES, {}, []) as out:
        results = []
        for name, first in (("a", 0), ("b", 4), ("c", 8)):
            rows = [
                {
                    "id": f"t{n}",
                    "text": f"Instruction: Task {n}.\n\nOutput: Done.",
                    "instruction": f"Task {n}.",
                    "input": "",
                    "output": "Done.",
                    "passage": passage,
                }
                for n in range(first, first + 4)
            ]
            with out.new_shard(name) as writer, out.new_rejects(name) as rejects:
                writer.write(pa.Table.from_pylist(rows, schema=TRIPLE_SCHEMA))
            results.append((name, out.commit(name, writer, rejects, {})))
        return out.finish(results)


def judge(request):
    """The score 1 to 4 by the number of the task; no score for task 5."""
    number = int(re.search(r"Task (\d+)\.", request.body["messages"][-1]["content"])[1])
    return chat("?" if number == 5 else json.dumps({"reason": "So it is.", "score": number % 4 + 1}))


def test_a_long_passage_is_cut_and_not_the_instruction_and_its_output(serve, tmp_path):
    triples = write_triples(tmp_path / "triples", passage="A cell. " * 1600)
    server = serve(judge)
    asked = {"endpoints": [server.url], "model": "m", "max_retries": 0, "max_failed_share": 1}
    jury = [AnnotateConfig.model_validate({**asked, "prompts": ["instruction_quality"]})]
    assert rate_triples(triples, jury, AggregateConfig(), 3, str(tmp_path), SETTINGS).rows == 6
    shown = [request.body["messages"][-1]["content"] for request in server.requests]
    assert all(" [...]\n\nInstruction: Task" in text and "Output: Done." in text for text in shown)


def test_ratings_stay_with_their_instructions_when_a_run_continues_between_shards(serve, tmp_path, monkeypatch):
    triples = write_triples(tmp_path / "triples")
    asked = {"endpoints": [serve(judge).url], "model": "m", "max_retries": 0, "max_failed_share": 1}
    jury = [AnnotateConfig.model_validate({**asked, "prompts": ["instruction_quality"]})]
    commit = OutputDirectory.commit

    def killed_in_the_second(out, name, *args, **kwargs):
        if out.kind == "rated" and name == "b":
            raise KeyboardInterrupt
        return commit(out, name, *args, **kwargs)

    monkeypatch.setattr(OutputDirectory, "commit", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        rate_triples(triples, jury, AggregateConfig(), 3, str(tmp_path), SETTINGS)
    monkeypatch.undo()
    rated = rate_triples(triples, jury, AggregateConfig(), 3, str(tmp_path), SETTINGS)
    rows = [row for path in rated.shard_paths() for row in pq.read_table(path).to_pylist()]
    assert {row["id"]: row["rating"] for row in rows} == {f"t{n}": n % 4 + 1 for n in (2, 3, 6, 7, 10, 11)}
    dropped = pq.read_table(tmp_path / rated.path_of("dropped")).to_pylist()
    assert {row["id"]: row["reason"] for row in dropped} == {
        **{f"t{n}": "low_rating" for n in (0, 1, 4, 8, 9)}, "t5": "unrated",
    }  # fmt: skip


def test_ratings_of_other_instructions_are_an_error(serve, tmp_path, monkeypatch):
    from ml_filter.downstream.instruct import rate

    triples = write_triples(tmp_path / "triples")
    asked = {"endpoints": [serve(judge).url], "model": "m", "max_retries": 0, "max_failed_share": 1}
    jury = [AnnotateConfig.model_validate({**asked, "prompts": ["instruction_quality"]})]
    monkeypatch.setattr(rate, "_to_rate", lambda triple: [(f"{triple['id']} again", triple["text"])])
    with pytest.raises(InputError, match="are not in the order of those that they belong to"):
        rate_triples(triples, jury, AggregateConfig(), 3, str(tmp_path), SETTINGS)
