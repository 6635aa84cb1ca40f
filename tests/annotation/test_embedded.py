"""The embedded judge as a user meets it: no endpoint, no set-up, nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock

from ml_filter.annotation.embedded import MODEL_NAME

CODE = """
import os, sys
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.documents.config import SourceConfig
made = annotate_documents(SourceConfig(paths=[sys.argv[1]]), AnnotateConfig(prompts=["educational_value_small"]), "out")
print(made.counts["scored"])
try:
    os.waitpid(-1, os.WNOHANG)
    print("a child is left")
except ChildProcessError:
    print("no child is left")
"""


def test_three_documents_are_scored_from_log_probabilities_and_no_process_or_log_is_left(pages, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    clean = {name: value for name, value in os.environ.items() if name not in ("ML_FILTER_ENDPOINT", "ML_FILTER_MODEL")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *pages(3).paths],
        env={**clean, "TMPDIR": str(temporary)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3", "no child is left"]
    assert list(temporary.iterdir()) == []
    answers = pq.read_table(tmp_path / "out" / "shards").to_pylist()
    assert [row["document_id"] for row in answers] == ["d0", "d1", "d2"]
    assert {row["annotator"] for row in answers} == {MODEL_NAME}
    assert all(0 < row["expected_score"] < 5 and row["score"] in (0.0, 5.0) for row in answers)
    assert all(row["prompt_tokens"] > 100 and row["completion_tokens"] == 1 for row in answers)
    with FileLock(Path(tmp_path / "out" / ".lock"), timeout=0):
        pass
