"""Bring a head from a directory into a pipeline."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.heads.train import TrainedHead, read_head
from steps.materializers import HeadMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=HeadMaterializer)
def load_head(directory: str) -> Annotated[TrainedHead, Artifact.HEAD]:
    """The head in a directory."""
    head = read_head(directory)
    log_metadata({"path": head.directory, "digest": head.digest})
    return head
