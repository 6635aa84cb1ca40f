import json
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.config import read_settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import InputError
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents, sampling_key, shares
from tests.kills import Killed, kill_at


def write_shards(directory: Path, *shards: list[dict]) -> SourceConfig:
    directory.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        lines = [json.dumps({"text": f"text of {row['id']}", **row}) for row in rows]
        (directory / f"part-{number}.jsonl").write_text("\n".join(lines) + "\n")
    return SourceConfig(paths=[str(directory)])


def rows_of(directory: Path) -> list[dict]:
    return pq.read_table(directory / "shards" / "sample.parquet").to_pylist()


def sample(source: SourceConfig, directory: Path, size: int, **options) -> list[dict]:
    manifest = sample_documents(source, SampleConfig(size=size, **options), directory)
    assert manifest.counts["sampled"] == manifest.rows == len(rows_of(directory))
    return rows_of(directory)


def ids(rows: list[dict]) -> list[str]:
    return [row["id"] for row in rows]


def documents(count: int, **columns) -> list[dict]:
    return [{"id": f"d{i}", **columns} for i in range(count)]


# --- The share of each stratum ---------------------------------------------------------------------------------------


@given(available=st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1), size=st.integers(1, 300))
def test_shares_fill_the_sample_as_evenly_as_the_strata_allow(available, size):
    given_shares = shares(available, size)
    assert sum(given_shares.values()) == min(size, sum(available.values()))
    assert all(0 <= given_shares[name] <= count for name, count in available.items())
    not_exhausted = [given_shares[name] for name, count in available.items() if given_shares[name] < count]
    if not_exhausted:
        assert max(given_shares.values()) - min(not_exhausted) <= 1


def test_larger_strata_make_up_for_a_small_one():
    assert shares({"de": 2, "en": 100, "fr": 100}, 20) == {"de": 2, "en": 9, "fr": 9}


# --- Samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_has_the_requested_size_and_complete_rows(tmp_path):
    source = write_shards(tmp_path / "corpus", [{"id": f"d{i}", "n": i, "tags": ["a"]} for i in range(500)])
    rows = sample(source, tmp_path / "out", 50)
    assert len(set(ids(rows))) == 50
    assert all(
        row == {"id": f"d{row['n']}", "text": f"text of d{row['n']}", "n": row["n"], "tags": ["a"]} for row in rows
    )


def test_a_corpus_smaller_than_the_sample_is_copied(tmp_path):
    source = write_shards(tmp_path / "corpus", documents(5))
    assert ids(sample(source, tmp_path / "out", 50)) == ids(documents(5))


def test_the_seed_decides_the_sample(tmp_path):
    source = write_shards(tmp_path / "corpus", documents(500))
    first, again, other = (
        sample(source, tmp_path / name, 50, seed=seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert first == again
    assert len(set(ids(first)) & set(ids(other))) < 25
    assert (tmp_path / "a/shards/sample.parquet").read_bytes() == (tmp_path / "b/shards/sample.parquet").read_bytes()


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path):
    source = write_shards(tmp_path / "corpus", documents(200))
    small, large = sample(source, tmp_path / "small", 10), sample(source, tmp_path / "large", 30)
    assert set(ids(small)) < set(ids(large))


@settings(max_examples=8, deadline=None)
@given(
    rows=st.permutations([{"id": f"d{i}", "language": "de" if i % 5 else "en"} for i in range(30)]),
    cuts=st.lists(st.integers(1, 29), max_size=3, unique=True).map(sorted),
    by=st.sampled_from([[], ["language"]]),
)
def test_a_sample_does_not_depend_on_the_order_of_rows_or_their_split_into_shards(rows, cuts, by):
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    in_order = sorted(rows, key=lambda row: int(row["id"][1:]))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        mixed = sample(write_shards(directory / "mixed", *parts), directory / "a", 9, by=by)
        plain = sample(write_shards(directory / "plain", in_order), directory / "b", 9, by=by)
    assert sorted(ids(mixed)) == sorted(ids(plain))


def test_every_document_has_the_same_probability():
    drawn = Counter(
        document
        for seed in range(400)
        for document in sorted((f"d{i}" for i in range(20)), key=lambda d: sampling_key(d, seed, "sample"))[:5]
    )
    assert all(60 < drawn[f"d{i}"] < 140 for i in range(20))  # 100 on average, standard deviation 9


def test_draws_for_different_purposes_are_independent():
    names = sorted((f"d{i}" for i in range(10_000)), key=lambda name: sampling_key(name, 0, "sample"))[:1000]
    test = sum(sampling_key(name, 0, "test") < 0.2 * 2**64 for name in names)
    assert 140 < test < 260  # 200 on average, standard deviation 13


@pytest.mark.parametrize("seed", [0, 2**62, 2**63 - 1])
def test_extreme_seeds_work(tmp_path, seed):
    assert len(sample(write_shards(tmp_path / "corpus", documents(20)), tmp_path / "out", 5, seed=seed)) == 5


def test_a_duplicate_id_is_sampled_once(tmp_path):
    source = write_shards(tmp_path / "corpus", documents(20) * 2, documents(20))
    rows = sample(source, tmp_path / "out", 15)
    assert len(rows) == len(set(ids(rows))) == 15


# --- Strata ----------------------------------------------------------------------------------------------------------


def test_strata_share_the_sample_evenly(tmp_path):
    languages = {"en": 300, "de": 100, "fr": 4}
    rows = [{"id": f"{name}{i}", "language": name, "n": i % 2} for name, n in languages.items() for i in range(n)]
    source = write_shards(tmp_path / "corpus", rows[:250], rows[250:])
    by_language = Counter(row["language"] for row in sample(source, tmp_path / "a", 24, by=["language"]))
    assert by_language == {"en": 10, "de": 10, "fr": 4}
    by_both = Counter((row["language"], row["n"]) for row in sample(source, tmp_path / "b", 24, by=["language", "n"]))
    assert sorted(by_both.values()) == [2, 2, 5, 5, 5, 5]


def test_documents_without_a_value_are_a_stratum_of_their_own(tmp_path):
    rows = [{"id": f"d{i}", "language": None if i % 10 else "en"} for i in range(100)]
    result = sample(write_shards(tmp_path / "corpus", rows), tmp_path / "out", 10, by=["language"])
    assert Counter(row["language"] for row in result) == {None: 5, "en": 5}


def test_an_id_in_two_strata_does_not_shrink_the_sample(tmp_path):
    rows = [{"id": f"d{i}", "language": language} for language in ("de", "en") for i in range(20)]
    result = sample(write_shards(tmp_path / "corpus", rows), tmp_path / "out", 15, by=["language"])
    assert len(set(ids(result))) == len(result) == 15


def test_a_missing_stratum_column_is_an_error_that_lists_the_columns(tmp_path):
    source = write_shards(tmp_path / "corpus", documents(3, url="u"))
    with pytest.raises(InputError, match="cannot stratify by 'language': the documents have id, text, url"):
        sample(source, tmp_path / "out", 2, by=["language"])


def test_a_corpus_without_readable_documents_is_an_error(tmp_path):
    source = write_shards(tmp_path / "corpus", [{"id": "a", "text": ""}])
    with pytest.raises(
        InputError, match=r"no document could be read .*empty_text 1 \(first: .*part-0\.jsonl, line 1\)"
    ):
        sample(source, tmp_path / "out", 2)


def test_columns_of_several_formats_are_combined(tmp_path):
    write_shards(tmp_path / "corpus", [{"id": "a", "n": 1}, {"id": "b", "n": "two"}])
    pq.write_table(pa.table({"id": ["c"], "text": ["t"], "n": [0.5], "m": [True]}), tmp_path / "corpus" / "z.parquet")
    rows = sample(SourceConfig(paths=[str(tmp_path / "corpus")]), tmp_path / "out", 9)
    assert [(row["id"], row["n"], row["m"]) for row in rows] == [
        ("a", "1", None),
        ("b", "two", None),
        ("c", "0.5", True),
    ]


def test_the_output_may_be_a_url(tmp_path):
    source = write_shards(tmp_path / "corpus", [*documents(20), {"id": "x", "text": ""}])
    at_url = sample_documents(source, SampleConfig(size=5), "memory://sampled")
    local = sample_documents(source, SampleConfig(size=5), tmp_path / "out")
    assert at_url.digest == local.digest
    assert at_url.counts == {"read": 20, "sampled": 5, "rejected": 1, "rejected_empty_text": 1}


# --- Killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "file"), [("before", "shards/.*"), ("after", "shards/.*"), ("before", "manifest.json")]
)
def test_a_killed_run_gives_the_same_bytes_when_it_is_run_again(tmp_path, when, file):
    source, config = write_shards(tmp_path / "corpus", documents(500)), SampleConfig(size=50)
    undisturbed = sample_documents(source, config, tmp_path / "undisturbed")
    with pytest.raises(Killed), kill_at(when, file):
        sample_documents(source, config, tmp_path / "killed")
    assert find_manifest(tmp_path / "killed") is None
    (tmp_path / "killed/.progress/scratch").mkdir(exist_ok=True)
    (tmp_path / "killed/.progress/scratch/.candidates.parquet.tmp").write_bytes(b"half a file")
    assert sample_documents(source, config, tmp_path / "killed").digest == undisturbed.digest
    assert not (tmp_path / "killed/.progress").exists()


def test_another_extractor_makes_another_sample(tmp_path):
    source = write_shards(tmp_path / "documents", [{"id": "a"}])
    sample(source, tmp_path / "out", 1)
    manifest = find_manifest(str(tmp_path / "out"))
    assert manifest is not None
    assert manifest.config["source"]["extractor"] == "trafilatura"
    other = source.model_copy(update={"extractor": "text"})
    with pytest.raises(InputError, match="different settings"):
        sample(other, tmp_path / "out", 1)


@pytest.mark.parametrize("name", ["annotation", "end_to_end"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "warc"])
def test_the_shipped_configurations_sample_documents_without_a_source_column(tmp_path, name, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text('{"text": "one"}\n')
    elif kind == "parquet":
        pq.write_table(pa.table({"text": ["one"]}), path)
    else:
        body = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\none"
        path.write_bytes(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    sampling = read_settings(Path(__file__).parents[2] / "configs" / f"{name}.yaml")["sample"]
    manifest = sample_documents(SourceConfig(paths=[str(path)]), SampleConfig(**sampling), tmp_path / "out")
    assert manifest.counts["sampled"] == 1
