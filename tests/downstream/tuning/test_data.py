"""Rows of every form as conversations, the tokens that count, and the split by document."""

import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.tuning.chat import IGNORED, TEMPLATES, set_template, tokens_of
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.data import conversation_of, document_of, sides_of, write_tokens
from ml_filter.errors import InputError

USER, ANSWER, OTHER = (
    {"role": r, "content": c} for r, c in (("user", "Why?"), ("assistant", "So."), ("assistant", "No."))
)


@pytest.fixture
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


def test_every_form_of_a_row_is_a_conversation():
    for row in (
        {"messages": [USER, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
    ):
        assert conversation_of(row) == ([], [USER, ANSWER], None)
    for row in (
        {"prompt": "Why?", "completion": "So."},
        {"prompt": [USER], "completion": [ANSWER], "id": "7"},
    ):
        assert conversation_of(row) == ([USER], [ANSWER], None)
    for row in (
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    ):
        assert conversation_of(row) == ([USER], [ANSWER], [OTHER])
    alpaca = conversation_of({"instruction": "Explain.", "input": "Why?", "output": "So."})
    assert alpaca.prompt[0]["content"] == "Explain.\n\nWhy?"
    assert alpaca.answer == [ANSWER]


def test_an_answer_may_be_a_list_in_json():
    answer = '[{"name": "Ada", "role": "admin"}]'
    for row in (
        {"prompt": "Who?", "completion": answer},
        {"instruction": "Who?", "output": answer},
        {"prompt": "Who?", "chosen": answer, "rejected": "[]"},
    ):
        assert conversation_of(row).answer == [{"role": "assistant", "content": answer}]


def test_the_document_of_a_row_may_be_0_and_else_is_its_prompt_in_any_form():
    def document(**row):
        return document_of(row, conversation_of(row), TuneConfig())

    alpaca = {"instruction": "Explain.", "input": "Why?", "output": "So."}
    assert document(**alpaca, document_id=0) == "0"
    user = {"role": "user", "content": "Explain.\n\nWhy?"}
    documents = {
        document(**alpaca),
        document(**alpaca, document_id=""),
        document(messages=[user, ANSWER]),
        document(prompt=user["content"], completion="So."),
        document(prompt=[user], chosen=[ANSWER], rejected=[OTHER]),
    }
    assert len(documents) == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "Why?"}, "the columns are text; known forms are"),
        ({"messages": [USER]}, "the last message is not of the assistant"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "the role 'robot'"),
        ({"messages": "Why?"}, "messages is not a list of messages"),
        ({"instruction": "Explain.", "output": " "}, "output has no text"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, "chosen and rejected are equal"),
        ({"chosen": "So.", "rejected": "No."}, "no prompt"),
    ],
)
def test_a_row_that_is_not_a_conversation_says_why(row, problem):
    with pytest.raises(ValueError, match=problem):
        conversation_of(row)


@pytest.mark.parametrize("name", [*TEMPLATES, "model"])
def test_only_answers_and_the_ends_of_their_turns_count(name, tokenizer):
    set_template(tokenizer, name)
    system = {"role": "system", "content": "Be brief."}
    tokens = tokens_of(tokenizer, [system, USER, ANSWER, USER, OTHER], 0)
    learned = [token for token in tokens.labels if token != IGNORED]
    assert [text.strip() for text in tokenizer.decode(learned).split("<|im_end|>")] == ["So.", "No.", ""]
    text = tokenizer.decode(tokens.ids)
    assert text.index("Be brief.") < text.index("Why?") < text.index("So.") < text.index("No.")
    last = tokens_of(tokenizer, [system, USER, ANSWER, USER, OTHER], 4)
    assert "So." not in tokenizer.decode([token for token in last.labels if token != IGNORED])


def test_templates_are_as_their_formats_are_defined(tokenizer):
    def rendered(name, **options):
        template = TEMPLATES[name].jinja
        return tokenizer.apply_chat_template([USER, ANSWER], chat_template=template, tokenize=False, **options)

    assert rendered("chatml") == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    assert rendered("llama3") == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>"
    )
    assert rendered("phi3") == "<|user|>\nWhy?<|end|>\n<|assistant|>\nSo.<|end|>\n"
    assert rendered("gemma") == (
        "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>\n"
    )
    alpaca = conversation_of({"instruction": "Explain.", "input": "Why?", "output": "So."})
    text = tokenizer.apply_chat_template(
        alpaca.prompt, chat_template=TEMPLATES["alpaca"].jinja, tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("Below is an instruction that describes a task, paired with an input")
    assert text.endswith("\n\n### Instruction:\nExplain.\n\n### Input:\nWhy?\n\n### Response:\n")


def write(rows, config, tokenizer, directory):
    directory.mkdir()
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(paths=[str(path)])
    set_template(tokenizer, "chatml")
    return write_tokens(list_shards(source)[0], source, config, tokenizer, directory, None)


def test_rows_of_a_document_are_on_the_same_side_and_none_is_lost(tokenizer, tmp_path):
    rows = [{"document_id": f"d{n // 5}", "instruction": f"Say {n}.", "output": "x " * n or "x"} for n in range(200)]
    rows += [{"text": "not one"}, {"instruction": "long " * 200, "output": "x"}]
    config = TuneConfig(held_out_share=0.3, max_tokens=100, max_held_out=40)
    summary = write(rows, config, tokenizer, tmp_path / "data")
    sides = [Dataset.from_file(str(tmp_path / "data" / f"{name}.arrow")) for name in ("train", "held-out")]
    assert not set(sides[0]["document"]) & set(sides[1]["document"])
    assert [len(side) for side in sides] == [summary.counts["train"], summary.counts["held_out"]]
    assert summary.counts["held_out"] == 40
    assert sum(summary.counts[name] for name in ("train", "held_out", "unused", "rejected")) == 202
    rejects = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rejects] == ["not_a_conversation", "too_long"]
    assert max(map(len, sides[0]["input_ids"])) == 100
    assert summary.counts["truncated"] > 0


def test_the_held_out_set_is_drawn_from_all_rows_in_any_order(tokenizer, tmp_path):
    rows = [{"document_id": f"d{n}", "instruction": f"Say {n}.", "output": "x"} for n in range(300)]
    config = TuneConfig(held_out_share=0.5, max_held_out=30)
    drawn = []
    for name, ordered in (("rows", rows), ("reversed", rows[::-1])):
        write(ordered, config, tokenizer, tmp_path / name)
        drawn.append(Dataset.from_file(str(tmp_path / name / "held-out.arrow"))["document"][:])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 30
    assert 5 < sum(int(document[1:]) < 150 for document in drawn[0]) < 25


def test_pairs_share_their_prompt(tokenizer, tmp_path):
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "no", "generated_by": "m"} for n in range(20)]
    config = TuneConfig(method="dpo", held_out_share=0.3)
    assert write(rows, config, tokenizer, tmp_path / "data").generated_by == {"m": 20}
    row = Dataset.from_file(str(tmp_path / "data" / "train.arrow"))[0]
    assert tokenizer.decode(row["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(row["rejected_ids"]) == "no<|im_end|>\n"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"text": "x"}], "has no conversation for sft: not_a_conversation 1 .*the columns are text"),
        (
            [{"instruction": "Say x.", "output": "x"}],
            "none of 1 conversations is left to hold out .*raise --held",
        ),
        ([{"instruction": f"Say {n}.", "output": "x"} for n in range(30)], "no row has a value in the column 'page'"),
    ],
)
def test_data_that_cannot_be_used_is_an_error(rows, problem, tokenizer, tmp_path):
    with pytest.raises(InputError, match=problem):
        write(rows, TuneConfig(document_column="page"), tokenizer, tmp_path / "data")


def test_of_published_data_the_form_for_the_method_is_read_with_its_own_split():
    views = [f"{view}/{split}" for view in ("messages", "alpaca", "preferences") for split in ("train", "validation")]
    shards = [InputShard(f"runs/published/data/{name}.parquet", "parquet") for name in views]
    own = InputShard("pairs.jsonl", "jsonl")
    assert sides_of([*shards, own], "dpo") == [(shards[4], "train"), (shards[5], "validation"), (own, None)]
    assert sides_of(shards[:1], "sft") == [(shards[0], None)]
    with pytest.raises(InputError, match="dpo needs preferences, but the published data has only alpaca, messages"):
        sides_of(shards[:4], "dpo")
