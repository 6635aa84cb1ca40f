"""Read the files of a head without an encoder: settings in config.json, arrays in safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import BaseModel

from ml_filter.errors import InputError
from ml_filter.heads.info import CONFIG_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS_NAME = "model.safetensors"

_Settings = TypeVar("_Settings", bound=BaseModel)


def read_weights(
    directory: Path, kind: str, settings: type[_Settings], names: Sequence[str]
) -> tuple[_Settings, dict[str, NDArray[np.float32]]]:
    """Settings and arrays of a head.

    Args:
        directory: of the head.
        kind: key of the settings in config.json.
        settings: their model.
        names: of the arrays.

    Raises:
        InputError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        content = json.loads((directory / CONFIG_NAME).read_text())[kind]
        arrays = load_file(directory / WEIGHTS_NAME)
        return settings.model_validate(content), {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{directory} is not a complete {kind} head ({error}); train it again with ml-filter train"
        ) from error
