"""Commands on documents."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    Documents,
    IdColumn,
    Output,
    Sources,
    Split,
    Subset,
    TextColumn,
    example,
    names_in,
    source_config,
)
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
    from ml_filter.prepare.config import SampleConfig
    from ml_filter.prepare.sampling import sample_documents

    config = SampleConfig(size=size, seed=seed, by=names_in(by))
    show(sample_documents(source_config(source, text_column, id_column, split, subset), config, output))


@app.command(
    epilog=example(
        "ml-filter deduplicate runs/sample --output runs/deduplicated",
        "ml-filter deduplicate 'crawl/*.parquet' --threshold 0.7 --output runs/deduplicated",
    )
)
def deduplicate(
    source: Sources,
    output: Output,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Estimated Jaccard similarity from which on a document is a duplicate")
    ] = 0.8,
    permutations: Annotated[int, typer.Option(min=16, help="Length of a MinHash signature")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the signatures")] = 0,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Drop documents that repeat an earlier one, word for word or nearly so (MinHash)."""
    from ml_filter.prepare.config import DeduplicateConfig
    from ml_filter.prepare.deduplicate import deduplicate_documents

    config = DeduplicateConfig(threshold=threshold, permutations=permutations, seed=seed)
    show(deduplicate_documents(source_config(source, text_column, id_column, split, subset), config, output))


@app.command(
    epilog=example(
        "ml-filter decontaminate runs/deduplicated --against gold.jsonl --output runs/clean",
        "ml-filter decontaminate runs/sample --against hf://datasets/OWNER/NAME --against-column question "
        "--against-split test --min-share 0.2 --output runs/clean",
    )
)
def decontaminate(
    source: Sources,
    against: Annotated[
        list[str], typer.Option(help="A source of texts to keep out, such as human gold; several: one --against each")
    ],
    output: Output,
    against_column: Annotated[str, typer.Option(help="Column that holds the text to keep out")] = "text",
    against_split: Annotated[str, typer.Option(help="Split of a Hub data set to keep out")] = "test",
    against_subset: Annotated[str | None, typer.Option(help="Subset of a Hub data set to keep out")] = None,
    ngram_words: Annotated[int, typer.Option(min=1, help="Length of the n-grams that are compared")] = 13,
    min_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a text's n-grams from which on a document is dropped; 0: one")
    ] = 0.0,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Drop documents that hold texts which something is evaluated on (word n-grams)."""
    from ml_filter.prepare.config import DecontaminateConfig
    from ml_filter.prepare.decontaminate import decontaminate_documents

    gold = source_config(against, against_column, None, against_split, against_subset)
    config = DecontaminateConfig(against=[gold], ngram_words=ngram_words, min_share=min_share)
    show(decontaminate_documents(source_config(source, text_column, id_column, split, subset), config, output))


@app.command(
    epilog=example(
        "ml-filter publish runs/scores --agreement runs/agreement --output runs/labelled",
        "ml-filter publish runs/scores --criterion educational_value --criterion adult_content --output runs/labelled",
        "ml-filter publish runs/scores --license odc-by --output runs/labelled --push OWNER/NAME --private",
    )
)
def publish(
    scores: Annotated[str, typer.Argument(help="Directory made by aggregate")],
    output: Output,
    documents: Documents = None,
    criterion: Annotated[
        list[str] | None, typer.Option(help="Which criteria of the scores (default: all there are)")
    ] = None,
    validation_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the documents")] = 0.1,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the documents")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed splits otherwise")] = 0,
    agreement: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Directory made by agreement, to state its figures; one for each criterion"),
    ] = None,
    license_: Annotated[str, typer.Option("--license", help="For the data card")] = "unknown",
    title: Annotated[str | None, typer.Option(help="Of the data card (default: from the criterion)")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload to this data set of the Hub; needs HF_TOKEN")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make it private; one that is public is refused")] = False,
) -> None:
    """Write a labelled data set in train, validation and test, with a data card; near-duplicates stay together."""
    from ml_filter.documents.config import SourceConfig
    from ml_filter.publishing.config import PublishConfig
    from ml_filter.publishing.labelled import publish_labels

    config = PublishConfig(
        validation_share=validation_share,
        test_share=test_share,
        seed=seed,
        criterion=criterion,
        license=license_,
        title=title,
        agreement=agreement,
        push=push,
        private=private,
    )
    show(publish_labels(scores, config, output, SourceConfig(paths=[documents]) if documents else None))
