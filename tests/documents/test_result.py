"""Results beside a manifest: those of another version, damaged ones, and none."""

import pytest

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.ablation.result import read_ablation
from ml_filter.downstream.instruct.report import read_report
from ml_filter.downstream.judging.result import read_judgement
from ml_filter.downstream.proof.page import read_proof
from ml_filter.downstream.retrieval.evaluate import read_evaluation
from ml_filter.downstream.tuning.result import read_tuned
from ml_filter.errors import InputError

READERS = [
    (lambda manifest: read_ablation(manifest.root), "ablation.json", "ml-filter ablate"),
    (read_report, "report.json", "ml-filter instruct"),
    (read_judgement, "judgement.json", "ml-filter judge"),
    (read_proof, "proof.json", "the proof pipeline"),
    (read_evaluation, "retrieval.json", "ml-filter evaluate-retrieval"),
    (lambda manifest: read_tuned(manifest.root), "tuning.json", "ml-filter tune"),
]


@pytest.mark.parametrize(("read", "name", "maker"), READERS)
def test_result_of_another_version_or_none_is_an_error_that_says_how_to_make_one(tmp_path, read, name, maker):
    manifest = Manifest(kind="any", root=str(tmp_path))
    with pytest.raises(InputError) as error:
        read(manifest)
    assert str(error.value) == f"{tmp_path} has no {name}; make one with {maker}"
    (tmp_path / name).write_text('{"verdict": "helps"}')
    expected = f"{tmp_path / name} is damaged or from another version of ml-filter; delete {tmp_path} and make it again"
    with pytest.raises(InputError) as error:
        read(manifest)
    assert str(error.value).startswith(f"{expected} with {maker}: ")
    assert "Field required" in str(error.value)
    with pytest.raises(InputError, match="nowhere does not exist"):
        read(Manifest(kind="any", root=str(tmp_path / "nowhere")))
