"""Searching the settings of a head, with real heads on real documents."""

import itertools
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from ml_filter.cli import main
from ml_filter.config import read_yaml
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import InputError
from ml_filter.heads import search as search_module
from ml_filter.heads.config import HeadSettings, SearchConfig, SearchSpace, TrainConfig
from ml_filter.heads.cross_validation import CrossValidation
from ml_filter.heads.kinds.encoder import EncoderTrainer
from ml_filter.heads.labels import Groups, Labelled, LabelledDocuments, LabelTable, read_label_table
from ml_filter.heads.search import BEST_NAME, REPORT_NAME, STUDY_NAME, config_of, search_head, settings_of
from ml_filter.heads.search_result import Search, Trial, ranking
from ml_filter.heads.train import train_head
from tests.kills import Killed

pytestmark = pytest.mark.model

# With this seed every trial has a figure: a stack of heads that rank the wrong way round would have none.
TRAIN = TrainConfig(label_column="label", max_tokens=32, layers=2, head=HeadSettings(model="linear", epochs=3), seed=1)
SPACE = SearchSpace(kind=["encoder", "hashing", "stack"], layers=[1, "middle"], width=[8], landmarks=[10, 20])
TRIALS = 12
"""The first 10 are drawn at random, the others by the estimator."""
CHEAP = SearchConfig(train=TrainConfig(kind="hashing", label_column="label"), space=SearchSpace(kind=["hashing"]))
CRITERION = Criterion(name="label", low=0, high=5, threshold=3)


def label_of(text: str) -> float:
    """How much of a text is prose rather than signs, 0 to 5."""
    return round(5 * sum(c.isalpha() or c.isspace() for c in text) / len(text), 3)


@pytest.fixture(scope="module")
def rows(documents) -> list[dict]:
    """Documents of 30 hosts, two of each."""
    return [
        {"id": row["id"], "text": row["text"][:600], "url": f"https://{i // 2}.org/", "label": label_of(row["text"])}
        for i, row in enumerate(documents)
    ]


def written(path: Path, rows: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


@pytest.fixture(scope="module")
def source(rows, tmp_path_factory) -> SourceConfig:
    return written(tmp_path_factory.mktemp("labels") / "labelled.jsonl", rows)


@pytest.fixture(scope="module")
def train(small_encoder) -> TrainConfig:
    return TRAIN.model_copy(update={"encoder": small_encoder})


@pytest.fixture(scope="module")
def config(train) -> SearchConfig:
    return SearchConfig(train=train, space=SPACE, trials=TRIALS, resamples=100)


@pytest.fixture(scope="module")
def searched(source, config, tmp_path_factory) -> tuple[Search, Path]:
    output = tmp_path_factory.mktemp("runs") / "search"
    return search_head(source, config, output)[0], output


def outcomes(search: Search) -> list[dict]:
    """The trials without the time that they took."""
    return [trial.model_dump(exclude={"seconds"}) for trial in search.trials]


# --- What comes out --------------------------------------------------------------------------------------------------


def test_every_trial_is_a_row_with_its_settings_its_figure_and_its_error(searched):
    search, output = searched
    table = pq.read_table(output / "shards").to_pylist()
    assert [row["trial"] for row in table] == list(range(TRIALS))
    for row, trial in zip(table, search.trials, strict=True):
        assert (row["value"], row["standard_error"]) == (trial.value, trial.standard_error)
        layers = {"layers": str(trial.settings["layers"])} if "layers" in trial.settings else {}
        assert {name: row[name] for name in trial.settings} == trial.settings | layers
        assert row["low"] <= row["value"] <= row["high"]
    assert {trial.settings["kind"] for trial in search.trials} == set(SPACE.kind)
    assert read_manifest(str(output)).counts["trials"] == TRIALS


def test_the_first_trial_is_the_default_and_the_best_has_the_highest_figure(searched):
    search, _ = searched
    assert search.trials[0].settings == settings_of(TRAIN)
    assert search.trials[search.best].value == max(trial.value for trial in search.trials)
    assert search.best == ranking(search.trials)[0].number


def test_the_settings_of_the_best_are_what_train_takes_as_they_are(searched, train, source, tmp_path):
    search, output = searched
    best = TrainConfig.model_validate(read_yaml(output / BEST_NAME))
    assert best == config_of(train, search.trials[search.best].settings)
    command = ["train", *source.paths, "--config", str(output / BEST_NAME), "--output", str(tmp_path / "head")]
    assert main(command) == 0
    assert train_head(source, best, tmp_path / "head").training.test_documents == search.test_documents


def test_the_page_has_its_plots_and_every_trial(searched):
    search, output = searched
    page = (output / REPORT_NAME).read_text()
    assert page.count("<svg") == 3
    assert all(f"{trial.value:.4f}" in page for trial in search.trials)


def test_a_finished_search_is_read_and_not_done_again(searched, config, source):
    search, output = searched
    before = (output / "search.json").stat().st_mtime_ns
    assert search_head(source, config, output)[0] == search
    assert (output / "search.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="different settings"):
        search_head(source, config.model_copy(update={"seed": 1}), output)


# --- How a trial is judged -------------------------------------------------------------------------------------------


def test_labels_and_texts_of_the_test_documents_change_nothing(rows, source, config, searched, tmp_path):
    search, _ = searched
    is_test = read_label_table(LabelledDocuments(source, TRAIN), [], TRAIN).is_test
    assert (int((~is_test).sum()), int(is_test.sum())) == (search.documents, search.test_documents)
    changed = [
        {**row, "text": row["text"][::-1], "label": 5 - row["label"]} if held_out else row
        for row, held_out in zip(rows, is_test, strict=True)
    ]
    shorter = config.model_copy(update={"trials": 5})
    again, _ = search_head(written(tmp_path / "changed.jsonl", changed), shorter, tmp_path / "search")
    assert outcomes(again) == outcomes(search)[:5]


def validation(labels: np.ndarray, groups: np.ndarray, **config) -> CrossValidation:
    """Cross-validation on documents none of which is for the test."""
    count = len(labels)
    table = LabelTable(
        **{field.name: np.zeros(count) for field in fields(LabelTable)}
        | {"labels": labels[:, None], "weights": np.ones((count, 1)), "is_test": np.zeros(count, bool)}
        | {"groups": groups.astype(np.uint64)}
    )
    return CrossValidation(CHEAP.model_copy(update=config), [CRITERION], table)


def grouped(hosts: list[str], texts: list[int]) -> np.ndarray:
    """The group of each document, given its host and the number of its text, which is in upper or lower case."""
    written = [" ".join(f"word{text * 50 + word}" for word in range(50)) for text in texts]
    cased = [text.upper() if row % 2 else text for row, text in enumerate(written)]
    labels = np.zeros((len(texts), 1))
    groups = Groups(0.8)
    groups.add(Labelled(list(map(str, range(len(texts)))), cased, labels, labels, {"host": hosts}))
    return groups.draw(list(range(len(texts))))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60), st.integers(0, 5)), min_size=20, max_size=100))
def test_hosts_and_near_duplicates_are_in_one_fold(documents):
    hosts, texts, labels = (np.array(column) for column in zip(*documents, strict=True))
    try:
        folds = validation(labels.astype(float), grouped([f"{host}.org" for host in hosts], texts.tolist()))._folds
    except InputError:
        folds = np.zeros(len(documents), int)  # all of them are one group
    for a, b in itertools.combinations(range(len(documents)), 2):
        if hosts[a] == hosts[b] or texts[a] == texts[b]:
            assert folds[a] == folds[b]


def test_folds_have_similar_labels():
    labels = np.repeat([0.0, 1.0, 4.0], [50, 30, 20])
    folds = validation(labels, np.random.default_rng(0).permutation(100))._folds
    for label, expected in ((0, 10), (1, 6), (4, 4)):
        assert np.bincount(folds[labels == label]).tolist() == [expected] * 5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["spearman", "macro_f1", "macro_f1_at_threshold"]))
def test_figures_are_those_of_scipy_and_scikit_learn(seed, metric):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 6, 60).astype(float)
    scores = np.clip(labels + random.normal(0, 1.5, 60), 0, 5)
    rounded = np.floor(scores + 0.5)
    expected = {
        "spearman": spearmanr(labels, scores).statistic,
        "macro_f1": f1_score(labels, rounded, average="macro"),
        "macro_f1_at_threshold": f1_score(labels >= 3, rounded >= 3, average="macro"),
    }[metric]
    predictions = scores if metric == "spearman" else rounded
    figures = validation(labels, np.arange(60), metric=metric).figures(predictions[:, None])
    assert figures[0] == pytest.approx(expected)


def test_more_pages_of_the_same_hosts_do_not_reduce_the_standard_error():
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 100).astype(float)
    scores = labels + random.normal(0, 2, 100)
    errors = []
    for copies in (1, 4):
        repeated = validation(np.repeat(labels, copies), np.repeat(np.arange(100), copies))
        errors.append(repeated.figures(np.repeat(scores, copies)[:, None])[1:].std())
    assert errors[0] == pytest.approx(errors[1])


def test_whole_scores_come_from_calibrations_on_the_other_folds():
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 200).astype(float)
    scores = np.clip(labels / 2 + random.normal(0, 0.3, 200), 0, 5)
    crossed = validation(labels, np.arange(200), metric="macro_f1")
    rounded = crossed._round(scores, 0)
    assert np.abs(rounded - labels).mean() < np.abs(np.round(scores) - labels).mean() / 2
    inside = crossed._folds == crossed._folds[7]
    crossed._labels[inside] = 5 - crossed._labels[inside]
    assert crossed._round(scores, 0)[inside].tolist() == rounded[inside].tolist()
    assert crossed._round(scores, 0)[~inside].tolist() != rounded[~inside].tolist()


def test_fewer_layers_are_columns_of_all(rows, train, tmp_path):
    texts, places = [row["text"] for row in rows], np.arange(len(rows))
    with EncoderTrainer(train.model_copy(update={"layers": "all"}), [CRITERION], tmp_path) as wide:
        wide.add(texts)
        for layers in (1, 2, "middle", "all"):
            fewer_layers = train.model_copy(update={"layers": layers})
            with EncoderTrainer(fewer_layers, [CRITERION], tmp_path / "own") as own:
                own.add(texts)
                fewer = wide.with_settings(fewer_layers)
                assert np.array_equal(fewer.windows_of(places)[0][:], own.windows_of(places)[0][:])


@given(
    st.sampled_from(
        [("linear", "regression"), ("linear", "ordinal"), ("mlp", "classification"), ("kernel", "regression")]
    ),
    st.integers(2, 500),
    st.floats(0, 1),
    st.sampled_from(["encoder", "stack"]),
)
def test_the_settings_of_a_configuration_are_all_that_affects_its_head(head, size, balance, kind):
    model, task = head
    config = TrainConfig(kind=kind, layers=3, head=HeadSettings(model=model, task=task, size=size, balance=balance))
    again = config_of(TrainConfig(), settings_of(config))
    if model == "linear":
        again = again.model_copy(update={"head": again.head.model_copy(update={"size": size})})
    assert again == config


# --- What does not work out ------------------------------------------------------------------------------------------


def test_what_was_tried_before_is_not_tried_again(source, tmp_path):
    space = SearchSpace(kind=["hashing"], balance=(0.5, 0.5))
    config = CHEAP.model_copy(update={"trials": 3, "space": space})
    search, _ = search_head(source, config, tmp_path / "search")
    assert [trial.same_as for trial in search.trials] == [None, 0, 0]
    assert len({trial.value for trial in search.trials}) == 1
    assert search.verdict == "the default is the best of 3 trials"


def test_a_figure_that_no_trial_has_is_named(rows, tmp_path):
    bad = [{**row, "label": row["label"] / 5} for row in rows]  # none of them reaches 3
    config = CHEAP.model_copy(update={"trials": 2, "metric": "f1_at_threshold"})
    with pytest.raises(InputError, match="no trial of 2 has a figure: F1 at the threshold is undefined for these"):
        search_head(written(tmp_path / "bad.jsonl", bad), config, tmp_path / "search")


def test_documents_of_one_host_cannot_be_searched_on(rows, tmp_path):
    unlike = {" ".join(row["text"].split()): row for row in rows}.values()
    two = [{**row, "url": f"https://{'a' if i % 3 else 'b'}.org/"} for i, row in enumerate(unlike)]
    source, refused = written(tmp_path / "two.jsonl", two), []
    for seed in range(20):  # with some, one of the two hosts is the test's
        train = CHEAP.train.model_copy(update={"seed": seed, "near_duplicates": 1.0})
        try:
            search_head(source, CHEAP.model_copy(update={"train": train, "trials": 1}), tmp_path / f"search-{seed}")
        except InputError as error:
            refused.append(str(error))
    assert any("so they cannot be cross-validated; add labels from more hosts" in reason for reason in refused)


def test_hosts_that_share_near_duplicates_are_one_and_cannot_be_searched_on(rows, tmp_path):
    two = [{**row, "url": f"https://{'a' if i % 3 else 'b'}.org/"} for i, row in enumerate(rows)]
    with pytest.raises(InputError, match="are from 1 host or group of near-duplicates, which are never split"):
        search_head(written(tmp_path / "two.jsonl", two), CHEAP, tmp_path / "search")


def test_a_search_does_not_train_encoders():
    with pytest.raises(ValidationError, match=r"leave train\.finetune out"):
        SearchConfig.model_validate({"train": {"finetune": {}, "head": {"model": "linear"}}})


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ([0.60, 0.61], 0.02, "the default is as good: Spearman 0.600 against 0.610 of trial 1, less than one standard"),
        ([0.60, 0.65], 0.02, "trial 1 is better than the default: Spearman 0.600 against 0.650 of trial 1, more than"),
        ([0.60, 0.65], None, "Spearman 0.600 against 0.650 of trial 1; too few hosts to rule out chance"),
        ([None, 0.65], 0.02, "the default has no figure (no luck); trial 1 is the best"),
        ([0.60, 0.55], 0.02, "the default is the best of 2 trials"),
    ],
)
def test_the_verdict_goes_by_one_standard_error_of_the_best(values, error, says):
    trials = [
        Trial(number=k, settings={"kind": "hashing"}, value=value, standard_error=error, seconds=1, reason="no luck")
        for k, value in enumerate(values)
    ]
    best = ranking(trials)[0]
    as_good = None if error is None or None in values else best.value - values[0] <= error
    search = Search(
        metric="spearman",
        criteria=["label"],
        documents=50,
        test_documents=10,
        unlabelled=0,
        folds=5,
        groups=50,
        trials=trials,
        best=best.number,
        difference=None,
        as_good=as_good,
    )
    assert search.verdict.startswith(says)


# --- Killed ----------------------------------------------------------------------------------------------------------


def killed_at_call(patch: pytest.MonkeyPatch, owner: object, name: str, calls: int) -> None:
    """Let a function raise `Killed` instead of doing its work the last of so many times."""
    function, countdown = getattr(owner, name), iter(range(calls - 1, -1, -1))

    def counted(*arguments):
        if next(countdown) == 0:
            raise Killed(name)
        return function(*arguments)

    patch.setattr(owner, name, counted)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_trials_of_an_undisturbed_search(searched, config, source, tmp_path):
    search, undisturbed = searched
    output = tmp_path / "search"
    study = output / ".progress" / "scratch" / STUDY_NAME
    points = [
        (CrossValidation, "predict", 1),  # during the default
        (CrossValidation, "predict", 3),  # during a trial
        (search_module, "_tell", 3),  # a trial was running (told as failed), one finished, one has its result
    ]
    for owner, name, calls in points:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            killed_at_call(patch, owner, name, calls)
            search_head(source, config, output)
        with study.open("a") as file:
            file.write('{"op_code": 5, "tri')  # an incomplete line
        study.with_suffix(".jsonl.lock").symlink_to(study)
    results = study.read_text().count('"result"')
    assert 0 < results < TRIALS
    with pytest.MonkeyPatch.context() as patch:
        # No trial that has a result runs again.
        killed_at_call(patch, search_module, "_run_trial", TRIALS - results + 1)
        again, _ = search_head(source, config, output)
    assert outcomes(again) == outcomes(search)
    assert read_manifest(str(output)).digest == read_manifest(str(undisturbed)).digest
    assert (output / BEST_NAME).read_text() == (undisturbed / BEST_NAME).read_text()
    assert not (output / ".progress").exists()


def test_a_search_at_a_url_is_continued_after_the_last_trial_that_has_a_result(source, tmp_path):
    config, output = CHEAP.model_copy(update={"trials": 2}), f"memory://{tmp_path.name}/search"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_at_call(patch, search_module, "_run_trial", 2)
        search_head(source, config, output)
    with pytest.MonkeyPatch.context() as patch:
        killed_at_call(patch, search_module, "_run_trial", 2)  # one is left
        again, _ = search_head(source, config, output)
    undisturbed, _ = search_head(source, config, tmp_path / "undisturbed")
    assert outcomes(again) == outcomes(undisturbed)


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_tries_the_engines_it_is_given_and_prints_the_best_and_the_verdict(
    source, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "150")
    command = ["search", *source.paths, "--label-column", "label", "--kind", "hashing", "--trials", "3"]
    assert main([*command, "--metric", "pearson", "--output", str(tmp_path / "search")]) == 0
    printed = capsys.readouterr().out
    search = Search.model_validate_json((tmp_path / "search" / "search.json").read_text())
    assert {trial.settings["kind"] for trial in search.trials} == {"hashing"}
    assert search.metric == "pearson"
    for trial in search.trials:
        assert f"{trial.value:.3f}" in printed
        assert f"kind hashing, balance {trial.settings['balance']}" in printed
    assert search.verdict in printed


def test_an_unknown_metric_is_refused_with_the_known_ones(source, tmp_path, capsys):
    assert main(["search", *source.paths, "--metric", "beauty", "--output", str(tmp_path)]) == 2
    assert "metric: Input should be 'spearman', 'pearson'" in capsys.readouterr().err
