"""The stages behind a result, found by the lineage of their directories."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from ml_filter.documents.lineage import find_source_manifest
from ml_filter.documents.manifest import Manifest

CHUNKS = "chunks"
"""Kind of the directories that the chain begins with."""
_DIGEST = re.compile(r"-[0-9a-f]{8}$")


def stages_of(*manifests: Manifest) -> list[Manifest]:
    """The directories that results come from, from the chunks on, and the results; each once, parents first."""
    stages: dict[str, Manifest] = {}
    for manifest in manifests:
        stages.update((stage.root, stage) for stage in _with_parents(manifest) if stage.root not in stages)
    return list(stages.values())


def _with_parents(manifest: Manifest) -> Iterator[Manifest]:
    if manifest.kind != CHUNKS:
        for parent in manifest.parents:
            source = find_source_manifest(parent.path)
            if source is not None and source.digest == parent.digest:
                yield from _with_parents(source)
    yield manifest


def name_of(stage: Manifest) -> str:
    """The name of a directory without its digest, such as `triples-0`."""
    return _DIGEST.sub("", PurePosixPath(stage.root).name)
