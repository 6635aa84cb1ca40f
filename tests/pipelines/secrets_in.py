"""Secrets in the environment of a run, and a search for them in everything that the run leaves behind."""

from __future__ import annotations

import base64
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

PLANTED = {
    "ML_FILTER_API_KEY": "sk-planted-4f1c9ab2e7",
    "ML_FILTER_MONGODB_URI": "mongodb://reader:planted-93b1e7c2@127.0.0.1:1/",
    "ML_FILTER_MONGODB_PASSWORD": "planted-7d20c4aa91",
    "ML_FILTER_ALERT_WEBHOOK": "http://127.0.0.1:1/services/planted-c81d6e4f",
    "COMET_API_KEY": "planted-comet-55e0d1f3a8",
    "HF_TOKEN": "hf_planted-2b8e0c6d94",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-a6f3b9d817",
}
_MARKS = [value.rpartition("planted-")[2].split("@")[0].encode() for value in PLANTED.values()]


def leaks(*roots: Path) -> list[str]:
    """The files below the directories that contain a secret, plainly or in base64; archives are looked into."""
    return [name for root in roots for name, content in _contents(root) if has_secret(content)]


def has_secret(content: bytes) -> bool:
    """Whether a secret is in the content."""
    encoded = (base64.b64encode(value.encode()).rstrip(b"=")[:-1] for value in PLANTED.values())
    return any(mark in content for mark in (*_MARKS, *encoded))


def _contents(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in (path for path in root.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            yield str(path), str(pq.read_table(path).to_pylist()).encode()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path}:{name}", archive.read(name)) for name in archive.namelist())
        else:
            yield str(path), path.read_bytes()
