"""A file system that cannot be reached, under the protocol `unreachable`."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

URL = "unreachable://bucket/runs"


class Unreachable(MemoryFileSystem):
    """Every access fails as a network does."""

    protocol = "unreachable"

    def info(self, path, **kwargs):
        raise ConnectionError("no route to host")

    cat_file = open = makedirs = pipe_file = put_file = ls = info


fsspec.register_implementation("unreachable", Unreachable, clobber=True)
