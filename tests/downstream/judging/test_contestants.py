"""Models that answer from their GGUF files, in the embedded server."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.judging.config import JudgeConfig
from ml_filter.downstream.judging.run import judge_tuned
from ml_filter.downstream.tuning.base import find_base
from ml_filter.downstream.tuning.export import export_gguf
from tests.downstream.judging.test_run import ROWS, SETTINGS, TUNING, asked, judge, write_tuned
from tests.downstream.tuning.tiny import write_noisy, write_tiny_gguf


@pytest.fixture
def twice_tuned(tiny_base, tmp_path) -> str:
    """A model that was tuned from a tuned one; both have a GGUF file."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source, base, root = SourceConfig(paths=[str(tmp_path / "data.jsonl")]), str(tiny_base), ""
    write_tiny_gguf(tiny_base, tmp_path / "like.gguf")
    for seed, name in enumerate(("first", "second")):
        directory = tmp_path / name / "tuned"
        write_noisy(tiny_base, directory / "model", seed)
        export_gguf(tmp_path / "like.gguf", directory / "model", directory / "model.gguf")
        config = TUNING.model_copy(update={"base": base})
        root = write_tuned(tmp_path / name, source, tiny_base, config=config, base=find_base(base).parent)
        base = root
    return root


@pytest.mark.slow
@pytest.mark.model
def test_base_and_tuned_model_answer_from_their_files(serve, twice_tuned, tmp_path):
    config = JudgeConfig(size=6, max_tokens=8, judge=asked(serve(judge), "judge"), rating_prompt=None, rouge=False)
    settings = SETTINGS.model_copy(update={"cache_dir": tmp_path / "cache"})
    judgement, _ = judge_tuned(twice_tuned, config, str(tmp_path / "out"), settings=settings)
    assert judgement.failed == {"base": 0, "tuned": 0}
    for side, name in (("base", "first"), ("tuned", "second")):
        directory = tmp_path / name / "tuned" / "model"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
        [shard] = (tmp_path / judgement.stages[side] / "shards").iterdir()
        same = 0
        for row in pq.read_table(shard).to_pylist():
            messages = [{"role": "user", "content": row["text"]}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                answer = model.half().float().generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=1)
            text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
            same += text[:4].strip() == row["answer"][:4].strip()
        assert same >= 5, f"the {side} answers with its own weights"
