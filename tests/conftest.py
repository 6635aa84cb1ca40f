"""What several tests share: the real data where it is there, and a small corpus of real documents."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ml_filter.heads.encoder import steady_arithmetic
from tests.s3 import Bucket, new_bucket, s3_server
from tests.warehouse import WAREHOUSES, Warehouse, new_warehouse
from tests.webhook import Webhook, serving

# A test that is slow on a busy machine has not failed.
settings.register_profile("no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-deadline")

os.environ["TERMINAL_WIDTH"] = "200"  # typer reads it when it is imported; help is not wrapped in tests

# A shell starts background jobs with SIGINT ignored, and so would they start what a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any test multiplies: what is trained here is compared with what a command trained.
steady_arithmetic()

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest module first: at the end, it would leave the other workers of xdist idle."""
    items.sort(key=lambda item: "production" not in item.path.parts)
    for item in items:
        if isinstance(item, pytest.Function) and "small_encoder" in item.fixturenames:
            item.add_marker(pytest.mark.model)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _embeddings_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left behind in the user's cache, and a text that several tests train on is embedded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ML_FILTER_EMBEDDING_DIR", str(tmp_path_factory.mktemp("embeddings")))
        yield


@pytest.fixture(scope="session")
def mongodb_server() -> Iterator[str]:
    """The address of a server that speaks MongoDB's wire protocol, on this machine."""
    from secantus import SecantusDBServer

    with SecantusDBServer(storage_path=":memory:", cache_size="64M", ttl_sweep_seconds=0.2) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(params=WAREHOUSES)
def warehouse(request: pytest.FixtureRequest) -> Iterator[Warehouse]:
    """A database of the test's own, on SecantusDB and on the server of ML_FILTER_TEST_MONGODB if that is set."""
    with new_warehouse(request, request.param) as new:
        yield new


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A webhook that keeps what it is told."""
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 service over HTTP."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3_url: str) -> Iterator[Bucket]:
    """An empty bucket of the test's own."""
    with new_bucket(s3_url) as new:
        yield new


@pytest.fixture(scope="session")
def documents() -> list[dict[str, str]]:
    """Real documents: the first 60 of the corpus that every machine has."""
    from itertools import islice

    from ml_filter.documents.readers.installed import read_installed

    return [{"id": row["id"], "text": row["text"], "source": row["source"]} for row in islice(read_installed(), 60)]


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two random layers with the tokenizer of the embedded encoder: loads and runs in milliseconds."""
    import torch
    from transformers import BertModel

    from ml_filter.heads.config import EMBEDDED_ENCODER
    from ml_filter.heads.encoder import load_encoder
    from tests.small import small_bert

    directory = str(tmp_path_factory.mktemp("small-encoder"))
    torch.manual_seed(0)
    BertModel(small_bert()).save_pretrained(directory)
    load_encoder(EMBEDDED_ENCODER).tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def labelled(tmp_path: Path, documents: list[dict[str, str]]) -> Path:
    """The documents, each with a label that follows from its text: the share of letters and spaces."""
    path = tmp_path / "labelled.jsonl"
    with path.open("w") as file:
        for row in documents:
            letters = sum(c.isalpha() or c.isspace() for c in row["text"]) / len(row["text"])
            file.write(json.dumps({**row, "label": round(5 * letters, 3)}) + "\n")
    return path
