"""End a run at a named point, as a kill would: before or after it puts a file of its output in place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from ml_filter.documents.output_directory import OutputDirectory


class Killed(BaseException):
    """The run ends here. Nothing in ml_filter catches it."""


@contextmanager
def kill_at(when: Literal["before", "after"], name: str, *, every_time: bool = False) -> Iterator[None]:
    """Raise `Killed` before or after a file whose name matches is written to an output directory.

    Args:
        name: regular expression for the path relative to the output directory, such as `manifest.json`.
        every_time: not only at the first such file.
    """
    is_armed = True

    def killing(method: Any, position: int) -> Any:
        def call(self: OutputDirectory, *arguments: Any) -> Any:
            nonlocal is_armed
            kills = is_armed and re.fullmatch(name, arguments[position]) is not None
            is_armed = is_armed and (every_time or not kills)
            if kills and when == "before":
                raise Killed(arguments[position])
            result = method(self, *arguments)
            if kills:
                raise Killed(arguments[position])
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputDirectory, "put_bytes", killing(OutputDirectory.put_bytes, 0))
        patch.setattr(OutputDirectory, "put_file", killing(OutputDirectory.put_file, 1))
        yield
