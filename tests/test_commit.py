"""The commit of the running code: of the checkout, else as the build recorded it."""

import os
import subprocess

import pytest

from ml_filter import commit
from ml_filter.commit import code_commit
from ml_filter.documents.output_directory import OutputDirectory


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit, as if the code were in it."""
    (tmp_path / "a.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "a.py"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(
            ["git", *arguments], cwd=tmp_path, check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
        )
    monkeypatch.setattr(commit, "_ROOT", tmp_path)
    code_commit.cache_clear()
    yield tmp_path
    code_commit.cache_clear()


def test_the_commit_of_a_checkout_is_recorded_and_marked_if_files_differ(checkout, monkeypatch, tmp_path_factory):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    monkeypatch.setenv("ML_FILTER_COMMIT", "of the image")
    assert code_commit() == head.stdout.strip()
    (checkout / "a.py").write_text("2")
    assert code_commit() == head.stdout.strip()  # computed once
    code_commit.cache_clear()
    with OutputDirectory(tmp_path_factory.mktemp("out"), "documents", {}, []) as out:
        assert out.finish([]).commit == f"{head.stdout.strip()}-dirty"


def test_without_a_checkout_or_git_the_build_says_the_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ML_FILTER_COMMIT", "of the image")
    assert code_commit() == "of the image"
    monkeypatch.delenv("ML_FILTER_COMMIT")
    code_commit.cache_clear()
    assert code_commit() == ""
