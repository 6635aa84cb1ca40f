"""Load a head from a directory, the Hub or ZenML's store."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.heads.info import head_origin
from ml_filter.heads.train import TrainedHead
from steps.materializers import HeadMaterializer
from steps.names import Artifact
from steps.registry import find_head


@step(enable_cache=False, output_materializers=HeadMaterializer)
def load_head(name: str) -> Annotated[TrainedHead, Artifact.HEAD]:
    """Load a directory, `hf://OWNER/NAME[@REVISION]` or `zenml:MODEL[@VERSION]`."""
    head = find_head(name)
    log_metadata({"name": name, "path": head_origin(head.directory), "digest": head.digest})
    return head
