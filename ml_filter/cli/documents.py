"""Commands that prepare and publish documents."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.command import command
from ml_filter.cli.options import Documents, Output, Sources
from ml_filter.cli.output import show
from ml_filter.prepare.config import DecontaminateConfig, DeduplicateConfig, SampleConfig
from ml_filter.publishing.config import PublishConfig


@command(
    "ml-filter sample installed: --size 500 --output runs/sample",
    "ml-filter sample 'crawl/*.warc.gz' --size 300000 --seed 1 --by language --output runs/sample",
)
def sample(source: Sources, output: Output, sample: SampleConfig) -> None:
    """Draw a random sample of documents in one pass over a corpus of any size."""
    from ml_filter.prepare.sampling import sample_documents

    show(sample_documents(source, sample, output))


@command(
    "ml-filter deduplicate runs/sample --output runs/deduplicated",
    "ml-filter deduplicate 'crawl/*.parquet' --threshold 0.7 --output runs/deduplicated",
)
def deduplicate(source: Sources, output: Output, deduplicate: DeduplicateConfig) -> None:
    """Drop exact and near duplicates of earlier documents (MinHash)."""
    from ml_filter.prepare.deduplicate import deduplicate_documents

    show(deduplicate_documents(source, deduplicate, output))


@command(
    "ml-filter decontaminate runs/deduplicated --against gold.jsonl --output runs/clean",
    "ml-filter decontaminate runs/sample --against hf://datasets/OWNER/NAME --against-column question "
    "--against-split test --min-share 0.2 --output runs/clean",
)
def decontaminate(
    source: Sources,
    output: Output,
    decontaminate: DecontaminateConfig,
    against_split: Annotated[
        str, typer.Option(metavar="TEXT", help="Split of a Hub data set to keep out, if --config does not say")
    ] = "test",
) -> None:
    """Drop documents that contain texts of an evaluation set (word n-grams)."""
    from ml_filter.prepare.decontaminate import decontaminate_documents

    against = [
        part if "split" in part.model_fields_set else part.model_copy(update={"split": against_split})
        for part in decontaminate.against
    ]
    show(decontaminate_documents(source, decontaminate.model_copy(update={"against": against}), output))


@command(
    "ml-filter publish runs/scores --agreement runs/agreement --output runs/labelled",
    "ml-filter publish runs/scores --criterion educational_value --criterion adult_content --output runs/labelled",
    "ml-filter publish runs/scores --license odc-by --output runs/labelled --push OWNER/NAME --private",
)
def publish(
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Directory made by aggregate")],
    output: Output,
    publish: PublishConfig,
    documents: Documents = None,
) -> None:
    """Write a labelled data set with train, validation and test splits and a data card.

    Near duplicates stay in one split.
    """
    from ml_filter.publishing.labelled import publish_labels

    show(publish_labels(scores, publish, output, documents))
