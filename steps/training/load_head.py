"""Load a head from a directory, a URL, the Hub or ZenML's store."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.heads.trained import TrainedHead
from steps.materializers import ReferencedHeadMaterializer
from steps.names import Artifact
from steps.registry import find_head


@step(enable_cache=False, output_materializers=ReferencedHeadMaterializer)
def load_head(name: str) -> Annotated[TrainedHead, Artifact.HEAD]:
    """Load a directory, a URL, `hf://OWNER/NAME[@REVISION]` or `zenml:MODEL[@VERSION]`; reads no weights."""
    head = find_head(name)
    log_metadata({"name": name, "path": head.origin, "digest": head.digest})
    return head
