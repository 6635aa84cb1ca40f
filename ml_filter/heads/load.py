"""Where a head comes from, and how it is loaded: our own layout, or a published sequence classifier with one output.

A head is named by its directory, or by `hf://OWNER/NAME[@REVISION]`. Commands and pipelines hand such a name to
`resolve_head` at their entry; all else sees a directory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ml_filter.criterion import DEFAULT_CRITERION
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.arithmetic import steady_arithmetic
from ml_filter.heads.encoder import quiet_transformers
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.heads.tokens import set_text_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ml_filter.heads.model import HeadModel

PUBLISHED_CRITERION = CalibratedCriterion(**DEFAULT_CRITERION.model_dump())
"""What FineWeb-Edu's classifier, and those made like it, mean by their output."""
ZENML = "zenml:"
"""Begins the name of a version in ZenML's model store, which only the pipelines read."""
_HUB_NAME = re.compile(r"^hf://?(?P<name>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^@\s]+))?$")
_DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.tiktoken"]
"""Weights, configuration and vocabularies; nothing else of a repository, no code and nothing pickled."""


def resolve_head(name: str | Path) -> Path:
    """The directory of a head, which a Hub repository is first downloaded to.

    What is downloaded stays in the Hub's cache, by commit, and is not downloaded again; a revision that was downloaded
    before is found there without a network too.

    Args:
        name: directory, or `hf://OWNER/NAME[@REVISION]` for a model repository; the revision is a branch, tag or
            commit, and the main branch where there is none. A `Path` of it, which has one slash less, is understood.

    Raises:
        InputError: there is no such directory or repository, or it cannot be downloaded.
        ConfigError: the name is of ZenML's model store, or not of this form.
    """
    given = str(name)
    if given.startswith("hf:"):
        found = _HUB_NAME.match(given)
        if found is None:
            raise ConfigError(f"{given!r} names no head on the Hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        return _from_hub(found["name"], found["revision"])
    if given.startswith(ZENML):
        raise ConfigError(
            f"{given!r} is in ZenML's model store, which the pipelines read; here, give its directory (the pipeline's "
            "summary shows it), or hf://OWNER/NAME"
        )
    if not Path(given).is_dir():
        raise InputError(
            f"{given} holds no trained head: there is no such directory; make one with ml-filter train, or name one of "
            "the Hub as hf://OWNER/NAME[@REVISION]"
        )
    return Path(given)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    given = f"hf://{name}@{revision}" if revision else f"hf://{name}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_DOWNLOADED))
    except Exception as error:  # the Hub client raises some twenty kinds, down to those of its HTTP library
        raise InputError(
            f"{given}: {type(error).__name__}: {str(error).strip().splitlines()[0]}. Check the name, the revision, the "
            "network and, for a private repository, HF_TOKEN or `hf auth login`"
        ) from error


def head_origin(directory: str | Path) -> str:
    """What names a head for people and in lineage: of the Hub's cache the repository and commit, else the path."""
    *_, repository, kind, commit = ("", "", "", *Path(directory).parts)
    owner_and_name = repository.split("--")
    if kind == "snapshots" and owner_and_name[0] == "models" and len(owner_and_name) > 2:
        return f"hf://{owner_and_name[1]}/{'--'.join(owner_and_name[2:])}@{commit}"
    return str(directory)


def load_model(name: str | Path) -> tuple[HeadModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, ready to score, on the CPU in float32.

    A published classifier (`BertForSequenceClassification`, XLM-R, ModernBERT, ... with `num_labels` 1) is wrapped
    unchanged. Its output is read as one score from 0 to 5 with threshold 3; it reads as many tokens as its encoder
    has positions and its tokenizer allows, and 512 where neither says. No code of the repository is run, and weights
    are read from safetensors alone.

    Args:
        name: directory or Hub name.

    Raises:
        ConfigError: there is no such model, it has no safetensors, it needs code of its own, it is no classifier, or
            it has more than one output.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from ml_filter.heads.model import HeadConfig, HeadModel

    steady_arithmetic()
    place = str(name)
    try:
        with quiet_transformers():
            raw, _ = HeadConfig.get_config_dict(place)
            if raw.get("model_type") == HeadConfig.model_type:
                ours: HeadModel = HeadModel.from_pretrained(place, use_safetensors=True)
                reader = AutoTokenizer.from_pretrained(place, config=ours.config)
                set_text_prefix(reader, ours.config.text_prefix)
                return ours.float().eval(), reader
            _check_published(place, AutoConfig.from_pretrained(place, trust_remote_code=False))
            model, found = AutoModelForSequenceClassification.from_pretrained(
                place, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{place!r} holds no model that can be loaded (config.json, tokenizer and weights as safetensors, without "
            f"code of its own): {str(error).strip().splitlines()[0]}"
        ) from error
    if found["missing_keys"]:
        raise ConfigError(f"{place!r} lacks weights of its own model: {', '.join(sorted(found['missing_keys'])[:5])}")
    shown = head_origin(place)
    if shown == place and Path(place).is_dir():
        shown = Path(place).name  # no path of this machine in what is saved
    info = HeadInfo(engine="encoder", criteria=[PUBLISHED_CRITERION], provenance={"published": shown})
    wrapped = HeadModel.from_sequence_classifier(model.float(), shown, info, _max_tokens(model, tokenizer))
    # The very tensors that transformers loaded: matrix products of a copy, which lies elsewhere in memory with regard
    # to cache lines, can differ in the last bit.
    wrapped.encoder = model.requires_grad_(False).eval()
    return wrapped, tokenizer


def _check_published(place: str, config: PreTrainedConfig) -> None:
    made_for = (config.architectures or ["no architecture"])[0]
    if not made_for.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"{place!r} is no head ({made_for}); an encoder becomes one with ml-filter train --encoder {place}"
        )
    if config.num_labels != 1:
        raise ConfigError(
            f"{place!r} has {config.num_labels} outputs; a published classifier can score if it has one (num_labels 1)"
        )


def _max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens both can take."""
    limits = [int(tokenizer.model_max_length)]  # a very large number where nothing is said
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        limits.append(int(positions))
    for part, module in model.named_modules():
        # RoBERTa counts positions from behind the padding index on, so that it has 514 of them for 512 tokens.
        if part.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(int(module.num_embeddings) - int(module.padding_idx) - 1)
    return min(limits) if min(limits) < 10**6 else 512
