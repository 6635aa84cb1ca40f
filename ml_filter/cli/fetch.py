"""The command that gets documents."""

from __future__ import annotations

from ml_filter.cli.command import Output, command
from ml_filter.cli.output import show_table
from ml_filter.downstream.fetching.config import FetchConfig


@command(
    "ml-filter fetch --url https://example.org/ --depth 2 --contact me@example.org --output runs/site",
    "ml-filter fetch --sitemap https://example.org/ --feed https://example.org/feed.xml --contact me@example.org "
    "--output runs/news",
    "ml-filter fetch --arxiv 'cat:cs.CL AND all:\"data filtering\"' --arxiv-since 2026-01-01 --contact me@example.org "
    "--output runs/papers",
    "ml-filter fetch --github huggingface/datatrove --github-extensions md,py --contact me@example.org "
    "--output runs/code",
)
def fetch(output: Output, fetch: FetchConfig) -> None:
    """Fetch web pages, PDFs, feeds, sitemaps, arXiv papers and GitHub repositories into a directory of documents.

    Run the command again to resume, and later to fetch what is new or changed.
    """
    from ml_filter.downstream.fetching.run import fetch_documents

    manifest, figures = fetch_documents(fetch, output)
    show_table("this run", manifest.root, figures)
    show_table(manifest.kind, manifest.root, manifest.counts)  # of its shards, one is of rejects
