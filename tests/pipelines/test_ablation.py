"""The ablation pipeline: verdict, report and figures of a filtered corpus."""

import pytest

from ml_filter.downstream.ablation.result import read_ablation
from tests.downstream.ablation.corpora import write_filtered, write_gold
from tests.test_tracking import read_archive

pytestmark = [
    pytest.mark.zenml,
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),  # ZenML's own warnings
]

TRAINING = "{depth: 1, passes: 1, seeds: 2, control_seeds: 2, workers: 1, learning_rates: [1.0]}"


def test_run_shows_the_verdict_and_records_the_figures(run, store, tmp_path):
    write_filtered(tmp_path)
    write_gold(tmp_path / "gold.jsonl")
    code, printed = run(
        "ablation",
        f"output={tmp_path / 'runs'}",
        f"filtered={tmp_path / 'filtered'}",
        f"ablate.gold.paths=[{tmp_path / 'gold.jsonl'}]",
        "ablate.arm_tokens=1500",
        f"ablate.training={TRAINING}",
        "tracking.mode=offline",
        f"tracking.directory={tmp_path / 'comet'}",
    )
    assert code == 0, printed
    (directory,) = (tmp_path / "runs").glob("ablation-*")
    ablation = read_ablation(directory)

    from zenml.client import Client

    steps = Client().list_pipeline_runs(pipeline="ablation")[0].steps
    assert steps["ablate_filter"].run_metadata["verdict"] == ablation.verdict
    page = steps["ablate_filter"].outputs["ablation_report"][0].load()
    assert page == (directory / "ablation.html").read_text()
    (archive,) = (tmp_path / "comet").iterdir()
    recorded = read_archive(str(archive))
    assert recorded["metrics"]["filtered_high_bits_per_byte"] == pytest.approx(ablation.mean_bits("filtered", "high"))
