"""Write a tuned model in every form it is used in: adapter, merged safetensors, GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from ml_filter.downstream.tuning.base import Base, load_config, load_model, quiet_libraries
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.result import ADAPTER_DIRECTORY, MODEL_DIRECTORY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADAPTER_CONFIG = "adapter_config.json"


def export_model(
    base: Base, tokenizer: PreTrainedTokenizerBase, config: TuneConfig, checkpoint: Path, target: Path
) -> None:
    """Write `model/` in the base's number type, and of an adapter also `adapter/`.

    An adapter is merged into the base in full precision, also that of QLoRA.
    """
    import torch

    dtype = load_config(base.directory).dtype or torch.float32
    with quiet_libraries():
        source = base.directory if config.is_adapter else checkpoint
        model = load_model(source, dtype=torch.float32)
        if config.is_adapter:
            from peft import PeftModel

            _copy_adapter(base, checkpoint, target / ADAPTER_DIRECTORY)
            model = PeftModel.from_pretrained(model, checkpoint).merge_and_unload()
        model = model.to(dtype)
        for settings in (model.config, model.generation_config):
            settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        model.config.use_cache = True  # not while training
        model.save_pretrained(target / MODEL_DIRECTORY)
        tokenizer.save_pretrained(target / MODEL_DIRECTORY)


def export_gguf(like: Path, model: Path, target: Path) -> None:
    """Write the model in a directory of transformers as a GGUF file with the metadata of another one."""
    from transformers import AutoTokenizer

    from ml_filter.downstream.tuning.gguf import write_gguf

    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        write_gguf(like, load_model(model).state_dict(), tokenizer, target)


def _copy_adapter(base: Base, checkpoint: Path, target: Path) -> None:
    """The weights and settings of the adapter, which name the base without its local path."""
    target.mkdir()
    copyfile(checkpoint / "adapter_model.safetensors", target / "adapter_model.safetensors")
    settings = json.loads((checkpoint / _ADAPTER_CONFIG).read_text())
    settings["base_model_name_or_path"] = base.name.removeprefix("hf://").partition("@")[0]
    (target / _ADAPTER_CONFIG).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
