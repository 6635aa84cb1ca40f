"""Where the base and the tuned model answer: endpoints, or GGUF files in the embedded server."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from filelock import FileLock
from loguru import logger

from ml_filter.config import Settings
from ml_filter.downstream.judging.config import ContestantConfig
from ml_filter.downstream.tuning.base import (
    Base,
    find_base,
    load_libraries,
    load_model,
    load_tokenizer,
    quiet_libraries,
)
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.result import GGUF_NAME, TunedModel
from ml_filter.errors import ConfigError, InputError
from ml_filter.location import Location


def tuned_settings(tuned: TunedModel, config: ContestantConfig, settings: Settings) -> Settings:
    """The settings with which the tuned model answers.

    Raises:
        ConfigError: it has neither an endpoint nor a GGUF file.
    """
    if config.endpoints:
        return settings
    file = Location(tuned.root) / GGUF_NAME
    if not (file.is_local and file.exists()):
        raise ConfigError(
            f"{tuned.root} has no local {GGUF_NAME}, which only models tuned from the embedded one have: serve the "
            "model and its base, and name the servers by --tuned-endpoint and --base-endpoint with --tuned-model and "
            "--base-model"
        )
    return _embedded(settings, file.local)


def base_settings(tuned: TunedModel, config: ContestantConfig, settings: Settings) -> Settings:
    """The settings with which the base answers, in the same number type as the tuned model.

    The embedded annotator's own file has 4-bit weights, whose rounding would count as a difference between the two.

    Raises:
        ConfigError: the base has no endpoint and is not the embedded model.
        InputError: the base has changed since the tuning.
    """
    if config.endpoints:
        return settings
    base = unchanged_base(tuned, settings)
    if base.gguf is None:
        raise ConfigError("the base is not the embedded model: serve it, and set --base-endpoint and --base-model")
    return _embedded(settings, _as_float16(base, tuned.result.config, settings))


def unchanged_base(tuned: TunedModel, settings: Settings) -> Base:
    """The base of a tuned model on this machine.

    Raises:
        InputError: it has changed since the tuning.
    """
    base = find_base(tuned.result.config.base, settings)
    if base.digest != tuned.result.base.digest:
        raise InputError(f"the base {base.name} is not the one that {tuned.root} was tuned from; tune again")
    return base


def _embedded(settings: Settings, file: Path) -> Settings:
    return settings.model_copy(update={"endpoint": None, "embedded_model": file})


def _as_float16(base: Base, config: TuneConfig, settings: Settings) -> Path:
    """The base as a GGUF file of float16 weights with the chat template of the tuning, in the cache."""
    load_libraries()
    from ml_filter.downstream.tuning.gguf import write_gguf

    assert base.gguf is not None
    directory = settings.cache_dir.expanduser() / "models" / f"float16-{base.digest[:16]}-{config.template}"
    path = directory / GGUF_NAME
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not path.exists():
            logger.info(f"Writing {base.name} with float16 weights to {path}")
            with quiet_libraries(), tempfile.TemporaryDirectory(dir=directory) as scratch:
                weights = load_model(base.directory).state_dict()
                write_gguf(base.gguf, weights, load_tokenizer(base, config), Path(scratch) / GGUF_NAME)
                os.replace(Path(scratch) / GGUF_NAME, path)
    return path
