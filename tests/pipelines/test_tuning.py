"""The tuning pipeline: a registered model with the lineage of its data, its report and its curves."""

import json

import pytest

from ml_filter.downstream.tuning.result import TunedModel
from tests.downstream.tuning.tiny import write_tiny_base
from tests.test_tracking import read_archive

pytestmark = [
    pytest.mark.zenml,
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),  # ZenML's own warnings
]


def test_run_registers_the_model_with_lineage_and_records_the_curves(run, store, tmp_path, documents):
    write_tiny_base(tmp_path / "base", [row["text"] for row in documents])
    rows = [{"instruction": "Continue.", "input": d["text"][:80], "output": d["text"][80:200]} for d in documents]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed = run(
        "tuning",
        f"output={tmp_path / 'runs'}",
        f"data.paths=[{tmp_path / 'data.jsonl'}]",
        f"tune.base={tmp_path / 'base'}",
        "tune.max_steps=3",
        "tune.log_steps=1",
        "tune.held_out_share=0.3",
        "tracking.mode=offline",
        f"tracking.directory={tmp_path / 'comet'}",
    )
    assert code == 0, printed
    (directory,) = (tmp_path / "runs").glob("tuned-*")

    from zenml.client import Client

    version = Client().get_model_version("tuned_language_model", "1")
    model = version.get_artifact("tuned_model").load()
    assert isinstance(model, TunedModel)
    assert model.root == str(directory)
    assert version.run_metadata["tuned_digest"] == model.digest
    assert version.run_metadata["tuned_lineage"]["data"] == {p.path: p.digest for p in model.result.parents}
    (archive,) = (tmp_path / "comet").iterdir()
    recorded = read_archive(str(archive))
    assert recorded["metrics"]["base_loss"] == pytest.approx(model.values["base_loss"])
    assert {"loss", "grad_norm", "eval_loss"} <= {name for name, *_ in recorded["curves"]}
    assert "report.html" in recorded["files"]
