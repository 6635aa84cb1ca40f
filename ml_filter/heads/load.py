"""Load a head from a directory or the Hub: our own layout, or a published sequence classifier with one output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ml_filter.errors import ConfigError
from ml_filter.heads.encoder import quiet_transformers
from ml_filter.heads.info import Criterion, HeadInfo
from ml_filter.heads.model import HeadConfig, HeadModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PUBLISHED_CRITERION = Criterion(name="score", low=0, high=5, threshold=3)
"""What FineWeb-Edu's classifier, and those made like it, mean by their output."""


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

    place = str(name)
    try:
        with quiet_transformers():
            raw, _ = HeadConfig.get_config_dict(place)
            if raw.get("model_type") == HeadConfig.model_type:
                ours: HeadModel = HeadModel.from_pretrained(place, use_safetensors=True)
                return ours.float().eval(), AutoTokenizer.from_pretrained(place, config=ours.config)
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
    shown = Path(place).name if Path(place).is_dir() else place  # no path of this machine in what is saved
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
