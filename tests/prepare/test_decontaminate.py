# ruff: noqa: RUF001
import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError
from ml_filter.prepare.config import DecontaminateConfig
from ml_filter.prepare.decontaminate import decontaminate_documents
from ml_filter.prepare.ngrams import words

QUESTION = "Which gas do plants take in through the pores of their leaves when the sun is shining on them?"
CHINESE = "植物在阳光下通过叶片的气孔吸收哪一种气体并放出氧气"


def write(path: Path, rows: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


def rows_in(directory: Path, folder: str) -> list[dict]:
    return [row for file in sorted((directory / folder).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def decontaminate(directory: Path, texts: list[str], gold: list[str], **options) -> tuple[list[str], list[dict]]:
    """The ids of the texts that are kept, and the rows of those that are dropped; ids are numbers, gold's g0, g1..."""
    source = write(directory / "in.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    against = write(directory / "gold.jsonl", [{"id": f"g{i}", "text": text} for i, text in enumerate(gold)])
    config = DecontaminateConfig(against=[against], **options)
    manifest = decontaminate_documents(source, config, directory / "out")
    kept, dropped = [row["id"] for row in rows_in(directory / "out", "shards")], rows_in(directory / "out", "dropped")
    assert manifest.counts["read"] == len(texts)
    assert (manifest.counts["kept"], manifest.counts["dropped"]) == (len(kept), len(dropped))
    return kept, dropped


def test_a_page_with_thirteen_words_of_gold_is_dropped_with_its_gold_text(tmp_path):
    gold_words = QUESTION.split()
    page = "A quiz for friends. " + ", ".join(gold_words[3:16]).upper() + "! And more."
    kept, dropped = decontaminate(tmp_path, ["unrelated", page], ["something else", QUESTION])
    assert kept == ["0"]
    assert dropped == [
        {
            "id": "1",
            "gold_source": str(tmp_path / "gold.jsonl"),
            "gold_id": "g1",
            "reason": "ngrams",
            "ngrams": 1,
            "share": pytest.approx(1 / (len(gold_words) - 12)),
        }
    ]


def test_a_page_with_twelve_words_of_gold_is_kept(tmp_path):
    page = "A quiz: " + " ".join(QUESTION.split()[3:15]) + " or not."
    assert decontaminate(tmp_path, [page], [QUESTION])[0] == ["0"]


def test_a_gold_text_shorter_than_an_ngram_matches_only_the_same_words(tmp_path):
    texts = ["What is photosynthesis?", "what is: photosynthesis", f"What is photosynthesis? {QUESTION}"]
    kept, dropped = decontaminate(tmp_path, texts, ["What is photosynthesis"])
    assert kept == ["2"]
    assert [(row["id"], row["reason"], row["share"]) for row in dropped] == [
        ("0", "whole_text", 1.0),
        ("1", "whole_text", 1.0),
    ]


def test_a_page_with_less_than_the_share_of_gold_is_kept(tmp_path):
    gold_words = QUESTION.split()  # 19 words, 7 n-grams
    pages = [" ".join(gold_words[:count]) for count in (13, 15, 16, 19)]
    kept, dropped = decontaminate(tmp_path, pages, [QUESTION], min_share=0.5)
    assert kept == ["0", "1"]
    assert [(row["ngrams"], row["reason"]) for row in dropped] == [(4, "ngrams"), (7, "whole_text")]


@pytest.mark.parametrize(
    ("gold", "page"),
    [
        (CHINESE, f"今天的问题:{CHINESE[3:18]}?请回答。"),
        ("Шта биљке упијају кроз поре листова док сунце сија и шта при томе одлази у ваздух?", "ШТА БИЉКЕ УПИЈАЈУ кроз "
         "поре листова док сунце сија и шта при томе одлази у ваздух? То је питање."),
    ],
    ids=["Chinese", "Serbian"],
)  # fmt: skip
def test_gold_in_any_script_is_found(tmp_path, gold, page):
    kept, [dropped] = decontaminate(tmp_path, [page, page[:9]], [gold])
    assert kept == ["1"]
    assert dropped["gold_id"] == "g0"


def test_the_gold_text_with_the_greatest_share_over_all_sets_is_named(tmp_path):
    other = "How many moons does the largest planet of our solar system have as far as we know today?"
    source = write(tmp_path / "in.jsonl", [{"id": "both", "text": f"{other} {' '.join(QUESTION.split()[:14])}"}])
    first = write(tmp_path / "a.jsonl", [{"id": "q1", "text": QUESTION}])
    second = write(tmp_path / "b.jsonl", [{"key": 7, "question": other}])
    second = second.model_copy(update={"text_column": "question", "id_column": "key"})
    config = DecontaminateConfig(against=[first, second])
    manifest = decontaminate_documents(source, config, tmp_path / "out")
    [dropped] = rows_in(tmp_path / "out", "dropped")
    assert (dropped["gold_source"], dropped["gold_id"]) == (str(tmp_path / "b.jsonl"), "7")
    assert manifest.counts["dropped_whole_text"] == 1
    assert len(manifest.parents) == 3


TEXT = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=9).map(" ".join)


def naive(texts: list[str], gold: list[str], n: int) -> list[str]:
    def ngrams(text: str) -> set[tuple[str, ...]]:
        text_words = words(text)
        return {tuple(text_words[i : i + n]) for i in range(max(1, len(text_words) - n + 1))}

    known = set().union(*map(ngrams, gold))
    return [str(i) for i, text in enumerate(texts) if not ngrams(text) & known]


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=8), gold=st.lists(TEXT, min_size=1, max_size=3), n=st.integers(1, 4))
def test_kept_documents_share_no_ngram_with_gold_and_no_document_is_lost(texts, gold, n):
    with tempfile.TemporaryDirectory() as directory:
        kept, dropped = decontaminate(Path(directory), texts, gold, ngram_words=n)
    assert kept == naive(texts, gold, n)
    assert sorted(kept + [row["id"] for row in dropped]) == sorted(str(i) for i in range(len(texts)))


def test_real_gold_is_found_whole_and_nothing_else_is_dropped(tmp_path, shared_data):
    pages = [json.loads(line) for line in (shared_data / "fineweb_edu_llm_scored_1000.jsonl").read_bytes().splitlines()]
    gold = [json.loads(line) for line in (shared_data / "edu_human_gold_dev.jsonl").read_bytes().splitlines()]
    hidden = [{"id": row["id"], "text": f"{pages[0]['text']}\n{row['text']}"} for row in gold[:20]]
    source = write(tmp_path / "in.jsonl", [*({"id": row["id"], "text": row["text"]} for row in pages[:200]), *hidden])
    against = SourceConfig(paths=[str(shared_data / "edu_human_gold_dev.jsonl")])
    decontaminate_documents(source, DecontaminateConfig(against=[against]), tmp_path / "out")
    dropped = rows_in(tmp_path / "out", "dropped")
    assert [(row["id"], row["gold_id"], row["share"]) for row in dropped] == [
        (row["id"], row["id"], 1) for row in hidden
    ]


def test_an_error_names_the_source_without_documents(tmp_path):
    source, empty = write(tmp_path / "in.jsonl", [{"text": QUESTION}]), write(tmp_path / "empty.jsonl", [])
    with pytest.raises(InputError, match=r"no document could be read from .*empty\.jsonl"):
        decontaminate_documents(source, DecontaminateConfig(against=[source, empty]), tmp_path / "a")
    with pytest.raises(InputError, match=r"no document could be read from .*empty\.jsonl"):
        decontaminate_documents(empty, DecontaminateConfig(against=[source]), tmp_path / "b")


def test_changed_gold_is_not_mistaken_for_the_same_run(tmp_path):
    source, gold = write(tmp_path / "in.jsonl", [{"text": QUESTION}]), write(tmp_path / "g.jsonl", [{"text": "other"}])
    assert decontaminate_documents(source, DecontaminateConfig(against=[gold]), tmp_path / "out").counts["kept"] == 1
    gold = write(tmp_path / "g.jsonl", [{"text": QUESTION}])
    with pytest.raises(InputError, match="already contains a finished run with different settings or input"):
        decontaminate_documents(source, DecontaminateConfig(against=[gold]), tmp_path / "out")


def test_deduplicate_and_decontaminate_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = [QUESTION, QUESTION.upper(), CHINESE, "Another page, on other things."]
    write(tmp_path / "in.jsonl", [{"id": str(i), "body": text} for i, text in enumerate(texts)])
    write(tmp_path / "gold.jsonl", [{"question": CHINESE}])
    assert main(["deduplicate", "in.jsonl", "--text-column", "body", "--output", "unique"]) == 0
    assert "dropped near" in capsys.readouterr().out
    assert (
        main(["decontaminate", "unique", "--against", "gold.jsonl", "--against-column", "question", "-o", "clean"]) == 0
    )
    assert [row["id"] for row in rows_in(tmp_path / "unique", "shards")] == ["0", "2", "3"]
    assert [row["id"] for row in rows_in(tmp_path / "clean", "shards")] == ["0", "3"]
