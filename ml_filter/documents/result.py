"""Results: JSON files beside a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ml_filter.config import problems_in
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import InputError
from ml_filter.location import Location

Result = TypeVar("Result", bound=BaseModel)


def read_result(directory: str | Path | Manifest, name: str, form: type[Result], maker: str) -> Result:
    """Read a result.

    Args:
        maker: the command that makes one, for the errors.

    Raises:
        InputError: the directory does not exist or has no such file, or that of another version of ml-filter.
    """
    place = directory.root if isinstance(directory, Manifest) else directory
    location = Location(place) / name
    content = location.find_bytes()
    if content is None:
        Location(place).require()
        raise InputError(f"{place} has no {name}; make one with {maker}")
    try:
        return form.model_validate_json(content)
    except ValidationError as error:
        raise InputError(
            f"{location} is damaged or from another version of ml-filter; delete {place} and make it again with "
            f"{maker}: {problems_in(error, name)}"
        ) from error
