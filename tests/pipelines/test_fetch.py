"""The fetch pipeline: documents of a local site, and a second run that finds what is new."""

import pytest

from tests.downstream.fetching.site import Site, article

pytestmark = [
    pytest.mark.zenml,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # ZenML's own warnings
]


def test_run_fetches_documents_and_keeps_the_figures(run, store, tmp_path):
    site = Site()
    site.pages |= {"/": article("home", "/a"), "/a": article("a")}
    try:
        code, printed = run(
            "fetch",
            f"output={tmp_path / 'runs'}",
            f"fetch.urls=['{site.url()}']",
            "fetch.depth=1",
            "fetch.delay_s=0",
            "fetch.allow_local=true",
        )
    finally:
        site.close()
    assert code == 0, printed

    from zenml.client import Client

    step = Client().list_pipeline_runs(pipeline="fetch")[0].steps["fetch_documents"]
    assert step.run_metadata["run"]["new"] == 2
    manifest = step.outputs["fetched"][0].load()
    assert manifest.rows == manifest.counts["documents"] == 2
    assert [directory.name.split("-")[0] for directory in (tmp_path / "runs").iterdir()] == ["fetched"]
