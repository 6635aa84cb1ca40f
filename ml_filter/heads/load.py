"""Find a head by name, and load encoder heads and published sequence classifiers.

The name of a head is its directory or `hf://OWNER/NAME[@REVISION]`. Commands and pipelines call `resolve_head` at their
start; all other code gets a directory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ml_filter.criterion import DEFAULT_CRITERION
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.batching import set_text_prefix
from ml_filter.heads.encoder import quiet_transformers, steady_arithmetic
from ml_filter.heads.info import CalibratedCriterion, HeadInfo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ml_filter.heads.model import HeadModel

PUBLISHED_CRITERION = CalibratedCriterion(**DEFAULT_CRITERION.model_dump())
"""The criterion of FineWeb-Edu's classifier and others of its kind."""
ZENML = "zenml:"
"""Prefix of a version in ZenML's model store, which only the pipelines can read."""
_HUB_NAME = re.compile(r"^hf://?(?P<name>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^@\s]+))?$")
_DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.tiktoken"]
"""Weights, configuration and vocabularies, but no code and no pickles."""


def resolve_head(name: str | Path) -> Path:
    """The directory of a head. A Hub repository is downloaded first, to the Hub's cache.

    The cache is by commit: nothing is downloaded twice, and a cached revision is found without a network.

    Args:
        name: directory, or `hf://OWNER/NAME[@REVISION]` with a branch, tag or commit; by default the main branch. A
            `Path` of such a name, which has one slash less, works too.

    Raises:
        InputError: the directory or repository does not exist, or cannot be downloaded.
        ConfigError: the name is in ZenML's model store, or does not have this form.
    """
    text = str(name)
    if text.startswith("hf:"):
        match = _HUB_NAME.match(text)
        if match is None:
            raise ConfigError(f"{text!r} is not a Hub name; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        return _from_hub(match["name"], match["revision"])
    if text.startswith(ZENML):
        raise ConfigError(
            f"{text!r} is in ZenML's model store, which only pipelines can read; use its directory, which the summary "
            "of the pipeline shows, or hf://OWNER/NAME"
        )
    if not Path(text).is_dir():
        raise InputError(
            f"{text} has no trained head: the directory does not exist; train one with ml-filter train, or use one "
            "from the Hub as hf://OWNER/NAME[@REVISION]"
        )
    return Path(text)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    url = f"hf://{name}@{revision}" if revision else f"hf://{name}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_DOWNLOADED))
    except Exception as error:  # the Hub client raises about twenty types, some from its HTTP library
        raise InputError(
            f"{url}: {type(error).__name__}: {str(error).strip().splitlines()[0]}. Check the name, the revision, the "
            "network and, for a private repository, HF_TOKEN or `hf auth login`"
        ) from error


def head_origin(directory: str | Path) -> str:
    """The name of a head in messages and lineage: repository and commit if it is in the Hub's cache, else the path."""
    *_, repository, kind, commit = ("", "", "", *Path(directory).parts)
    owner_and_name = repository.split("--")
    if kind == "snapshots" and owner_and_name[0] == "models" and len(owner_and_name) > 2:
        return f"hf://{owner_and_name[1]}/{'--'.join(owner_and_name[2:])}@{commit}"
    return str(directory)


def load_model(name: str | Path) -> tuple[HeadModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer on the CPU in float32, ready to score.

    A published classifier (`BertForSequenceClassification`, XLM-R, ModernBERT, ... with `num_labels` 1) is wrapped
    unchanged. Its output is a score from 0 to 5 with threshold 3. It reads as many tokens as its encoder and tokenizer
    allow, or 512 if neither has a limit. No code from the repository is run; weights are read only from safetensors.

    Args:
        name: directory or Hub name.

    Raises:
        ConfigError: the model does not exist, has no safetensors, needs its own code, is not a classifier, or has more
            than one output.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from ml_filter.heads.model import HeadConfig, HeadModel

    steady_arithmetic()
    path = str(name)
    try:
        with quiet_transformers():
            raw, _ = HeadConfig.get_config_dict(path)
            if raw.get("model_type") == HeadConfig.model_type:
                head: HeadModel = HeadModel.from_pretrained(path, use_safetensors=True)
                head_tokenizer = AutoTokenizer.from_pretrained(path, config=head.config)
                set_text_prefix(head_tokenizer, head.config.text_prefix)
                return head.float().eval(), head_tokenizer
            _check_published(path, AutoConfig.from_pretrained(path, trust_remote_code=False))
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load a model from {path!r}; it must have config.json, a tokenizer and weights as safetensors, and "
            f"need no code of its own: {str(error).strip().splitlines()[0]}"
        ) from error
    if loading["missing_keys"]:
        raise ConfigError(f"weights of {path!r} are missing: {', '.join(sorted(loading['missing_keys'])[:5])}")
    shown = head_origin(path)
    if shown == path and Path(path).is_dir():
        shown = Path(path).name  # no local path in saved files
    info = HeadInfo(engine="encoder", criteria=[PUBLISHED_CRITERION], provenance={"published": shown})
    wrapped = HeadModel.from_sequence_classifier(model.float(), shown, info, _max_tokens(model, tokenizer))
    # The same tensors that transformers loaded: a copy is aligned differently in memory, and its matrix products can
    # differ in the last bit.
    wrapped.encoder = model.requires_grad_(False).eval()
    return wrapped, tokenizer


def _check_published(path: str, config: PreTrainedConfig) -> None:
    architecture = (config.architectures or ["no architecture"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"{path!r} is not a head ({architecture}); train one on this encoder with ml-filter train --encoder {path}"
        )
    if config.num_labels != 1:
        raise ConfigError(
            f"{path!r} has {config.num_labels} outputs; a published classifier must have one (num_labels 1)"
        )


def _max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens both model and tokenizer can read."""
    limits = [int(tokenizer.model_max_length)]  # a very large number if there is no limit
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        limits.append(int(positions))
    for part, module in model.named_modules():
        # RoBERTa numbers positions after the padding index, and so has 514 positions for 512 tokens.
        if part.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(int(module.num_embeddings) - int(module.padding_idx) - 1)
    return min(limits) if min(limits) < 10**6 else 512
