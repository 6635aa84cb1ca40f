"""Commands on documents."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import IdColumn, Output, Sources, Split, Subset, TextColumn, example, source_config
from ml_filter.cli.output import show


@app.command(
    epilog=example(
        "ml-filter sample installed: --size 500 --output runs/sample",
        "ml-filter sample 'crawl/*.warc.gz' --size 300000 --seed 1 --by language --output runs/sample",
    )
)
def sample(
    source: Sources,
    size: Annotated[int, typer.Option(min=1, help="How many documents")],
    output: Output,
    seed: Annotated[int, typer.Option(help="Another seed draws another sample")] = 0,
    by: Annotated[str, typer.Option(help="Columns, comma-separated, over whose values to spread the sample")] = "",
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Draw a seeded sample of documents, in one pass over a corpus of any size."""
    from ml_filter.documents.sampling import sample_documents
    from ml_filter.settings import SampleConfig

    config = SampleConfig(size=size, seed=seed, by=[name.strip() for name in by.split(",") if name.strip()])
    show(sample_documents(source_config(source, text_column, id_column, split, subset), config, output))
