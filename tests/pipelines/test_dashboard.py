"""What an engineer sees in the dashboard: a run, its graph and its report, in a real browser.

`poetry poe pictures` runs this test and keeps its screenshots, which docs/operations.md shows.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head

pytestmark = [pytest.mark.zenml, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STARTS_WITHIN_MS = 60_000


@pytest.fixture
def dashboard(store: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a ZenML server on the store of the test, with the settings that `zenml login --local` gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "ZENML_SERVER_AUTH_SCHEME": "NO_AUTH",
        "ZENML_SERVER_DEPLOYMENT_TYPE": "local",
        "ZENML_SERVER_AUTO_ACTIVATE": "true",
        "ZENML_SERVER_ALLOW_LOCAL_FILE_ACCESS": "true",
    }
    command = [sys.executable, "-m", "uvicorn", "zenml.zen_server.zen_server_api:app", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(address, server)
        # A new user is asked how they heard of ZenML before they see anything else.
        survey = {"awareness_channels": ["other"], "primary_use": "personal"}
        user = {"full_name": "Engineer", "email": "", "email_opted_in": False, "user_metadata": survey}
        _put(f"{address}/api/v1/current-user", user)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(STARTS_WITHIN_MS // 500):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "the ZenML server did not start"
            time.sleep(0.5)
    raise AssertionError("the ZenML server is not ready")


def _put(url: str, content: dict[str, object]) -> None:
    request = urllib.request.Request(
        url, json.dumps(content).encode(), {"Content-Type": "application/json"}, method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
def test_a_browser_shows_a_run_its_graph_and_its_report(store, run, dashboard, documents, tmp_path):
    from playwright.sync_api import expect, sync_playwright
    from zenml.client import Client

    labelled = tmp_path / "labelled.jsonl"
    rows = [{**row, "label": min(5.0, len(row["text"]) / 4000)} for row in documents]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(paths=[str(labelled)])
    head = train_head(source, TrainConfig(kind="hashing", label_column="label"), tmp_path / "head").origin
    settings = [f"head={head}", f"source.paths=['{labelled}']", f"output={tmp_path}/runs", "filter.min_score=1"]
    assert run("scoring", *settings)[0] == 0
    [scoring] = Client().list_pipeline_runs(pipeline="scoring")
    pictures = Path(os.environ.get("PICTURES", tmp_path))

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # as root, in a container, without a GPU
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(STARTS_WITHIN_MS)

        page.goto(f"{dashboard}/projects/default/runs")
        page.locator(f'a[href$="{scoring.id}"]').first.wait_for()
        page.screenshot(path=pictures / "dashboard-runs.png")

        page.goto(f"{dashboard}/projects/default/runs/{scoring.id}")
        for node in ("step/load_head", "step/score_corpus", "step/filter_corpus", "step/write_report"):
            page.locator(f'[data-id="{node}"]').wait_for()
        page.screenshot(path=pictures / "dashboard-run.png")

        page.locator('[data-id="write_report/outputs/step_output/report"]').click()
        artifact = page.get_by_role("dialog")
        artifact.get_by_role("tab", name="Visualization").click()
        preview = artifact.get_by_role("button", name="Load Preview")
        report = artifact.frame_locator("iframe")
        preview.or_(artifact.locator("iframe")).first.wait_for()
        if preview.is_visible():  # of large artifacts
            preview.click()
        expect(report.locator("body")).to_contain_text("documents in the corpus", timeout=STARTS_WITHIN_MS)
        page.screenshot(path=pictures / "dashboard-report.png")
        browser.close()
