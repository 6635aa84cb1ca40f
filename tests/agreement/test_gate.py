"""The gate: what passes, what is stopped, and the reasons it gives."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.agreement import AGREEMENT_NAME, REPORT_NAME, Agreement, run_gate
from ml_filter.agreement.config import AggregateConfig, GateConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import GateFailed, InputError
from ml_filter.statistics.metrics import PAIR_FIGURES, GateMetric
from tests.written import write_annotations


def gold_of(path: Path, documents: int = 90) -> SourceConfig:
    """Documents in two languages with human scores and those of four raters."""
    random = np.random.default_rng(0)
    human = random.integers(0, 6, documents)
    raters = {
        "good": np.clip(human + random.normal(0, 0.7, documents), 0, 5),
        "weak": np.clip(human + random.normal(0, 4, documents), 0, 5),
        "constant": np.full(documents, 3.0),
    }
    raters["good in English"] = np.where(np.arange(documents) % 3 == 0, raters["weak"], raters["good"])
    with path.open("w") as file:
        for i in range(documents):
            row = {"id": f"d{i}", "human_score": int(human[i]), "language": "de" if i % 3 == 0 else "en"}
            file.write(json.dumps(row | {name: float(scores[i]) for name, scores in raters.items()}) + "\n")
    return SourceConfig(paths=[str(path)])


def require(*arguments):
    result = run_gate(*arguments)
    result.require()
    return result


def gate(tmp_path: Path, *raters: str, **options):
    gold = SourceConfig(paths=[str(tmp_path / "gold.jsonl")])
    if not (tmp_path / "gold.jsonl").exists():
        gold_of(tmp_path / "gold.jsonl")
    config = GateConfig(gold=gold, rating_columns=list(raters), **{"resamples": 200, **options})
    return require(gold.paths[0], config, tmp_path / "out-{digest}")


def test_good_rater_passes(tmp_path):
    result = gate(tmp_path, "good", min_agreement=0.8, by=["language"])
    assert result.passed
    assert [(check.stratum, check.figure.documents, check.outcome) for check in result.checks] == [
        ("overall", 90, "passed"),
        ("language=de", 30, "passed"),
        ("language=en", 60, "passed"),
    ]
    assert Path(result.report).name == REPORT_NAME
    assert Path(result.report).exists()
    assert result.figures()["good/overall"] > 0.8


def test_weak_rater_is_stopped_with_the_figure_and_its_interval(tmp_path):
    with pytest.raises(GateFailed) as raised:
        gate(tmp_path, "weak")
    assert raised.value.exit_code == 1
    (directory,) = tmp_path.glob("out-*")
    figure = (
        Agreement.model_validate_json((directory / AGREEMENT_NAME).read_text()).overall.pairs[0].figures["spearman"]
    )
    assert str(raised.value) == (
        f"{tmp_path}/gold.jsonl does not pass the gate: weak, overall: Spearman is {figure.value:.3f} on 90 documents, "
        f"95% interval {figure.low:.3f} to {figure.high:.3f}; its lower bound is below 0.6. "
        f"All figures: {directory}/{REPORT_NAME}"
    )
    assert (directory / REPORT_NAME).exists()


def test_lower_bound_decides(tmp_path):
    measured = gate(tmp_path, "good", min_agreement=0).checks[0].figure
    between = (measured.low + measured.value) / 2
    with pytest.raises(GateFailed, match="lower bound is below"):
        gate(tmp_path, "good", min_agreement=between)
    assert gate(tmp_path, "good", min_agreement=measured.low).passed


def test_rater_that_is_weak_in_one_stratum_is_stopped(tmp_path):
    assert gate(tmp_path, "good in English").passed
    with pytest.raises(GateFailed) as raised:
        gate(tmp_path, "good in English", by=["language"])
    assert "good in English, language=de: Spearman is" in str(raised.value)
    assert "language=en" not in str(raised.value)
    assert "overall" not in str(raised.value)


def test_every_rater_must_pass(tmp_path):
    with pytest.raises(GateFailed, match=r"gate: weak, overall") as raised:
        gate(tmp_path, "good", "weak")
    assert "good, overall" not in str(raised.value)


def test_constant_rater_is_stopped_because_its_figure_is_undefined(tmp_path):
    with pytest.raises(GateFailed, match=r"constant, overall: Spearman is undefined on 90 documents \(one of the"):
        gate(tmp_path, "constant")


@pytest.mark.parametrize(
    ("good", "metric", "reason"),
    [
        (1, "spearman", "Spearman is undefined on 60 documents (no interval: the figure is undefined in"),
        (1, "recall_at_threshold", "recall at the threshold is undefined on 60 documents (no interval"),
        (5, "recall_at_threshold", "recall at the threshold is 1.000 on 60 documents, 95% interval 0.478 to 1.000"),
    ],
)
def test_few_good_documents_do_not_prove_agreement(good, metric, reason, tmp_path):
    rows = [{"id": str(i), "human_score": 5 * (i < good), "rater": 5 * (i < good)} for i in range(60)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(GateFailed) as raised:
        gate(tmp_path, "rater", metric=metric)
    assert reason in str(raised.value)


def test_metric_can_be_chosen(tmp_path):
    assert gate(tmp_path, "good", metric="agreement_at_threshold", min_agreement=0.7).passed
    with pytest.raises(GateFailed, match="Cohen's kappa is"):
        gate(tmp_path, "weak", metric="kappa", min_agreement=0.5)


def test_metrics_are_all_figures_of_which_more_is_better(tmp_path):
    metrics = get_args(GateMetric)
    assert set(metrics) == set(PAIR_FIGURES) - {"mae", "mse", "mean_difference"}
    for metric in metrics:
        assert gate(tmp_path, "good", metric=metric, min_agreement=0.1).checks[0].figure.low >= 0.1


def test_small_stratum_stops_the_run_unless_it_is_only_reported(tmp_path):
    with pytest.raises(GateFailed, match=r"language=de: Spearman has only 30 documents; at least 31 are required"):
        gate(tmp_path, "good", by=["language"], min_documents=31)
    result = gate(tmp_path, "good", by=["language"], min_documents=31, small_strata="report")
    assert result.passed
    assert [check.outcome for check in result.checks] == ["passed", "not_judged", "passed"]


def test_too_few_documents_overall_always_stop_the_run(tmp_path):
    with pytest.raises(GateFailed, match="overall: Spearman has only 90 documents; at least 100 are required"):
        gate(tmp_path, "good", min_documents=100, small_strata="report")


def test_aggregated_scores_are_compared_on_the_documents_that_did_not_fail(tmp_path):
    gold = gold_of(tmp_path / "gold.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "gold.jsonl").read_text().splitlines()]
    votes = [(row["id"], None if i < 10 else row["good"]) for i, row in enumerate(rows)]
    annotations = write_annotations(tmp_path / "a", [*votes, *((f"other{i}", 1.0) for i in range(500))])
    scores = aggregate_annotations([annotations], AggregateConfig(), tmp_path / "scores")
    result = require(scores, GateConfig(gold=gold, resamples=200, max_failed_share=0.2), tmp_path / "out-{digest}")
    assert result.checks[0].figure.documents == 80
    written = Agreement.model_validate_json((Path(result.report).parent / AGREEMENT_NAME).read_text())
    assert written.overall.share_failed["scores"].value == pytest.approx(10 / 90)
    assert {rated.kind: rated.unmatched_rows for rated in written.inputs} == {"gold": 0, "scores": 500}


def test_too_many_failed_documents_stop_the_run(tmp_path):
    gold = gold_of(tmp_path / "gold.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "gold.jsonl").read_text().splitlines()]
    annotations = write_annotations(
        tmp_path / "a", [(r["id"], None if i < 10 else r["good"]) for i, r in enumerate(rows)]
    )
    with pytest.raises(GateFailed, match=r"11\.1% failed; at most 10\.0% is allowed"):
        require(annotations, GateConfig(gold=gold, resamples=200), tmp_path / "out-{digest}")


def test_scores_without_gold_are_an_error(tmp_path):
    gold = gold_of(tmp_path / "gold.jsonl")
    annotations = write_annotations(tmp_path / "a", [("elsewhere", 3.0)])
    with pytest.raises(InputError, match="its ids look like elsewhere"):
        require(str(annotations), GateConfig(gold=gold), tmp_path / "out")


def test_result_of_a_failed_gate_can_be_recorded_first(tmp_path):
    gold = gold_of(tmp_path / "gold.jsonl")
    config = GateConfig(gold=gold, rating_columns=["weak"], resamples=200)
    result = run_gate(gold.paths[0], config, tmp_path / "out")
    assert not result.passed
    with pytest.raises(GateFailed):
        result.require()


def test_scores_of_llama_pass_against_humans_and_noise_does_not(shared_data, tmp_path):
    gold = SourceConfig(paths=[str(shared_data / "edu_human_gold_dev.jsonl")])
    config = GateConfig(gold=gold, rating_columns=["llama3_70b_score"])
    check = require(gold.paths[0], config, tmp_path / "llm").checks[0]
    assert check.figure.documents == 255
    assert 0.6 < check.figure.low < 0.697 < check.figure.high < 0.8
    assert check.figure.value == pytest.approx(0.69703, abs=1e-5)
    ids = [json.loads(line)["id"] for line in (shared_data / "edu_human_gold_dev.jsonl").read_text().splitlines()]
    noise = np.random.default_rng(0).integers(0, 6, len(ids)).astype(float)
    annotations = write_annotations(tmp_path / "noise", list(zip(ids, noise.tolist(), strict=True)), annotator="noise")
    with pytest.raises(GateFailed, match=r"noise, overall: Spearman is -?0\.\d+ on 255 documents"):
        require(str(annotations), GateConfig(gold=gold), tmp_path / "out")
