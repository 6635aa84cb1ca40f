"""The base of a tuning: where its files are on this machine, its digest, and its tokenizer."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from loguru import logger

from ml_filter.annotation.embedded import MODEL_LICENSE, model_file
from ml_filter.config import Settings
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.downstream.tuning.chat import set_template
from ml_filter.downstream.tuning.config import EMBEDDED_BASE, TuneConfig
from ml_filter.downstream.tuning.data import TRAINED_ON_FILE
from ml_filter.downstream.tuning.result import (
    GGUF_NAME,
    MODEL_DIRECTORY,
    TUNING_NAME,
    TunedModel,
    read_tuned,
)
from ml_filter.errors import ConfigError, InputError
from ml_filter.extras import require_extra
from ml_filter.heads.encoder import quiet_transformers, shown_name
from ml_filter.heads.info import head_origin
from ml_filter.heads.store import HUB, HUB_NAME, from_hub
from ml_filter.heads.trained import file_digests

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Weights, configuration, vocabulary and chat template, but no code and no pickles."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    Attributes:
        name: in lineage and on the card.
        directory: with its files.
        digest: of its files.
        license: where it is known.
        gguf: of the embedded annotator's model, or one tuned from it: the file that tuned weights are written like.
        trained_on: of a directory of `tune`: the file that says what it was trained on.
    """

    name: str
    directory: Path
    digest: str
    license: str | None = None
    gguf: Path | None = None
    trained_on: Path | None = None

    @property
    def parent(self) -> Parent:
        """The base as an input of the tuned model."""
        return Parent(path=self.name, digest=self.digest)


def load_libraries() -> None:
    """Check that the libraries of the extra `tune` are installed, and load them without what they would say and send.

    Raises:
        ConfigError: they are not.
    """
    require_extra("tune", "tuning", "trl", "peft", "bitsandbytes", "gguf")
    # TRL imports comet_ml, which would report errors to a third party, and transformers would ask for its key.
    os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # about a kernel on the Hub that it does without
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        import_module("trl.trainer.sft_trainer")
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without progress bars, and without warnings that the libraries use each other's old names."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    are_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if are_shown:
            enable_progress_bars()


def find_base(name: str, settings: Settings | None = None) -> Base:
    """Find a base model and bring its files to this machine.

    Args:
        name: a directory of transformers or of `tune`, `hf://OWNER/NAME[@REVISION]`, a name on the Hub, or `embedded`.
        settings: for the cache of the embedded model; default: from the environment.

    Raises:
        InputError: the model does not exist, or has no weights in safetensors.
        ConfigError: it cannot be loaded without code of its own.
    """
    if name == EMBEDDED_BASE:
        settings = settings or Settings()
        gguf = model_file(settings)
        directory = _converted(gguf, settings.cache_dir.expanduser() / "models")
        return Base(gguf.stem, directory, _digest(directory), MODEL_LICENSE, gguf)
    if Path(name).is_dir():
        directory = Path(name)
        root = directory.parent if directory.name == MODEL_DIRECTORY else directory
        if (root / TUNING_NAME).exists():
            return _tuned(read_tuned(root), root)
        origin = shown_name(name)
    else:
        match = HUB_NAME.match(name if name.startswith(HUB) else f"hf://{name}")
        if match is None:
            raise InputError(
                f"base {name!r} is not a directory, hf://OWNER/NAME[@REVISION], a name on the Hub or {EMBEDDED_BASE}"
            )
        directory = from_hub(match["name"], match["revision"], _FILES)
        origin = head_origin(directory)
    for needed in ("config.json", "*.safetensors"):
        if not any(directory.glob(needed)):
            raise InputError(f"base {name} has no {needed}; only models of transformers in safetensors can be tuned")
    load_config(directory)
    return Base(origin, directory, _digest(directory))


def _tuned(model: TunedModel, root: Path) -> Base:
    """A model that was tuned before, as the base of another tuning."""
    result, directory = model.result, root / MODEL_DIRECTORY
    gguf = root / GGUF_NAME if (root / GGUF_NAME).exists() else None
    license = result.base_license if result.config.license == "unknown" else result.config.license
    return Base(root.absolute().name, directory, _digest(directory), license, gguf, root / TRAINED_ON_FILE)


def load_config(directory: Path) -> PretrainedConfig:
    """The configuration of a language model in a directory.

    Raises:
        ConfigError: transformers does not know it; code in the directory is not run.
    """
    from transformers import AutoConfig

    with _no_code_of(directory):
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return config


def load_model(directory: Path, **options: Any) -> Any:
    """A language model in a directory, from safetensors.

    Args:
        options: of `from_pretrained`.

    Raises:
        ConfigError: it cannot be loaded; code in the directory is not run.
    """
    from transformers import AutoModelForCausalLM

    with _no_code_of(directory):
        return AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, trust_remote_code=False, **options)


@contextmanager
def _no_code_of(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load a model from {directory}; it must be a language model in safetensors that transformers "
            f"knows, without code of its own: {str(error).strip().splitlines()[0]}"
        ) from error


def load_tokenizer(base: Base, config: TuneConfig) -> PreTrainedTokenizerBase:
    """The base's tokenizer with the configured chat template.

    Raises:
        ConfigError: it cannot be loaded, or does not tell where tokens are in the text.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base.directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer of {base.name} cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    if not tokenizer.is_fast or tokenizer.eos_token is None:
        raise ConfigError(f"the tokenizer of {base.name} has no end of text or is not one of the library tokenizers")
    set_template(tokenizer, config.template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _digest(directory: Path) -> str:
    return digest_of({name: digest for name, digest in file_digests(directory).items() if not name.endswith(".md")})


def _converted(gguf: Path, cache: Path) -> Path:
    """The model of a GGUF file as transformers saves it, in the cache.

    transformers can neither save nor train a model that it has loaded from GGUF, so the weights go to a new one.
    """
    directory = cache / f"{gguf.stem}-safetensors"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):
            if not directory.exists():
                logger.info(f"Converting {gguf.name} to safetensors in {directory}")
                with tempfile.TemporaryDirectory(dir=cache) as scratch:
                    _convert(gguf, Path(scratch) / "model")
                    os.replace(Path(scratch) / "model", directory)
    return directory


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_libraries():
        file: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **file)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **file)
        config = type(loaded.config).from_dict(
            {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
        )
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
