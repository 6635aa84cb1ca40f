"""Fetch pipeline: from addresses, queries and repositories to a directory of documents."""

from zenml import pipeline

from ml_filter.pipeline.fetch import FetchPipelineConfig
from steps.downstream.fetch_documents import fetch_documents
from steps.export_to_warehouse import export_to_warehouse
from steps.track_run import track_run


@pipeline(name="fetch", enable_cache=False)
def fetch_pipeline(config: FetchPipelineConfig) -> None:
    """Fetch what is new or changed, and export it to the warehouse if there is one."""
    fetched = fetch_documents(config.fetch, config.output)
    if config.warehouse is not None:
        export_to_warehouse({"fetched": config.warehouse}, fetched=fetched, id="export_documents")
    track_run(config.tracking, fetched=fetched)
