# ruff: noqa: RUF001
import json
import random
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError
from ml_filter.location import write_atomically
from ml_filter.prepare import deduplicate as deduplicate_module
from ml_filter.prepare.config import DeduplicateConfig
from ml_filter.prepare.deduplicate import deduplicate_documents
from ml_filter.prepare.minhash import Buckets, first_of_cluster, rows_per_band, shared_buckets, signatures
from ml_filter.prepare.ngrams import ngram_hashes, words
from tests.kills import Killed, kill_at

LESSON = """Photosynthesis turns light into the energy that a plant can store. Leaves take in carbon dioxide through
small pores, roots bring water, and chlorophyll catches the light that drives the two together. What comes out is
sugar, which feeds the plant, and oxygen, which goes back into the air. At night the process rests, and the plant
lives on what it stored during the day. A plant in the shade grows slowly because less light reaches its leaves."""
CHINESE = (
    "光合作用是植物把光能转化为化学能的过程。叶片通过气孔吸收二氧化碳,根部吸收水分,叶绿素捕捉阳光,把两"
    "者结合成糖,并放出氧气。夜里没有阳光,植物就依靠白天储存的养分继续生长,直到太阳再次升起。"
)
THAI = (
    "การสังเคราะห์ด้วยแสงเป็นกระบวนการที่พืชเปลี่ยนพลังงานแสงให้เป็นพลังงานเคมี ใบไม้ดูดคาร์บอนไดออกไซด์ผ"
    "่านปากใบ รากดูดน้ำจากดิน และคลอโรฟิลล์จับแสงอาทิตย์เพื่อสร้างน้ำตาลและออกซิเจน"
)
SERBIAN = (
    "Фотосинтеза је процес у коме биљка претвара светлост у енергију. Листови упијају угљен-диоксид кроз "
    "поре, корен доноси воду, а хлорофил хвата светлост која их спаја. Настају шећер, којим се биљка хран"
    "и, и кисеоник, који одлази у ваздух. Ноћу биљка живи од онога што је сачувала током дана."
)


def write(directory: Path, *shards: list[dict]) -> SourceConfig:
    directory.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        (directory / f"part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(directory)])


def rows_in(directory: Path, folder: str) -> list[dict]:
    return [row for file in sorted((directory / folder).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def deduplicate(source: SourceConfig, directory: Path, **options) -> tuple[list[dict], list[dict]]:
    manifest = deduplicate_documents(source, DeduplicateConfig(**options), directory)
    kept, dropped = rows_in(directory, "shards"), rows_in(directory, "dropped")
    assert manifest.counts["kept"] == manifest.rows == len(kept)
    assert manifest.counts["dropped"] == len(dropped)
    return kept, dropped


def of_texts(directory: Path, *texts: str, **options) -> tuple[list[str], dict[str, dict]]:
    """Deduplicate texts with the ids 0, 1, ...; the ids that are kept, and the dropped rows by id."""
    source = write(directory / "in", [{"id": str(number), "text": text} for number, text in enumerate(texts)])
    kept, dropped = deduplicate(source, directory / "out", **options)
    return [row["id"] for row in kept], {row["id"]: row for row in dropped}


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    text_words = words(text)
    return {tuple(text_words[i : i + n]) for i in range(max(1, len(text_words) - n + 1))}


# --- Words and similarity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The CAT's whiskers, 3.5 cm!", ["the", "cat", "s", "whiskers", "3", "5", "cm"]),
        ("ﬁne ＡＢＣ Straße", ["fine", "abc", "strasse"]),
        ("光合作用 is 光", ["光", "合", "作", "用", "is", "光"]),
        ("ひらがなカタ", ["ひ", "ら", "が", "な", "カ", "タ"]),
        ("กินน้ำ", ["กิ", "น", "น้ํ", "า"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Биљка расте", ["биљка", "расте"]),
        ("!!! ???", ["!!!", "???"]),
    ],
)
def test_words_are_those_of_the_language(text, expected):
    assert words(text) == expected


def test_ngrams_have_equal_hashes_exactly_if_their_words_are_equal():
    [hashes] = ngram_hashes([f"{LESSON} and again: {LESSON}"], 5)
    text_words = words(f"{LESSON} and again: {LESSON}")
    grams = [tuple(text_words[i : i + 5]) for i in range(len(text_words) - 4)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams)) < len(grams)
    assert all((hashes[i] == hashes[j]) == (grams[i] == grams[j]) for i in range(20) for j in range(len(grams)))


def test_a_text_shorter_than_an_ngram_is_one_ngram():
    a, b, c = ngram_hashes(["two words", "Two -- words!", "two"], 5)
    assert len(a) == len(b) == len(c) == 1
    assert a[0] == b[0] != c[0]


def test_estimated_similarity_is_close_to_the_exact_one(documents):
    rng = random.Random(0)
    texts = [row["text"] for row in documents if len(words(row["text"])) > 50][:30]
    changed = []
    for text in texts:
        text_words = words(text)
        for _ in range(rng.randint(0, len(text_words) // 15)):
            text_words[rng.randrange(len(text_words))] = "changed"
        changed.append(" ".join(text_words))
    exact = [
        len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) for a, b in zip(texts, changed, strict=True)
    ]
    estimated = (signatures(texts, 512, 3) == signatures(changed, 512, 3)).mean(axis=1)
    errors = estimated - np.array(exact)
    assert 0.3 < np.mean(exact) < 0.95
    assert np.abs(errors).max() < 4 * 0.5 / 512**0.5
    assert abs(errors.mean()) < 0.01


@given(threshold=st.floats(0.3, 1), permutations=st.sampled_from([64, 128, 120, 256]))
def test_a_pair_at_the_threshold_shares_a_band_nine_times_in_ten(threshold, permutations):
    rows = rows_per_band(threshold, permutations)
    assert permutations % rows == 0
    assert 1 - (1 - threshold**rows) ** (permutations // rows) >= 0.9 or rows == 1


@settings(deadline=None)
@given(keys=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), max_size=12))
def test_clusters_are_the_documents_linked_by_shared_keys(keys):
    table = np.array(keys, dtype=np.uint64).reshape(-1, 2)
    shared = shared_buckets(table[:, column].copy() for column in range(2))
    first = list(range(len(keys)))
    for _ in keys:  # as many rounds as links can be long
        for a in range(len(keys)):
            for b in range(len(keys)):
                if any(x == y for x, y in zip(keys[a], keys[b], strict=True)):
                    first[a] = first[b] = min(first[a], first[b])
    assert first_of_cluster(shared, len(keys)).tolist() == first
    assert all(a <= b for a, b in pairwise(shared.documents.tolist()))


def test_every_shared_bucket_has_at_least_two_documents():
    assert shared_buckets([np.array([5, 6, 5, 7], dtype=np.uint64)]) == Buckets(
        documents=pytest.approx([0, 2]), buckets=pytest.approx([0, 0]), total=1
    )


# --- What is dropped -------------------------------------------------------------------------------------------------


def test_white_space_and_unicode_form_do_not_hide_an_exact_duplicate(tmp_path):
    kept, dropped = of_texts(tmp_path, "Café au lait", "Tea", "Cafe\u0301  au\nlait", "Café au lait")
    assert kept == ["0", "1"]
    assert dropped == {name: {"id": name, "kept_id": "0", "reason": "exact", "similarity": 1.0} for name in ("2", "3")}


@pytest.mark.parametrize("text", [LESSON, CHINESE, THAI, SERBIAN], ids=["English", "Chinese", "Thai", "Serbian"])
def test_a_small_change_is_a_near_duplicate_and_a_changed_half_is_not(tmp_path, text):
    halfway = len(text) // 2
    kept, dropped = of_texts(tmp_path, text, text[:-4] + ".", text[:halfway] + text[:halfway][::-1])
    assert kept == ["0", "2"]
    assert dropped["1"]["kept_id"] == "0"
    assert dropped["1"]["reason"] == "near"
    assert 0.8 <= dropped["1"]["similarity"] <= 1


def test_texts_of_one_different_word_are_not_duplicates(tmp_path):
    assert of_texts(tmp_path, "Yes", "No", "yes!", "🙂", "🙃", "🙂")[0] == ["0", "1", "3", "4"]


def test_a_document_is_dropped_only_for_a_similar_one_that_is_kept(tmp_path):
    a = [f"word{i}" for i in range(200)]
    b = [*a[:-10], *(f"end{i}" for i in range(10))]
    c = [*(f"start{i}" for i in range(10)), *b[10:]]
    assert (
        len(shingles(" ".join(a)) & shingles(" ".join(c))) / len(shingles(" ".join(a)) | shingles(" ".join(c))) < 0.82
    )
    source = write(
        tmp_path / "in", [{"id": name, "text": " ".join(text)} for name, text in [("a", a), ("b", b), ("c", c)]]
    )
    kept, [dropped] = deduplicate(source, tmp_path / "out", threshold=0.86, permutations=512)
    assert (dropped["id"], dropped["kept_id"]) == ("b", "a")
    assert dropped["similarity"] == pytest.approx(0.9, abs=0.04)
    assert [(row["id"], row["duplicates"], row["duplicate_cluster"]) for row in kept] == [("a", 1, "a"), ("c", 0, "a")]


def test_kept_documents_count_their_duplicates_and_keep_their_columns(tmp_path):
    source = write(
        tmp_path / "in",
        [{"id": "a", "text": LESSON, "url": "u", "duplicates": 7}, {"id": "b", "text": CHINESE, "url": None}],
        [{"id": "c", "text": LESSON + " Indeed."}, {"id": "d", "text": LESSON}],
    )
    kept, dropped = deduplicate(source, tmp_path / "out")
    assert kept == [
        {"id": "a", "text": LESSON, "url": "u", "input_duplicates": 7, "duplicates": 2, "duplicate_cluster": "a"},
        {"id": "b", "text": CHINESE, "url": None, "input_duplicates": None, "duplicates": 0, "duplicate_cluster": "b"},
    ]
    assert [(row["id"], row["reason"]) for row in dropped] == [("c", "near"), ("d", "exact")]


WORD = st.sampled_from(["sun", "leaf", "root", "rain", "soil", "seed"])
TEXT = st.lists(WORD, min_size=1, max_size=12).map(" ".join)


@settings(max_examples=12, deadline=None)
@given(shards=st.lists(st.lists(TEXT | st.sampled_from([LESSON, LESSON[:-9]]), max_size=6), min_size=1, max_size=3))
def test_no_document_is_lost_and_deduplicating_again_drops_nothing(shards):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows = [[{"id": f"{s}-{i}", "text": text} for i, text in enumerate(shard)] for s, shard in enumerate(shards)]
        everything = [row["id"] for shard in rows for row in shard]
        if not everything:
            return
        source = write(directory / "in", *rows)
        kept, dropped = deduplicate(source, directory / "out")
        kept_ids = [row["id"] for row in kept]
        assert sorted(kept_ids + [row["id"] for row in dropped]) == sorted(everything)
        assert kept_ids == [name for name in everything if name in set(kept_ids)]
        for row in dropped:
            assert row["kept_id"] in kept_ids
            assert everything.index(row["kept_id"]) < everything.index(row["id"])
            assert row["similarity"] >= np.float32(0.8)
        assert len({" ".join(row["text"].split()) for row in kept}) == len(kept)
        assert sum(row["duplicates"] for row in kept) == len(dropped)
        again, nothing = deduplicate(SourceConfig(paths=[str(directory / "out")]), directory / "again")
        assert [row["id"] for row in again] == kept_ids
        assert nothing == []
        twice = deduplicate(SourceConfig(paths=[str(directory / "again")]), directory / "twice")
        assert [row["id"] for row in twice[0]] == kept_ids


def test_changed_copies_of_real_serbian_pages_are_found(tmp_path, shared_data):
    lines = (shared_data / "fineweb2_srp_Cyrl.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines[:150]]
    copies = [{"id": f"copy of {row['id']}", "text": row["text"].upper() + " Крај."} for row in rows[:100]]
    long_ones = {f"copy of {row['id']}" for row in rows[:100] if len(words(row["text"])) > 100}
    _, dropped = deduplicate(write(tmp_path / "in", rows, copies), tmp_path / "out")
    found_copies = {row["id"] for row in dropped if f"copy of {row['kept_id']}" == row["id"]}
    assert len(long_ones) > 50
    assert long_ones <= found_copies
    assert len(dropped) == len(found_copies)


def test_a_corpus_without_documents_is_an_error(tmp_path):
    source = write(tmp_path / "in", [{"id": "a", "text": " "}], [])
    with pytest.raises(InputError, match=r"no document could be read .*empty_text 1"):
        deduplicate(source, tmp_path / "out")


def test_the_output_may_be_a_url(tmp_path):
    source = write(tmp_path / "in", [{"id": "a", "text": LESSON}, {"id": "b", "text": LESSON}])
    at_url = deduplicate_documents(source, DeduplicateConfig(), "memory://deduplicated")
    assert at_url.digest == deduplicate_documents(source, DeduplicateConfig(), tmp_path / "out").digest


# --- Killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> SourceConfig:
    """Five shards of documents, about half of which repeat another."""
    rng = random.Random(1)
    texts = [" ".join(rng.choice(LESSON.split()) for _ in range(60)) for _ in range(100)]
    shards = [
        [{"id": f"{s}-{i}", "text": rng.choice(texts) + rng.choice(["", " more"])} for i in range(40)] for s in range(5)
    ]
    return write(tmp_path / "in", *shards)


def kill_after_signing_a_shard(source: SourceConfig, output: Path) -> None:
    def write_and_kill(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(deduplicate_module, "write_atomically", write_and_kill)
        deduplicate_documents(source, DeduplicateConfig(), output)


def test_a_run_killed_while_signing_and_while_writing_gives_the_same_bytes(corpus, tmp_path):
    undisturbed = deduplicate_documents(corpus, DeduplicateConfig(), tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    kill_after_signing_a_shard(corpus, killed)
    with (killed / ".progress/scratch/keys.bin").open("ab") as file:
        file.write(b"half a shard")
    with pytest.raises(Killed), kill_at("after", r"\.progress/.*-2-\w+\.json"):
        deduplicate_documents(corpus, DeduplicateConfig(), killed)
    assert find_manifest(killed) is None
    assert deduplicate_documents(corpus, DeduplicateConfig(), killed).digest == undisturbed.digest
    assert rows_in(killed, "dropped") == rows_in(tmp_path / "undisturbed", "dropped") != []
    assert not (killed / ".progress").exists()


def test_signatures_that_did_not_reach_the_disk_are_computed_again(corpus, tmp_path):
    undisturbed = deduplicate_documents(corpus, DeduplicateConfig(), tmp_path / "undisturbed")
    kill_after_signing_a_shard(corpus, tmp_path / "killed")
    with (tmp_path / "killed/.progress/scratch/signatures.bin").open("r+b") as file:
        file.truncate(100)
    assert deduplicate_documents(corpus, DeduplicateConfig(), tmp_path / "killed").digest == undisturbed.digest
