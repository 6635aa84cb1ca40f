"""The corpora of an ablation: what a filter kept and dropped, and others, without documents of the targets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.dropping import DROPPED_DIRECTORY
from ml_filter.documents.lineage import ancestors
from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.downstream.ablation.config import FILTERED, REJECTED, AblateConfig
from ml_filter.errors import InputError
from ml_filter.location import Location
from ml_filter.prepare.config import DecontaminateConfig
from ml_filter.prepare.decontaminate import decontaminate_documents


def read_filtered(directory: str) -> tuple[Manifest, Manifest]:
    """The manifests of a filtered corpus and of what the filter dropped.

    Raises:
        InputError: the directory is not one, or was made without --dropped.
    """
    kept = find_manifest(directory)
    if kept is None or kept.kind != "filtered":
        Location(directory).require()
        raise InputError(f"{directory} is not a filtered corpus; make one with ml-filter filter SCORED --dropped")
    dropped = find_manifest(str(Location(directory) / DROPPED_DIRECTORY))
    if dropped is None:
        raise InputError(
            f"{directory} does not have what the filter dropped, which an ablation compares with; filter again with "
            "--dropped and another --output"
        )
    return kept, dropped


def heads_of(filtered: Manifest) -> list[Parent]:
    """The heads that scored a filtered corpus: the last parent of each directory of scores."""
    scored = [manifest for manifest in ancestors(filtered) if manifest.kind == "scored"]
    return list({head.digest: head for head in (manifest.parents[-1] for manifest in scored)}.values())


def sources_of(filtered: str, config: AblateConfig) -> dict[str, SourceConfig]:
    """The corpora by name, as they are."""
    kept, dropped = read_filtered(filtered)
    sources = {FILTERED: SourceConfig(paths=[kept.root]), REJECTED: SourceConfig(paths=[dropped.root])}
    return sources | config.corpora


def decontaminated(
    sources: dict[str, SourceConfig], config: AblateConfig, directory: Path
) -> Iterator[tuple[str, Manifest]]:
    """Each corpus without the documents that share words with a target."""
    against = DecontaminateConfig(against=[config.gold, *config.targets.values()], ngram_words=config.ngram_words)
    for name, source in sources.items():
        yield name, decontaminate_documents(source, against, directory / name)
